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

import torch

from memory3.encode.selectors.base import LayerView

__all__ = ["MOST", "fitted_biases", "gram", "watched_products"]

#: Largest bias, both ways: a pair stands for 1/20 to 20 pairs. A byte holds it in steps of 0.024.
MOST = 3.0
#: Turns over all pairs. The weights' last change is then below 1% of them in all heads that were looked at.
_SWEEPS = 40


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
    products = products.float()
    diagonal = products.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12)
    apart = kept.float() - 1  # w - 1: 0 where a pair is kept, -1 where it is not
    slope = (products @ apart.unsqueeze(-1)).squeeze(-1)
    least, most = torch.exp(torch.tensor(-MOST)) - 1, torch.exp(torch.tensor(MOST)) - 1
    for _ in range(_SWEEPS):
        for j in range(kept.shape[-1]):
            best = (apart[..., j] - slope[..., j] / diagonal[..., j]) / (1 + ridge)
            change = (best.clamp(least, most) - apart[..., j]) * kept[..., j]
            apart[..., j] += change
            slope += products[..., j] * change.unsqueeze(-1)
    return torch.log1p(apart.where(kept, torch.zeros_like(apart)))
