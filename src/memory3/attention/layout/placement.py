"""Where every pair goes: index arithmetic, no tensor. One pass for all layers, heads and chunks.

The memories that chunks read lie one after the other, each as layers, heads, pairs. The tensors they are laid out in lie
one after the other, too, each as chunks, heads, pairs padded to the longest head. A placement says for every place of the
second which row of the first it holds.

Symbols: u memories, N chunks, R references of a chunk at most, L memory layers, H KV heads, M_l pairs of the longest head
in layer l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Placement", "place"]


@dataclass(frozen=True)
class Placement:
    """Which row goes where, for all layers.

    Attributes:
        lengths: int64 ``[L, N, H]``: pairs of each head.
        starts: int64 ``[L + 1]``: layer l is ``source[starts[l]:starts[l + 1]]``, ``[N, H, M_l]`` when it is shaped.
        source: int64 ``[starts[L]]``: a row of the memories that lie one after the other; the row behind the last one is
            padding.
        owner: int64 ``[starts[L]]``: which of its chunk's references that row belongs to, -1 where there is padding.
    """

    lengths: np.ndarray
    starts: np.ndarray
    source: np.ndarray
    owner: np.ndarray

    @property
    def widths(self) -> np.ndarray:
        """M_l, int64 ``[L]``."""
        return self.lengths.max(axis=(1, 2))


def place(counts: np.ndarray, reads: Sequence[Sequence[int]]) -> Placement:
    """Place pairs.

    Args:
        counts: int64 ``[u, L, H]``: pairs of each memory's heads.
        reads: N lists, at least one of which is not empty: numbers of the memories that a chunk reads, in order.
    """
    heads = counts.shape[2]
    chunks, most = len(reads), max(map(len, reads))
    grid = np.full((chunks, most), -1)  # [N, R] -> number of the memory
    for n, numbers in enumerate(reads):
        grid[n, : len(numbers)] = numbers

    def by_head(x: np.ndarray) -> np.ndarray:
        """``[N, R, L, H]`` to ``[L, N, H, R]``: the pairs of one head follow one another."""
        return x.transpose(2, 0, 3, 1)

    before = (np.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape)  # rows in front of each head's
    sizes = by_head(np.where(grid[..., None, None] >= 0, counts[grid], 0))
    origins = by_head(before[grid])

    lengths = sizes.sum(-1)
    width = lengths.max(axis=(1, 2))
    starts = np.concatenate([[0], np.cumsum(chunks * heads * width)])
    number = np.arange(chunks * heads).reshape(1, chunks, heads, 1)
    targets = starts[:-1, None, None, None] + number * width[:, None, None, None] + np.cumsum(sizes, -1) - sizes

    repeat = sizes.reshape(-1)
    within = np.arange(repeat.sum()) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    where = np.repeat(targets.reshape(-1), repeat) + within
    source = np.full(int(starts[-1]), int(counts.sum()))
    source[where] = np.repeat(origins.reshape(-1), repeat) + within
    owner = np.full(int(starts[-1]), -1)
    owner[where] = np.repeat(np.broadcast_to(np.arange(most), sizes.shape).reshape(-1), repeat)
    return Placement(lengths, starts, source, owner)
