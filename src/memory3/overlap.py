"""Overlap of a reference with a text (paper, eq. 6): the measure behind the leak guard of training and the contamination
guard of evaluation.

    overlap(t, r) = max N / |r|   over i_1 < ... < i_N and j_1 < ... < j_N with t[i_n] = r[j_n] and i_N - i_1 <= 2 |r|

the longest common subsequence of the reference r and any stretch of 2 |r| + 1 tokens of the text t, as a share of the
reference.

All stretches are one batch: the subsequence of each is counted by the bit-parallel recurrence of M. Crochemore et al., "A
fast and practical bit-vector algorithm for the longest common subsequence problem" (2001), a bit for each token of the
reference,

    V <- (V + (V & M[t_i])) | (V & ~M[t_i]),      M[c] has the bits j with r[j] = c,      length = zeros of V

so a text of 4,096 tokens against a reference of 128 takes some 260 steps of a few array operations. Knows token ids and
nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["exceeds", "overlap"]

_WORD = 64
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


def overlap(target: Sequence[int] | np.ndarray, reference: Sequence[int] | np.ndarray) -> float:
    """Share of the reference that stands in the target, in order, within a stretch of ``2 |r| + 1`` tokens.

    Args:
        target: token ids ``[T]`` of the text that must not be given away: a training sequence, a question.
        reference: token ids ``[R]`` of the reference that is read.

    Returns:
        0.0 to 1.0; 0.0 where one of them is empty.
    """
    text, wanted = np.asarray(target, dtype=np.int64), np.asarray(reference, dtype=np.int64)
    starts = np.flatnonzero(_bounds(text, wanted) > 0)
    return _longest(text, wanted, starts) / len(wanted) if len(starts) else 0.0


def exceeds(target: Sequence[int] | np.ndarray, reference: Sequence[int] | np.ndarray, threshold: float) -> bool:
    """``overlap(target, reference) > threshold``, fast where a count of shared tokens already says no, which it nearly
    always does.
    """
    text, wanted = np.asarray(target, dtype=np.int64), np.asarray(reference, dtype=np.int64)
    bounds = _bounds(text, wanted)
    starts = np.flatnonzero((bounds > 0) & (bounds > threshold * len(wanted)))
    return bool(len(starts)) and _longest(text, wanted, starts) > threshold * len(wanted)


def _bounds(text: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """int64 ``[T]``: for the stretch starting at each token, at least as much as its longest common subsequence.

    Each distinct token counts as often as it occurs in both. 0 where the first token is not in the reference: a stretch
    that starts later has as much.
    """
    if not len(text) or not len(reference):
        return np.zeros(len(text), dtype=np.int64)
    names, counts = np.unique(reference, return_counts=True)
    place = np.searchsorted(names, text).clip(max=len(names) - 1)
    inside = names[place] == text
    span = 2 * len(reference) + 1
    # The n-th next occurrence of a token adds to a stretch only while n is at most its count in the reference: so an
    # occurrence counts for those starts that lie behind the count-th occurrence before it. One interval of starts per
    # occurrence, summed up by differences.
    gains = np.zeros(len(text) + 1, dtype=np.int64)
    at = np.flatnonzero(inside)
    order = at[np.argsort(place[at], kind="stable")]
    kind = place[order]
    first = np.searchsorted(kind, kind)  # where this token's occurrences begin
    number = np.arange(len(order)) - first
    before = number - counts[kind]
    earliest = np.where(before >= 0, order[np.maximum(first + before, 0)] + 1, 0)
    earliest = np.maximum(earliest, order - span + 1)
    np.add.at(gains, earliest, 1)
    np.add.at(gains, order + 1, -1)
    return np.where(inside, np.cumsum(gains)[:-1], 0)


def _longest(text: np.ndarray, reference: np.ndarray, starts: np.ndarray) -> int:
    """Longest common subsequence of the reference with the stretches that begin at ``starts``."""
    names, place = np.unique(reference, return_inverse=True)
    words = -(-len(reference) // _WORD)
    masks = np.zeros((words, len(names) + 1), dtype=np.uint64)  # the last: tokens that are not in the reference
    position = np.arange(len(reference))
    np.bitwise_or.at(masks, (position // _WORD, place), np.uint64(1) << (position % _WORD).astype(np.uint64))
    found = np.searchsorted(names, text).clip(max=len(names) - 1)
    span = 2 * len(reference) + 1
    # Behind the end of the text nothing matches.
    tokens = np.concatenate([np.where(names[found] == text, found, len(names)), np.full(span, len(names))])
    state = np.full((words, len(starts)), _ONES)
    for step in range(span):
        here = masks[:, tokens[starts + step]]
        carry: np.ndarray | np.uint64 = np.uint64(0)
        for word in range(words):
            old = state[word]
            both = old & here[word]
            total = old + both
            over = total < old
            total += carry
            carry = (over | (total < carry)).astype(np.uint64)
            state[word] = total | (old & ~here[word])
    lengths = np.bitwise_count(~state).sum(axis=0)
    return int(lengths.max())
