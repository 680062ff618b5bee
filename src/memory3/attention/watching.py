"""Which heads looked at which pairs of which references: the attention of an answer's tokens, pair by pair.

Citations add attention up over heads and pairs. A `Watch` keeps it apart, for one request that asks for it
(`memory3.interpret.explaining`). It is computed from the queries that a `memory3.attention.reading.Reading` keeps anyway,
when these are counted; the forward passes do nothing more.

Symbols: T tokens, A query heads, H KV heads, M pairs of the longest head, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memory3.types import LayerMemory, Memory, MemoryBatch

__all__ = ["LayerLooks", "Stretch", "Watch", "pair_mass"]


@dataclass(frozen=True)
class LayerLooks:
    """What tokens looked at in one layer.

    Attributes:
        weights: float32 ``[T, A, M]``: attention to each pair, of a softmax over all memories and the context.
        owner: int64 ``[H, M]``: index into `Stretch.references`; -1 for the prefix and for padding.
        positions: int64 ``[H, M]``: place of the pair's token in its reference, from 0; -1 where there is no owner.
    """

    weights: np.ndarray
    owner: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Stretch:
    """Tokens of an answer that read the same references.

    Attributes:
        references: ids, most similar first.
        layers: by layer index of the model; layers that read nothing are absent.
        tokens: T, how many there are. The query that counts for a token is that of the token before it, which chose it.
    """

    references: tuple[str, ...]
    layers: Mapping[int, LayerLooks]
    tokens: int


class Watch:
    """Who looked where, of one request.

    Attributes:
        stretches: in the order of the answer's tokens.
        memories: those that were read, by reference id, without their keys and values.
    """

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        self.memories: dict[str, Memory] = {}

    def know(self, memories: Mapping[str, Memory]) -> None:
        """Memories that were laid out: they say which token a pair is of."""
        for name, memory in memories.items():
            if name not in self.memories:
                nothing = memory.keys.new_zeros(0, memory.keys.shape[1])
                self.memories[name] = Memory(memory.counts, memory.positions, nothing, nothing)

    def take(
        self,
        seen: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
        batch: MemoryBatch,
        shape_layers: Sequence[int],
        scale: float,
    ) -> None:
        """Tokens have looked.

        Args:
            seen: of each layer the queries ``[1, A, T, d]`` and the lse ``[1, A, T]`` over context and memory together.
            batch: the one chunk that they read.
            shape_layers: numbers of the memory layers, as `Memory.counts` has them in rows.
            scale: what scores were multiplied with.
        """
        if not seen:  # since it was told last
            return
        (references,) = batch.references
        tokens = max(query.shape[2] for query, _ in seen.values())
        rows, layers = {layer: row for row, layer in enumerate(shape_layers)}, {}
        for layer, (query, lse) in sorted(seen.items()):
            if layer not in rows:  # it reads nothing but the prefix
                continue
            memory = batch.layers[layer]
            owner = memory.owner[0].cpu().numpy()
            positions = self._positions(owner, references, rows[layer])
            layers[layer] = LayerLooks(pair_mass(query, lse, memory, scale)[0].cpu().numpy(), owner, positions)
        self.stretches.append(Stretch(tuple(references), layers, tokens))

    def _positions(self, owner: np.ndarray, references: Sequence[str], row: int) -> np.ndarray:
        """``[H, M]``: pairs of a head lie reference by reference, each in the order of its memory."""
        found = np.full(owner.shape, -1)
        for head in range(owner.shape[0]):
            for number, name in enumerate(references):
                memory = self.memories[name]
                flat = row * owner.shape[0] + head
                start = int(memory.counts.reshape(-1)[:flat].sum(dtype=np.int64))
                end = start + int(memory.counts[row, head])
                found[head, owner[head] == number] = memory.positions[start:end]
        return found


def pair_mass(query: torch.Tensor, lse: torch.Tensor, memory: LayerMemory, scale: float) -> torch.Tensor:
    """Attention that each query paid to each pair.

    Args:
        query: ``[N, A, T, d]``, tokens of each chunk.
        lse: ``[N, A, T]`` over context and memory together, as `memory3.attention.attend` returns it.
        memory: what the chunks read.
        scale: factor on the logits.

    Returns:
        float32 ``[N, T, A, M]``: softmax weights; 0 at padding.
    """
    chunks, kv_heads, pairs, dim = memory.keys.shape
    heads, length = query.shape[1:3]
    grouped = query.reshape(chunks, kv_heads, -1, dim)
    scores = torch.matmul(grouped, memory.keys.to(query.dtype).transpose(-1, -2)).float() * scale
    if memory.bias is not None:
        scores = scores + memory.bias
    weights = (scores - lse.reshape(chunks, kv_heads, -1, 1)).exp()
    return weights.view(chunks, heads, length, pairs).transpose(1, 2)
