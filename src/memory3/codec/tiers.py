"""Tiers: the pairs of a memory in groups, the most important first, so that more bytes go to those that more is read from. Knows no quantiser.

An error in a pair shows in the attention's output in proportion to the attention the pair gets. Those attentions differ by a factor of fifty within a memory of the default
preset, so bits spent alike on all pairs are spent badly: the best allotment gives a pair log2 of its attention more bits per number (reverse water-filling).
A few tiers of fixed sizes come near to it, need no table in the record, and keep records constant in size. Pairs that are not kept at all are the last tier.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memory3.config import codec_tiers
from memory3.errors import ConfigError, InputError
from memory3.values import Memory, MemoryShape

__all__ = ["joined", "split", "tier_sizes"]


def tier_sizes(codec: str, pairs: int) -> list[int]:
    """Pairs of each tier of ``codec`` in a memory of at most ``pairs``. ConfigError: the tiers before the last are all of them, or more."""
    *first, _ = (size for size, _ in codec_tiers(codec))
    if sum(first) >= pairs:
        raise ConfigError(
            f"codec {codec!r} names {sum(first)} pairs before its last tier, a memory has {pairs}: name fewer, or keep more"
        )
    return [*first, pairs - sum(first)]


def split(memory: Memory, sizes: Sequence[int]) -> list[Memory]:
    """The memory's pairs in tiers of ``sizes``; the last ones get less, or none, where there are fewer pairs. Among equals the earlier pair comes first.

    Raises:
        InputError: nothing is known of the pairs' importance.
    """
    if len(sizes) == 1:
        return [memory]
    if memory.importance is None:
        raise InputError(
            "a codec of several tiers needs the scores that pairs were chosen by, and this memory has none: encode its text with a selector and a budget"
        )
    order = np.argsort(-memory.importance, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    tier_of = np.searchsorted(np.cumsum(sizes), rank, side="right")
    return [_part(memory, np.flatnonzero(tier_of == tier)) for tier in range(len(sizes))]


def _part(memory: Memory, pairs: np.ndarray) -> Memory:
    heads = np.repeat(np.arange(memory.counts.size), memory.counts.reshape(-1))[pairs]
    counts = np.bincount(heads, minlength=memory.counts.size).astype(np.uint16).reshape(memory.counts.shape)
    chosen = torch.from_numpy(pairs)
    importance = None if memory.importance is None else memory.importance[pairs]
    return Memory(counts, memory.positions[pairs], memory.keys[chosen], memory.values[chosen], importance)


def joined(tiers: Sequence[Memory], shape: MemoryShape) -> Memory:
    """One memory of the pairs of several, in order of layer, head and position."""
    if len(tiers) == 1:
        return tiers[0]
    heads = np.concatenate([np.repeat(np.arange(shape.heads), tier.counts.reshape(-1)) for tier in tiers])
    positions = np.concatenate([tier.positions for tier in tiers])
    order = np.argsort(heads * (1 << 16) + positions, kind="stable")
    keys, values = (torch.cat([getattr(tier, side) for tier in tiers]) for side in ("keys", "values"))
    at = torch.from_numpy(order).to(keys.device)
    counts = np.stack([tier.counts for tier in tiers]).sum(axis=0, dtype=np.uint16)
    return Memory(counts, positions[order], keys.index_select(0, at), values.index_select(0, at))
