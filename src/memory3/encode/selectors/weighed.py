"""Reconstruction whose heads are weighed: how much of what a repetition looks at an answer will need, head by head.

    s_j = w_h . [f_j ; 1]        f_j: logarithms of what the queries of the repetition pay to token j in the head (`FEATURES`)

Reconstruction compares heads by attention alone. A head that copies pays nearly 1 to every token once, so a few such heads
take most of the budget of a model with few KV heads. The weights are fitted through the model to what answers lose
(`memory3.calibration.weighing`).

Symbols: N references, A query heads, H KV heads, G = A / H, S tokens, T tokens of the repetition, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from memory3.encode.selectors.base import LayerView, Selector, register

if TYPE_CHECKING:
    import torch

__all__ = ["FEATURES", "Weighed", "features"]

#: What is paid to a token: by one query of one query head at most; root of the mean square; by the query heads of the group
#: together at one query at most; on average.
FEATURES = ("most", "root mean square", "group", "mean")
#: Below it nothing is told apart.
_LEAST = 1e-6


@register
class Weighed(Selector):
    """What repeating looks at, weighed head by head by what answers need; two passes.

    Attributes:
        weights: float32 ``[F + 1, H]`` for every memory layer.
    """

    name: ClassVar[str] = "weighed"
    help: ClassVar[str] = "reconstruction, heads weighed by what answers lose; two passes; fitted first"
    repeats: ClassVar[bool] = True
    fitted_as: ClassVar[str] = "weighed"
    fits_budget: ClassVar[bool] = True

    def __init__(self, weights: Mapping[int, torch.Tensor] | None = None) -> None:
        super().__init__(weights)
        self.weights = dict(weights or {})

    @classmethod
    def width(cls, queries: int) -> int:
        """Rows of the weights: F + 1."""
        return len(FEATURES) + 1

    def score(self, view: LayerView) -> torch.Tensor:
        """How much each token of a head will be missed: float32 ``[N, H, S]``, a logarithm."""
        weight = self.weights[view.layer].to(view.key.device)
        return (features(view) * weight[:-1].T[:, None]).sum(-1) + weight[-1][:, None]


def features(view: LayerView) -> torch.Tensor:
    """Logarithms of what the repetition pays to each token: float32 ``[N, H, S, F]``.

    Args:
        view: a layer of references that were repeated.
    """
    import torch

    assert view.later_query is not None, "the encoder runs the repetition for selectors that say `repeats`"
    assert view.later_lse is not None
    refs, heads, tokens, dim = view.later_query.shape
    kv_heads = view.key.shape[1]
    query = view.later_query.reshape(refs, kv_heads, heads // kv_heads, tokens, dim) * view.scale
    lse = view.later_lse.reshape(refs, kv_heads, heads // kv_heads, tokens, 1)
    paid = (torch.matmul(query, view.key[:, :, None].transpose(-1, -2)).float() - lse).exp()  # [N, H, G, T, S]
    counted = lse.isfinite().sum((2, 3)).clamp_min(1)  # [N, H, 1]; padding pays nothing
    found = (
        paid.amax((2, 3)),
        (paid.square().sum((2, 3)) / counted).sqrt(),
        paid.sum(2).amax(2),
        paid.sum((2, 3)) / counted,
    )
    return torch.stack([one.clamp_min(_LEAST).log() for one in found], -1)
