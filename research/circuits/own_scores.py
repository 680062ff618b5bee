"""How well a passage answers a question by one attention head: the question's queries against the passage's keys.

Queries and keys come without their rotation (`memory3.attention.rotary`), so each can be turned to wherever it is wanted.
A kind of score (`KINDS`) says where they lie and how they are compared:

    placed   at the places they have when a memory is read: the model's own attention logits, q k / sqrt(d)
    free     all at one place, so that distance does not count
    cosine   free, minus the mean query and the mean key of the head, by the cosine
    pooled   as cosine, of the mean over the question's tokens and the mean over the passage's: one vector a passage

The first three take the best token of the passage for each token of the question, and the mean over these (as ColBERT,
O. Khattab and M. Zaharia, arXiv 2004.12832, does it with an encoder made for it).

To take the mean key off the keys alone would change nothing: it lowers the logits of a query by one number for all passages.

Symbols: A query heads, H KV heads, T tokens of all questions, N passages, S tokens of the longest, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memory3.attention.rotary import rotate

__all__ = ["KINDS", "best_tokens", "head_scores", "mean_reciprocal_rank", "ranks", "standardised"]

KINDS = ("placed", "free", "cosine", "pooled")
#: Logits that are computed at once, for one head.
_AT_ONCE = 1 << 24


def best_tokens(query: torch.Tensor, keys: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The highest product of each query with a token of each passage: float32 ``[T, N]``.

    Args:
        query: float32 ``[T, d]``.
        keys: float32 ``[N, S, d]``.
        lengths: int64 ``[N]``, tokens of each passage; beyond them is padding.
    """
    passages, span, _ = keys.shape
    padding = torch.arange(span) >= lengths[:, None]
    parts = []
    step = max(1, _AT_ONCE // (passages * span))
    for start in range(0, len(query), step):
        logits = (query[start : start + step] @ keys.flatten(0, 1).T).view(-1, passages, span)
        parts.append(logits.masked_fill_(padding, -torch.inf).amax(-1))
    return torch.cat(parts)


def head_scores(
    kind: str,
    query: torch.Tensor,
    places: torch.Tensor,
    owner: torch.Tensor,
    weights: torch.Tensor,
    means: torch.Tensor,
    keys: torch.Tensor,
    lengths: torch.Tensor,
    inv_freq: torch.Tensor,
    heads: Sequence[int],
    group: int,
    first: int,
) -> torch.Tensor:
    """Scores of every passage for every question by some heads of a layer: float32 ``[heads, W, questions, N]``.

    Args:
        kind: one of `KINDS`.
        query: float32 ``[A, T, d]``, of all questions one behind the other, without rotation.
        places: int64 ``[T]``, where each lies when memories are read.
        owner: int64 ``[T]``, the number of its question, in order.
        weights: float32 ``[W, T]``, how much each counts in its question, in W ways; they add up to 1 in each question.
        means: float32 ``[A, T, d]``, what cosines take off the queries.
        keys: float32 ``[N, H, S, d]``, without rotation.
        lengths: int64 ``[N]``.
        inv_freq: RoPE's angles.
        heads: query heads.
        group: query heads of a KV head.
        first: place of a passage's first token.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
    questions, span = int(owner.max()) + 1, keys.shape[2]
    inside = (torch.arange(span) < lengths[:, None]).float()
    found = []
    for head in heads:
        q, k = query[head], keys[:, head // group]
        if kind == "placed":
            q, k = rotate(q, places, inv_freq), rotate(k, torch.arange(first, first + span), inv_freq)
        if kind in ("cosine", "pooled"):
            q = q - means[head]
            k = k - (k * inside[..., None]).sum((0, 1)) / inside.sum()
        if kind == "pooled":
            q = _summed(q, owner, weights, questions)
            k = (k * inside[..., None]).sum(1) / lengths[:, None]
        if kind in ("cosine", "pooled"):
            q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
        if kind == "pooled":
            found.append(q @ k.T)
            continue
        scale = 1.0 if kind == "cosine" else q.shape[1] ** -0.5
        best = best_tokens(q * scale, k, lengths)
        found.append(_summed(best, owner, weights, questions))
    return torch.stack(found)


def _summed(rows: torch.Tensor, owner: torch.Tensor, weights: torch.Tensor, questions: int) -> torch.Tensor:
    """Rows ``[T, x]`` of each question, summed by each of the weights: ``[W, questions, x]``."""
    return torch.stack([rows.new_zeros(questions, rows.shape[1]).index_add_(0, owner, rows * w[:, None]) for w in weights])


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores ``[..., N]`` minus their mean over the passages, by their standard deviation."""
    spread = scores.std(-1, keepdims=True)
    result: np.ndarray = (scores - scores.mean(-1, keepdims=True)) / np.maximum(spread, 1e-9)
    return result


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The rank of the best right passage of each question, from 1: ``[..., questions]``. Of equals the others come first.

    Args:
        scores: ``[..., questions, N]``.
        right: bool ``[questions, N]``, at least one in each.
    """
    best = np.where(right, scores, -np.inf).max(-1, keepdims=True)
    better: np.ndarray = (~(scores < best) & ~right).sum(-1) + 1  # what is no number counts against it
    return better


def mean_reciprocal_rank(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of `ranks`, over the questions."""
    found: np.ndarray = (1.0 / ranks(scores, right)).mean(-1)
    return found
