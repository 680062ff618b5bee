"""Ragged memories of many references, laid out as padded tensors that the chunks of a forward pass read.

Every chunk has its own list of references; heads keep different numbers of pairs. One gather for all layers, heads and chunks:
no Python loop over chunks.

Symbols: N chunks, R references of a chunk, L memory layers, H KV heads, M_l largest number of pairs of a head in layer l, b tokens of the
prefix, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import torch

from memory3.attention.attend import masked
from memory3.attention.rotary import rotate
from memory3.types import LayerMemory, Memory, MemoryBatch, MemoryShape

__all__ = ["Prefix", "gather_memories", "select_chunks"]

#: Keys and values ``[H, b, d]`` of the prefix, for every layer of the model.
Prefix = Sequence[tuple[torch.Tensor, torch.Tensor]]


def gather_memories(
    references: Sequence[Sequence[str]],
    memories: Mapping[str, Memory],
    shape: MemoryShape,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    inv_freq: torch.Tensor | Sequence[torch.Tensor] | None = None,
    moved: Sequence[int] | None = None,
    spacing: int = 0,
    temperature: float = 1.0,
    prefix: Prefix | None = None,
    prefix_tokens: Sequence[int] | None = None,
) -> MemoryBatch:
    """Lay out what N chunks read.

    Args:
        references: N lists of reference ids, most similar first.
        memories: by id.
        shape: of all memories.
        dtype, device: of the model.
        inv_freq: RoPE angles ``[r/2]`` of every layer of the model, or those that all layers have; needed where anything is moved.
        moved: per chunk, by how many positions its keys move from where they were written. None: not at all.
        spacing: positions between a reference and the next best, which lies before it; 0: all lie in the same positions.
        temperature: what the logits of memories are divided by, those of the prefix not. Keys are: a query's product with a key is its logit.
        prefix: keys and values of the prefix, one pair ``[H, b, d]`` for every layer of the model.
        prefix_tokens: per chunk, how many of the last tokens of the prefix it reads as memory, because its prompt lacks them.

    Returns:
        Layers that read nothing are absent.
    """
    angles = [inv_freq] * (max(shape.layers) + 1) if isinstance(inv_freq, torch.Tensor) else inv_freq
    layers = _gather_pairs(references, memories, shape, dtype, device, angles, spacing, temperature)
    shift = torch.tensor(moved, device=device) if moved is not None and any(moved) else None
    if shift is not None:
        if angles is None:
            raise AssertionError("moving memories needs the RoPE angles")
        for number, layer in layers.items():
            layer.keys = rotate(layer.keys, shift[:, None, None], angles[number])
    if prefix is not None and prefix_tokens is not None and any(prefix_tokens):
        layers = _prepend_prefix(layers, prefix, prefix_tokens, shift, angles, dtype, device)
    return MemoryBatch(layers=layers, references=[list(ids) for ids in references])


def _gather_pairs(
    references: Sequence[Sequence[str]],
    memories: Mapping[str, Memory],
    shape: MemoryShape,
    dtype: torch.dtype,
    device: torch.device | str,
    angles: Sequence[torch.Tensor] | None,
    spacing: int,
    temperature: float,
) -> dict[int, LayerMemory]:
    # What is laid out is a memory at its rank: the same one may lie in other positions for another chunk.
    laid = [[(name, rank if spacing else 0) for rank, name in enumerate(ids)] for ids in references]
    places = sorted({place for each in laid for place in each})
    if not places:
        return {}
    number = {place: u for u, place in enumerate(places)}
    chosen = [memories[name] for name, _ in places]
    chunks, most = len(references), max(len(ids) for ids in references)
    grid = np.full((chunks, most), -1)  # [N, R] -> number of the memory
    for n, each in enumerate(laid):
        grid[n, : len(each)] = [number[place] for place in each]

    # Where each head's pairs start in the concatenation of all distinct memories, and how many there are: [u, L, H].
    counts = np.stack([m.counts for m in chosen]).astype(np.int64).reshape(len(places), -1)
    starts = np.cumsum(counts.reshape(-1)) - counts.reshape(-1)
    starts = starts.reshape(counts.shape)
    flat_counts = np.where(grid[..., None] >= 0, counts[grid], 0)  # [N, R, L*H]
    flat_starts = starts[grid]

    # [L, N, H, R] so that the pairs of one head follow one another in the output.
    def order(x: np.ndarray) -> np.ndarray:
        return x.reshape(chunks, most, len(shape.layers), shape.kv_heads).transpose(2, 0, 3, 1)

    flat_counts, flat_starts = order(flat_counts), order(flat_starts)
    per_head = flat_counts.sum(-1)  # [L, N, H]
    width = per_head.max(axis=(1, 2))  # [L] = M_l
    area = chunks * shape.kv_heads * width
    base = np.concatenate([[0], np.cumsum(area)])
    head_number = np.arange(chunks * shape.kv_heads).reshape(1, chunks, shape.kv_heads, 1)
    target = base[:-1, None, None, None] + head_number * width[:, None, None, None] + np.cumsum(flat_counts, -1) - flat_counts

    repeat = flat_counts.reshape(-1)
    within = np.arange(repeat.sum()) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    pad = int(counts.sum())  # index of the all-zero row
    source = np.full(int(base[-1]), pad)
    where = np.repeat(target.reshape(-1), repeat) + within
    source[where] = np.repeat(flat_starts.reshape(-1), repeat) + within
    owner = np.full(int(base[-1]), -1)
    owner[where] = np.repeat(np.broadcast_to(np.arange(most), flat_counts.shape).reshape(-1), repeat)

    # Converted before they are laid out, since there are fewer of them; laid out layer by layer, since an allocator hands small pieces out again
    # and fetches large ones from the system, page by page.
    index, owners = torch.from_numpy(source).to(device), torch.from_numpy(owner).to(device)
    zero = chosen[0].keys.new_zeros(1, shape.head_dim)
    keys = torch.cat([*(m.keys for m in chosen), zero]).to(device, dtype)
    if temperature != 1:
        keys = keys / temperature
    if spacing:
        if angles is None:
            raise AssertionError("moving memories needs the RoPE angles")
        # Layers that rotate alike and follow one another are turned at once; in most models that is all of them.
        runs = [list(run) for _, run in groupby(range(len(shape.layers)), lambda i: id(angles[shape.layers[i]]))]
        of_layer = counts.reshape(len(places), len(shape.layers), -1).sum(2)
        sizes = [int(mine[run].sum()) for mine in of_layer for run in runs]
        turns = [(rank, angles[shape.layers[run[0]]]) for _, rank in places for run in runs]
        *parts, padding = keys.split([*sizes, 1])
        # Only differences of positions count, so those before 0 are as good as any.
        turned = [
            rotate(part, torch.tensor(-spacing * rank, device=device), by) if rank else part
            for part, (rank, by) in zip(parts, turns, strict=True)
        ]
        keys = torch.cat([*turned, padding])
    values = torch.cat([*(m.values for m in chosen), zero]).to(device, dtype)
    layers: dict[int, LayerMemory] = {}
    for i, layer in enumerate(shape.layers):
        if width[i] == 0:
            continue
        part, size = slice(int(base[i]), int(base[i + 1])), (chunks, shape.kv_heads, int(width[i]))
        mine = owners[part].view(size)
        padded = bool((per_head[i] < width[i]).any())
        bias = torch.zeros(size, dtype=dtype, device=device).masked_fill_(mine < 0, masked(dtype)) if padded else None
        layers[layer] = LayerMemory(
            keys=keys.index_select(0, index[part]).view(*size, -1),
            values=values.index_select(0, index[part]).view(*size, -1),
            bias=None if bias is None else bias.unsqueeze(2),
            owner=mine,
            widths=tuple(per_head[i].max(axis=0).tolist()),
        )
    return layers


def _prepend_prefix(
    layers: dict[int, LayerMemory],
    prefix: Prefix,
    tokens: Sequence[int],
    shift: torch.Tensor | None,
    angles: Sequence[torch.Tensor] | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> dict[int, LayerMemory]:
    chunks, most = len(tokens), max(tokens)
    missing = torch.arange(most, device=device) < most - torch.tensor(tokens, device=device)[:, None]  # [N, most]
    out: dict[int, LayerMemory] = {}
    for layer, (all_keys, all_values) in enumerate(prefix):
        heads = all_keys.shape[0]
        keys, values = (x[:, -most:].to(device, dtype).expand(chunks, heads, most, -1) for x in (all_keys, all_values))
        if shift is not None and angles is not None:
            keys = rotate(keys, shift[:, None, None], angles[layer])
        bias = torch.zeros(chunks, heads, 1, most, dtype=dtype, device=device)
        bias.masked_fill_(missing[:, None, None, :], masked(dtype))
        owner = torch.full((chunks, heads, most), -1, device=device)
        own = layers.get(layer)
        if own is None:
            own_bias = bias if bool(missing.any()) else None
            out[layer] = LayerMemory(keys.contiguous(), values.contiguous(), own_bias, owner, (most,) * heads)
            continue
        own_bias = own.bias if own.bias is not None else own.keys.new_zeros(chunks, heads, 1, own.keys.shape[2])
        out[layer] = LayerMemory(
            keys=torch.cat([keys, own.keys], 2),
            values=torch.cat([values, own.values], 2),
            bias=None if own.bias is None and not bool(missing.any()) else torch.cat([bias, own_bias], -1),
            owner=torch.cat([owner, own.owner], 2),
            widths=tuple(most + width for width in own.widths),
        )
    return out


def select_chunks(batch: MemoryBatch, chunks: Sequence[int]) -> MemoryBatch:
    """The batch whose chunk i is chunk ``chunks[i]`` of ``batch``: beams, or the last prompt chunk of every row."""
    if list(chunks) == list(range(len(batch.references))):
        return batch
    index = torch.tensor(list(chunks))
    layers = {}
    for number, layer in batch.layers.items():
        at = index.to(layer.keys.device)
        bias = None if layer.bias is None else layer.bias[at]
        layers[number] = LayerMemory(layer.keys[at], layer.values[at], bias, layer.owner[at], layer.widths)
    return MemoryBatch(layers=layers, references=[batch.references[c] for c in chunks])
