"""Ragged memories of many references, laid out as padded tensors that the chunks of a forward pass read.

Every chunk has its own list of references; heads keep different numbers of pairs. Where a pair goes is index arithmetic
(`memory3.attention.layout.placement`); here the tensors follow it: one gather for all layers, heads and chunks.

Symbols: N chunks, R references of a chunk, L memory layers, H KV heads, M_l largest number of pairs of a head in layer l,
b tokens of the prefix, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import torch

from memory3.attention.kernels import additive
from memory3.attention.layout.arrangement import arrange, occupied
from memory3.attention.layout.placement import place
from memory3.attention.layout.prefix import Prefix, with_prefix
from memory3.attention.rotary import rotate
from memory3.types import LayerMemory, Memory, MemoryBatch, MemoryShape

__all__ = ["gather_memories"]

#: A memory and by how many positions it is moved: the same one may lie in other places for another chunk.
_Placed = tuple[str, int]


def gather_memories(
    references: Sequence[Sequence[str]],
    memories: Mapping[str, Memory],
    shape: MemoryShape,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    inv_freq: torch.Tensor | Sequence[torch.Tensor] | None = None,
    moved: Sequence[int] | None = None,
    arrangement: str = "parallel",
    span: int = 0,
    temperature: float = 1.0,
    rank_discount: float = 0.0,
    prefix: Prefix | None = None,
    prefix_tokens: Sequence[int] | None = None,
) -> MemoryBatch:
    """Lay out what N chunks read.

    Args:
        references: N lists of reference ids, most similar first.
        memories: by id. Their tensors may lie on any device; those that lie on ``device`` never leave it.
        shape: of all memories.
        dtype, device: of the model.
        inv_freq: RoPE angles ``[r/2]`` of every layer of the model, or those that all layers have; needed where anything
            is moved.
        moved: per chunk, by how many positions its keys move from where they were written. None: not at all.
        arrangement: where the references of a chunk lie (`memory3.attention.layout.arrangement`).
        span: positions that memories occupy; needed where they do not lie in parallel.
        temperature: what the logits of memories are divided by, those of the prefix not. Keys are: a query's product with
            a key is its logit.
        rank_discount: what the logits of a reference's pairs are lowered by for each reference of the chunk that is more
            similar.
        prefix: keys and values of the prefix, one pair ``[H, b, d]`` for every layer of the model.
        prefix_tokens: per chunk, how many of the last tokens of the prefix it reads as memory, because its prompt lacks them.

    Returns:
        On ``device``. Layers that read nothing are absent. Chunk n holds the pairs that it would hold alone, in the same
        order; only the padding depends on the others.
    """
    angles = [inv_freq] * (max(shape.layers) + 1) if isinstance(inv_freq, torch.Tensor) else inv_freq
    placed = [
        list(zip(ids, arrange(arrangement, [occupied(memories[name]) for name in ids], span), strict=True))
        for ids in references
    ]
    layers = _pairs(placed, memories, shape, dtype, device, angles, temperature, rank_discount)
    if angles is None and (arrangement != "parallel" or (moved is not None and any(moved))):
        raise AssertionError("moving memories needs the RoPE angles")
    shift = torch.tensor(moved, device=device) if moved is not None and any(moved) else None
    if shift is not None and angles is not None:
        for number, layer in layers.items():
            layer.keys = rotate(layer.keys, shift[:, None, None], angles[number])
    if prefix is not None and prefix_tokens is not None and any(prefix_tokens):
        layers = with_prefix(layers, prefix, prefix_tokens, shift, angles, dtype, device)
    return MemoryBatch(layers=layers, references=[list(ids) for ids in references])


def _pairs(
    reads: Sequence[Sequence[_Placed]],
    memories: Mapping[str, Memory],
    shape: MemoryShape,
    dtype: torch.dtype,
    device: torch.device | str,
    angles: Sequence[torch.Tensor] | None,
    temperature: float,
    rank_discount: float,
) -> dict[int, LayerMemory]:
    """What chunks read of their references, before it moves to where the chunk is."""
    distinct = sorted({each for ids in reads for each in ids})
    if not distinct:
        return {}
    number = {each: u for u, each in enumerate(distinct)}
    chosen = [memories[name] for name, _ in distinct]
    counts = np.stack([memory.counts for memory in chosen]).astype(np.int64)  # [u, L, H]
    placement = place(counts, [[number[each] for each in ids] for ids in reads])

    # Converted before they are laid out, since there are fewer of them; laid out layer by layer, since an allocator hands
    # small pieces out again and fetches large ones from the system, page by page.
    index, owners = (torch.from_numpy(x).to(device) for x in (placement.source, placement.owner))
    keys = _joined([memory.keys for memory in chosen], device, dtype)
    if temperature != 1:
        keys = keys / temperature
    shifts = [shift for _, shift in distinct]
    if any(shifts) and angles is not None:
        keys = _shifted(keys, counts, shifts, [angles[layer] for layer in shape.layers])
    values = _joined([memory.values for memory in chosen], device, dtype)
    biases = _joined_biases(chosen, device, dtype)
    lowers = rank_discount != 0 and any(len(ids) > 1 for ids in reads)
    layers: dict[int, LayerMemory] = {}
    for i, (layer, width) in enumerate(zip(shape.layers, placement.widths, strict=True)):
        if width == 0:
            continue
        part, size = slice(*map(int, placement.starts[i : i + 2])), (len(reads), shape.kv_heads, int(width))
        mine, lengths = owners[part].view(size), placement.lengths[i]
        bias = None
        if bool((lengths < width).any()):
            bias = additive(mine >= 0, dtype).unsqueeze(2)
        if biases is not None:
            own = biases.index_select(0, index[part]).view(size).unsqueeze(2)
            bias = own if bias is None else bias + own
        if lowers:
            lowered = (mine.clamp_min(0).to(torch.float32) * -rank_discount).to(dtype).unsqueeze(2)
            bias = lowered if bias is None else bias + lowered
        layers[layer] = LayerMemory(
            keys=keys.index_select(0, index[part]).view(*size, -1),
            values=values.index_select(0, index[part]).view(*size, -1),
            bias=bias,
            owner=mine,
            widths=tuple(lengths.max(axis=0).tolist()),
        )
    return layers


def _joined(parts: Sequence[torch.Tensor], device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values of all memories one after the other, and a row of zeros behind them: ``[p + 1, d]``.

    Memories that lie on one device travel together; of those that lie on several, each by itself, and those that are
    there already not at all.
    """
    zero = parts[0].new_zeros(1, parts[0].shape[1])
    if len({part.device for part in parts}) > 1:
        parts, zero = [part.to(device) for part in parts], zero.to(device)
    return torch.cat([*parts, zero]).to(device, dtype)


