"""How many pairs each kept pair stands for, so that what is kept draws the attention that all pairs drew.

Where pairs are left out, attention that went to them goes elsewhere: to the prompt, or to whatever is kept. A bias b_j on
the logits of each kept pair gives it back. Weights w_j = exp(b_j) are those of least squares that are not negative, over the
queries i that are watched (Zweiger et al. 2026, "Fast KV compaction via attention matching", arXiv 2602.16284):

    min over w >= 0 of  sum_i (sum_j in kept a_ij w_j - sum_j a_ij)^2  +  r sum_j K_jj (w_j - 1)^2

a_ij = exp(q_i . k_j * scale - lse_i) is the attention that query i paid when it saw everything, K = sum_i a_i a_i^T. All that
is needed of the queries is K: the first sum is (w - 1)^T K (w - 1), with w_j = 0 where pair j is left out. Where everything is
kept, w = 1 and the bias is 0. The second sum holds a weight near 1 where the queries do not tell; without it (r = 0) it is
the paper's problem.

Symbols: H KV heads, G query heads of each, T queries, S tokens.
"""

from __future__ import annotations

import math

import torch

from memory3.encode.selectors.base import LayerView

__all__ = ["MOST", "fitted_biases", "gram", "watched_products"]

#: Largest bias, both ways: a pair stands for 1/20 to 20 pairs. A byte holds it in steps of 0.024.
MOST = 3.0
#: Bounds of a weight, less 1.
_LEAST, _GREATEST = math.exp(-MOST) - 1, math.exp(MOST) - 1
#: Turns over all pairs at most, and the largest change of a weight in the last one.
_SWEEPS, _ENOUGH = 40, 1e-3


def gram(attention: torch.Tensor) -> torch.Tensor:
    """K, products of what every two pairs drew, summed over queries: ``[..., H, S, S]``.

    Args:
        attention: a, ``[..., H, G, T, S]``.
    """
    rows = attention.flatten(-3, -2)
    return rows.transpose(-1, -2) @ rows


def watched_products(view: LayerView) -> torch.Tensor:
    """K of what is read behind references, float32 ``[N, H, S, S]``; 0 at padding.

    Args:
        view: a layer of the references, with what is read behind them.
    """
    assert view.later_query is not None
    assert view.later_lse is not None
    refs, heads, queries, dim = view.later_query.shape
    kv_heads = view.key.shape[1]
    query = view.later_query.reshape(refs, kv_heads, heads // kv_heads, queries, dim)
    logits = (query * view.scale @ view.key.unsqueeze(2).transpose(-1, -2)).float()
    attention = logits.sub_(view.later_lse.reshape(refs, kv_heads, -1, queries, 1)).exp_()
    return gram(attention * view.valid[:, None, None, None])


def fitted_biases(products: torch.Tensor, kept: torch.Tensor, ridge: float = 0.1) -> torch.Tensor:
    """Biases of the kept pairs, float32 ``[..., S]``, from -`MOST` to `MOST`; 0 where a pair is left out.

    Coordinate descent: a weight at a time, of all heads at once, is moved to where the sum is least.

    Args:
        products: K, ``[..., S, S]``.
        kept: bool ``[..., S]``.
        ridge: r.
    """
    tokens = kept.shape[-1]
    mine = kept.reshape(-1, tokens)
    counts, order = mine.sum(1).sort(descending=True, stable=True)
    # Of each head what it keeps, in front of what it does not; heads that keep most first, so that those which have a pair j
    # are the first ones.
    most = int(counts[0]) if len(counts) else 0
    places = mine[order].to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    whole = products.reshape(-1, tokens, tokens)[order].float()
    slope = (whole @ (mine[order].float() - 1).unsqueeze(-1)).squeeze(-1).gather(1, places)
    some = whole.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens))
    some = some.gather(2, places.unsqueeze(1).expand(-1, most, -1))
    diagonal = some.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
    apart = torch.zeros_like(slope)  # w - 1
    having = [int((counts > j).sum()) for j in range(most)]
    for _ in range(_SWEEPS):
        before = apart.clone()
        for j, n in enumerate(having):
            best = (apart[:n, j] - slope[:n, j] / diagonal[:n, j]) / (1 + ridge)
            change = best.clamp(_LEAST, _GREATEST) - apart[:n, j]
            apart[:n, j] += change
            slope[:n] += some[:n, j] * change.unsqueeze(-1)
        if torch.allclose(apart, before, rtol=0, atol=_ENOUGH):
            break
    found = torch.zeros(mine.shape, device=kept.device)
    found[order] = torch.zeros_like(found).scatter(1, places, torch.log1p(apart))
    return found.view(kept.shape)
