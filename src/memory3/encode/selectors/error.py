"""Output error: pairs are left out one after the other, each the one that changes least what its head reads while the model
repeats the reference.

`reconstruction` asks of each pair what it drew at most. A head that copies draws 1 for every token, keeps all of them, and the
others keep none. Here a pair counts by what is lost with it, when those before it are lost already:

    E(D) = sum over queries i of the repetition and query heads of the group of  |sum over j in D of a_ij v_j|^2 = 1_D^T K 1_D
    K_jk = sum_i a_ij a_ik  v_j . v_k

a_ij = exp(q_i . k_j * scale - lse_i), as in `reconstruction`. In each head D grows by the pair that adds least; the score is
what it added, or what one before it did, if that was more. So the best pairs of all heads are those that leave the smallest
sum of errors, as far as one after the other finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from memory3.encode.selectors.base import LayerView, Selector, register

if TYPE_CHECKING:
    import torch

__all__ = ["OutputError", "costs", "read_products"]


@register
class OutputError(Selector):
    """What a head no longer reads where a pair is left out; two passes."""

    name: ClassVar[str] = "error"
    help: ClassVar[str] = "what is read otherwise where a pair is left out; two passes"
    repeats: ClassVar[bool] = True

    @classmethod
    def flops(cls, tokens: int, width: int) -> int:
        """See `Selector.flops`: attention, its products and those of the values, and a row of them for every pair."""
        return 3 * super().flops(tokens, width)

    def score(self, view: LayerView) -> torch.Tensor:
        """See `Selector.score`: float32 ``[N, H, S]``."""
        return costs(read_products(view), view.valid)


def read_products(view: LayerView) -> torch.Tensor:
    """K of what is read behind references, float32 ``[N, H, S, S]``; 0 at padding.

    Args:
        view: a layer of the references, with what is read behind them.
    """
    assert view.later_query is not None, "the encoder runs the repetition for selectors that say `repeats`"
    assert view.later_lse is not None
    refs, heads, queries, dim = view.later_query.shape
    kv_heads = view.key.shape[1]
    query = view.later_query.reshape(refs, kv_heads, heads // kv_heads * queries, dim)
    logits = (query * view.scale @ view.key.transpose(-1, -2)).float()
    paid = logits.sub_(view.later_lse.reshape(refs, kv_heads, -1, 1)).exp_() * view.valid[:, None, None]
    value = view.value.float()
    return (paid.transpose(-1, -2) @ paid) * (value @ value.transpose(-1, -2))


def costs(products: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """What each pair adds, or one before it did: float32 ``[N, H, S]`` from K and bool ``[N, S]``."""
    import torch

    refs, heads, tokens, _ = products.shape
    mine = products.reshape(-1, tokens, tokens)
    cost = mine.diagonal(dim1=1, dim2=2).clone()
    cost[~valid[:, None].expand(refs, heads, tokens).reshape(-1, tokens)] = torch.inf  # goes last, and counts for nothing
    rows = torch.arange(len(mine), device=mine.device)
    found, most = torch.zeros_like(cost), cost.new_zeros(len(mine))
    for _ in range(tokens):
        least, token = cost.min(1)
        left = least.isfinite()  # a shorter reference has none left
        most = torch.where(left, torch.maximum(most, least), most)
        found[rows, token] = torch.where(left, most, found[rows, token])
        cost += 2 * mine[rows, token]
        cost[rows, token] = torch.inf
    return found.view(refs, heads, tokens)
