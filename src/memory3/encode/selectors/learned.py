"""A learned selector: the attention that real questions paid, predicted from the token's own query by one linear map.

    s_j = w_h . [q_j ; 1]        q_j: queries of all heads of the layer at token j, before RoPE

The queries of a layer are a linear image of its hidden state, and the maps are those of least squares
(`memory3.calibration.selector`), so this is a linear read-out of the hidden state. One pass writes, where reconstruction takes
two.

Symbols: A query heads, H KV heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from memory3.encode.selectors.base import LayerView, Selector, register

if TYPE_CHECKING:
    import torch

__all__ = ["Learned", "plain_queries"]


@register
class Learned(Selector):
    """Attention predicted from what the token asks for itself; one pass.

    Attributes:
        weights: float32 ``[A d + 1, H]`` for every memory layer.
    """

    name: ClassVar[str] = "learned"
    help: ClassVar[str] = "what questions look at, from the text alone in one pass; fitted first"
    fitted_as: ClassVar[str] = "learned"

    def __init__(self, weights: Mapping[int, torch.Tensor] | None = None) -> None:
        super().__init__(weights)
        self.weights = dict(weights or {})

    @classmethod
    def width(cls, queries: int) -> int:
        """Rows of the weights: A d + 1."""
        return queries + 1

    def score(self, view: LayerView) -> torch.Tensor:
        """The attention that questions are predicted to pay, from each token's own query: float32 ``[N, H, S]``."""
        query = plain_queries(view)
        weight = self.weights[view.layer].to(query.device)
        return (query @ weight[:-1] + weight[-1]).transpose(1, 2)


def plain_queries(view: LayerView) -> torch.Tensor:
    """Queries of all heads side by side, turned back by their positions: float32 ``[N, S, A d]``."""
    import torch

    from memory3.attention.rotary import rotate

    back = -(torch.arange(view.query.shape[2], device=view.query.device) + view.offset)
    return rotate(view.query, back, view.inv_freq).transpose(1, 2).flatten(2).float()
