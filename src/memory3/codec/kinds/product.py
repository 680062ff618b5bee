"""``product``: the composite quantiser of the paper (arXiv 2407.01178, section 3.3), or another of FAISS
(`memory3.codec.product`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from memory3.codec.base import VectorCodec, VectorCost
from memory3.codec.factory import check_factory, default_factory, needed_vectors
from memory3.codec.registry import register

if TYPE_CHECKING:
    import torch

    from memory3.codec.vectors import Sample, VectorCoder

__all__ = ["Product"]

#: Vectors that a quantiser is trained on. FAISS would like 39 per centroid, 640,000; with 65,000 the squared error of held-out
#: keys is 17% above that with 262,000 (SmolLM2-135M).
_MOST_VECTORS = 262_144


@register
@dataclass(frozen=True)
class Product(VectorCodec):
    """A quantiser of FAISS.

    Attributes:
        named: its factory string, ``""``: the paper's quantiser for the head dimension.
    """

    name: ClassVar[str] = "product"
    form: ClassVar[str] = "product:FACTORY"
    help: ClassVar[str] = (
        "without FACTORY the paper's quantiser, 14 bytes a vector; else that of FAISS, such as RQ14x8, or two, PQ32x8+RQ14x8"
    )
    named: str = ""

    @classmethod
    def parse(cls, options: str) -> Product:
        """The codec of one of FAISS's strings, or without options the default for the head dimension.

        Raises:
            ConfigError: ``options`` are no quantiser that is known here.
        """
        if options:
            check_factory(options)
        return cls(options)

    def factory(self, head_dim: int) -> str:
        """FAISS's string for vectors of so many numbers. ConfigError: there is no default for them."""
        return self.named or default_factory(head_dim)

    def cost(self, head_dim: int) -> VectorCost | None:
        """See `VectorCodec.cost`. Of other quantisers than the paper's, OPQ-Residual2x14-PQ8x10 of 108 bits, costs are not
        known.

        Encoding turns the vector by a full rotation and compares each half with 2^14 coarse centroids and each eighth of what
        is left with 2^10; decoding adds the rows of its ten numbers, which are kept turned back, and its head's, and
        multiplies by the head's widths.
        """
        if self.named:
            return None
        return VectorCost(14, 2 * head_dim**2 + 2 * (2**14 + 2**10) * head_dim, 12 * head_dim)

    def appetite(self, head_dim: int) -> tuple[int, int]:
        """See `VectorCodec.appetite`. FAISS looks at 256 vectors for each row of a table at most."""
        rows = needed_vectors(self.factory(head_dim), head_dim)
        return rows, min(_MOST_VECTORS, 256 * rows)

    def shapes(self, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of one side of a codebook; -1 is any size.

        Args:
            heads: L*H.
            head_dim: d.

        Raises:
            ConfigError: it does not fit the head dimension.
        """
        from memory3.codec.product import ProductCoder

        return ProductCoder.shapes(self.factory(head_dim), heads, head_dim)

    def fit(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The tensors of one side of a codebook, fitted to ``sample``. Their shapes are those that `shapes` says."""
        from memory3.codec.product import ProductCoder

        return ProductCoder.fit(self.factory(sample.vectors.shape[1]), sample)

    def coder(self, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> VectorCoder:
        """What encodes and decodes vectors.

        Args:
            head_dim: numbers of a vector.
            tensors: what `fit` gave.

        Raises:
            ConfigError: it does not fit the head dimension.
        """
        from memory3.codec.product import ProductCoder

        return ProductCoder(self.factory(head_dim), head_dim, tensors)
