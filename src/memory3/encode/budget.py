"""From scores to kept pairs: the budget is spent on the best tokens.

``uniform``: the best k tokens of every head. ``adaptive``: the best pairs over all layers, heads and tokens of a reference at
once, so heads keep different numbers of tokens, possibly none.
"""

from __future__ import annotations

import torch

from memory3.config import Budget

__all__ = ["choose"]


def choose(scores: torch.Tensor, lengths: torch.Tensor, budget: Budget, reference_length: int) -> torch.Tensor:
    """Which pairs are kept.

    Args:
        scores: float32 ``[N, L, H, S]``; what stands at padding is ignored.
        lengths: int64 ``[N]``, tokens of each reference, at most S.
        budget: how many.
        reference_length: tokens of a full reference; the adaptive budget is a fraction of it, not of the actual length, so
            that records are constant in size and short references keep more of themselves.

    Returns:
        bool ``[N, L, H, S]``. Never True at padding. Ties go to the earlier layer, head and token.
    """
    refs, layers, heads, tokens = scores.shape
    valid = (torch.arange(tokens, device=scores.device) < lengths[:, None])[:, None, None, :].expand_as(scores)
    ranked = scores.masked_fill(~valid, -torch.inf)
    per_head = budget.tokens_per_head(reference_length)
    if per_head is not None:
        if per_head >= tokens:
            return valid.clone()
        return _best(ranked.reshape(-1, tokens), per_head).view_as(valid) & valid
    pairs = min(budget.pairs(layers * heads, reference_length), layers * heads * tokens)
    return _best(ranked.reshape(refs, -1), pairs).view_as(valid) & valid


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """bool like ``scores`` ``[n, m]``: the ``count`` largest of each row, the earlier first among equals."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
