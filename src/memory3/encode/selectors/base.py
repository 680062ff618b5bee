"""What a selector sees, and what it must say. Imports torch no sooner than it must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from memory3.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["SELECTORS", "LayerView", "Selector", "register"]


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
        later_query: ``[N, A, T, d]`` after RoPE, of what the model reads after the reference, such as the reference once more;
            None for selectors of one pass.
        later_lse: ``[N, A, T]``, log-sum-exp of all logits of those queries; infinite where a query is padding, so that it
            weighs nothing.
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
        import torch

        return torch.arange(self.key.shape[2], device=self.key.device) < self.lengths[:, None]


class Selector:
    """Scores tokens. Higher is kept first; scores of one reference are compared over all its layers and heads.

    Attributes:
        name: as `memory3.config.MemoryConfig.selector` says it.
        help: half a sentence on what it does, without its name.
        repeats: does `score` need the model to repeat the reference (a second pass)?
        fitted_as: what must be fitted to the model before it is used, by the name it is kept under; empty: nothing. It is made
            of what was fitted.
        fits_budget: is what was fitted right for one budget alone?
    """

    name: ClassVar[str]
    help: ClassVar[str] = ""
    repeats: ClassVar[bool] = False
    fitted_as: ClassVar[str] = ""
    fits_budget: ClassVar[bool] = False

    def __init__(self, weights: Mapping[int, torch.Tensor] | None = None) -> None:
        """``weights``: what was fitted, by layer of the model, see `memory3.encode.selector_weights`; of selectors that are
        fitted.
        """

    @classmethod
    def width(cls, queries: int) -> int:
        """Rows of what was fitted, for each layer and KV head.

        Args:
            queries: A d, numbers of all query heads.
        """
        raise AssertionError(f"{cls.__name__} is not fitted")

    @classmethod
    def flops(cls, tokens: int, width: int) -> int:
        """FLOPs of `score` in one layer for a reference.

        Args:
            tokens: of the reference, S.
            width: A d, numbers of all query heads.

        Returns:
            By default those of a product of all queries and keys, ``2 S^2 A d``.
        """
        return 2 * tokens**2 * width

    def score(self, view: LayerView) -> torch.Tensor:
        """How important tokens are: float32 ``[N, H, S]``. What stands at padding does not matter.

        Args:
            view: a layer of the references.
        """
        raise AssertionError(f"{type(self).__name__} does not say how it scores")


_S = TypeVar("_S", bound=type[Selector])

#: By name, as files of this folder register them.
SELECTORS: dict[str, type[Selector]] = {}


def register(kind: _S) -> _S:
    """Make a selector known by its ``name``. A decorator of the class.

    Raises:
        ConfigError: another has that name.
    """
    if SELECTORS.get(kind.name, kind) is not kind:
        raise ConfigError(f"there is a selector {kind.name!r} already: choose another name")
    SELECTORS[kind.name] = kind
    return kind
