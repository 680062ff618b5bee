"""``transform``: each head's vectors on axes of their own, more bits for the axes that matter more
(`memory3.codec.transform`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from memory3.codec.base import VectorCodec, VectorCost
from memory3.codec.registry import register
from memory3.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from memory3.codec.vectors import Sample, VectorCoder

__all__ = ["Transform"]

#: Of one number: what the trellis can do.
_MOST_BITS = 8
_DEFAULT_BITS = 128
_WANTED_VECTORS = 400_000


@register
@dataclass(frozen=True)
class Transform(VectorCodec):
    """Vectors in a number of bits.

    Attributes:
        bits: of a vector, a multiple of 8.
    """

    name: ClassVar[str] = "transform"
    form: ClassVar[str] = "transform:BITS"
    help: ClassVar[str] = (
        f"each head's own axes, so many bits a vector, {_DEFAULT_BITS} by default; two numbers for keys and values, "
        "transform:96+160"
    )
    uses_metric: ClassVar[bool] = True
    bits: int = _DEFAULT_BITS

    @classmethod
    def parse(cls, options: str) -> Transform:
        """The codec with so many bits for a vector, a multiple of 8.

        Raises:
            ConfigError: ``options`` are not such a number.
        """
        bits = int(options or _DEFAULT_BITS) if (options or "0").isdecimal() and len(options) < 8 else 0
        if bits < 8 or bits % 8:
            raise ConfigError(
                f"codec {f'transform:{options}'!r} is unknown: bits of a vector must be a multiple of 8, as in transform:128"
            )
        return cls(bits)

    def _check(self, head_dim: int) -> None:
        """Raise ConfigError unless a vector of so many numbers can have the bits."""
        if self.bits > _MOST_BITS * head_dim:
            raise ConfigError(
                f"codec {f'transform:{self.bits}'!r}: bits of a vector must be a multiple of 8 up to {_MOST_BITS * head_dim}, "
                "as in transform:128"
            )

    def cost(self, head_dim: int) -> VectorCost:
        """See `VectorCodec.cost`: a matrix each way, a mean, and for writing 256 states of a trellis for each number."""
        encode = 2 * head_dim**2 + (2 + 4 * 256) * head_dim
        return VectorCost(self.bits // 8, encode, 2 * head_dim**2 + 2 * head_dim)

    def appetite(self, head_dim: int) -> tuple[int, int]:
        """Vectors that it must be fitted on at least, and those that make it good.

        Raises:
            ConfigError: the head dimension ``head_dim`` does not fit.
        """
        self._check(head_dim)
        return head_dim, _WANTED_VECTORS

    def shapes(self, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of one side of a codebook; -1 is any size.

        Args:
            heads: L*H.
            head_dim: d.

        Raises:
            ConfigError: it does not fit the head dimension.
        """
        from memory3.codec.transform import TransformCoder

        self._check(head_dim)
        return TransformCoder.shapes(heads, head_dim)

    def fit(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The tensors of one side of a codebook, fitted to ``sample``. Their shapes are those that `shapes` says."""
        from memory3.codec.transform import TransformCoder

        return TransformCoder.fit(self.bits, sample)

    def coder(self, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> VectorCoder:
        """What encodes and decodes vectors.

        Args:
            head_dim: numbers of a vector.
            tensors: what `fit` gave.

        Raises:
            ConfigError: it does not fit the head dimension.
        """
        from memory3.codec.transform import TransformCoder

        self._check(head_dim)
        return TransformCoder(self.bits, head_dim, tensors)
