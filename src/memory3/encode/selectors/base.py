"""What a selector sees, and what it must say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

__all__ = ["LayerView", "Selector"]


@dataclass(frozen=True)
class LayerView:
    """One layer of a batch of references while they are written.

    Symbols: N references, S tokens of the longest, A query heads, H KV heads, d head dimension.

    Attributes:
        layer: index in the model.
        query: ``[N, A, S, d]`` after RoPE; positions count from the end of the prefix.
        key: ``[N, H, S, d]`` after RoPE.
        value: ``[N, H, S, d]``.
        lengths: int64 ``[N]``, tokens of each reference; beyond them is padding.
        offset: position of the first token.
        inv_freq: RoPE angles, see `memory3.attention.rotary`.
        scale: factor on attention logits.
        seeds: N numbers that depend on nothing but the reference's tokens.
        later_query: ``[N, A, T, d]`` after RoPE, of what the model reads after the reference, such as the reference once more; None for
            selectors of one pass.
        later_lse: ``[N, A, T]``, log-sum-exp of all logits of those queries; infinite where a query is padding, so that it weighs nothing.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    lengths: torch.Tensor
    offset: int
    inv_freq: torch.Tensor
    scale: float
    seeds: tuple[int, ...]
    later_query: torch.Tensor | None = None
    later_lse: torch.Tensor | None = None

    @property
    def valid(self) -> torch.Tensor:
        """bool ``[N, S]``: False for padding."""
        return torch.arange(self.key.shape[2], device=self.key.device) < self.lengths[:, None]


class Selector:
    """Scores tokens. Higher is kept first; scores of one reference are compared over all its layers and heads."""

    name: ClassVar[str]
    #: Does `score` need the model to repeat the reference (a second pass)?
    repeats: ClassVar[bool] = False

    def score(self, view: LayerView) -> torch.Tensor:
        """float32 ``[N, H, S]``. What stands at padding does not matter."""
        raise AssertionError(f"{type(self).__name__} does not say how it scores")