def _joined_biases(memories: Sequence[Memory], device: torch.device | str, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to the logits of all memories' pairs, one after the other, and a 0 behind them: ``[p + 1]``; None where
    no memory has any.
    """
    if all(memory.biases is None for memory in memories):
        return None
    parts = [torch.zeros(len(memory.keys)) if memory.biases is None else memory.biases for memory in memories]
    return torch.cat([*(part.to(device, dtype) for part in parts), torch.zeros(1, device=device, dtype=dtype)])


def _shifted(keys: torch.Tensor, counts: np.ndarray, shifts: Sequence[int], angles: Sequence[torch.Tensor]) -> torch.Tensor:
    """Keys ``[p + 1, d]`` as `_joined` gives them, each memory moved by its number of positions.

    ``counts``: ``[u, L, H]``; ``shifts``: u of them; ``angles``: of the L memory layers.
    """
    # Layers that rotate alike and follow one another are turned at once; in most models that is all of them.
    runs = [list(run) for _, run in groupby(range(len(angles)), lambda i: id(angles[i]))]
    sizes = [int(mine[run].sum()) for mine in counts.sum(2) for run in runs]
    turns = [(shift, angles[run[0]]) for shift in shifts for run in runs]
    *parts, padding = keys.split([*sizes, 1])
    # Only differences of positions count, so those before 0 are as good as any.
    turned = [
        rotate(part, torch.tensor(shift, device=keys.device), by) if shift else part
        for part, (shift, by) in zip(parts, turns, strict=True)
    ]
    return torch.cat([*turned, padding])
