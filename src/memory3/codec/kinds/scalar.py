"""``int8`` and ``int4``: each channel by itself, in equal steps (`memory3.codec.scalar`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from memory3.codec.base import VectorCodec, VectorCost
from memory3.codec.registry import register

if TYPE_CHECKING:
    import torch

    from memory3.codec.vectors import Sample, VectorCoder

__all__ = ["Int4", "Int8", "Scalar"]

_WANTED_VECTORS = 65_536


@dataclass(frozen=True)
class Scalar(VectorCodec):
    """Numbers of few bits.

    Attributes:
        bits: of a number.
    """

    bits: ClassVar[int]

    def cost(self, head_dim: int) -> VectorCost:
        """What a vector of ``head_dim`` numbers costs: so many bits for each, a mean and a width."""
        return VectorCost(-(-head_dim * self.bits // 8), 2 * head_dim, 2 * head_dim)

    def appetite(self, head_dim: int) -> tuple[int, int]:
        """Vectors that it must be fitted on at least, and those that make it good, whatever ``head_dim``."""
        return 1, _WANTED_VECTORS

    def shapes(self, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of one side of a codebook; -1 is any size.

        Args:
            heads: L*H.
            head_dim: d.
        """
        from memory3.codec.scalar import ScalarCoder

        return ScalarCoder.shapes(heads, head_dim)

    def fit(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The tensors of one side of a codebook, fitted to ``sample``. Their shapes are those that `shapes` says."""
        from memory3.codec.scalar import ScalarCoder

        return ScalarCoder.fit(self.bits, sample)

    def coder(self, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> VectorCoder:
        """What encodes and decodes vectors.

        Args:
            head_dim: numbers of a vector.
            tensors: what `fit` gave.
        """
        from memory3.codec.scalar import ScalarCoder

        return ScalarCoder(self.bits, head_dim, tensors)


@register
@dataclass(frozen=True)
class Int8(Scalar):
    """A byte a number."""

    name: ClassVar[str] = "int8"
    form: ClassVar[str] = "int8"
    help: ClassVar[str] = "a byte a number, each channel in equal steps"
    bits: ClassVar[int] = 8


@register
@dataclass(frozen=True)
class Int4(Scalar):
    """Half a byte a number."""

    name: ClassVar[str] = "int4"
    form: ClassVar[str] = "int4"
    help: ClassVar[str] = "half a byte a number"
    bits: ClassVar[int] = 4
