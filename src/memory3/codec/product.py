"""The composite quantiser of the paper (arXiv 2407.01178, section 3.3): vectors of 2 d bytes in 14. Encoded by FAISS, decoded
by gathers. Knows no memory and no file.

One quantiser serves all heads: what heads differ by, their place and widths, is taken off before (`memory3.codec.centring`).
The paper's head dimension is 80: 160 bytes in 14, 11.4 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memory3.codec.centring import CentredCoder, Centring
from memory3.codec.factory import table_shapes
from memory3.codec.quantiser import Quantiser
from memory3.codec.rows import Rows
from memory3.codec.vectors import Sample

__all__ = ["ProductCoder"]


class ProductCoder(CentredCoder):
    """``product`` or ``product:FACTORY``: codes of FAISS, by default 14 bytes a vector."""

    def __init__(self, factory: str, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.centring = Centring.of(tensors)
        self._quantiser = Quantiser.of(factory, head_dim, tensors)
        self.width = self._quantiser.code_size
        self._rows: dict[torch.device, Rows] = {}

    @classmethod
    def shapes(cls, factory: str, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """See `memory3.codec.base.VectorCodec.shapes`. ``factory``: FAISS's string."""
        return cls.centring_shapes(heads, head_dim) | table_shapes(factory, head_dim)

    @classmethod
    def fit(cls, factory: str, sample: Sample) -> dict[str, torch.Tensor]:
        """See `memory3.codec.base.VectorCodec.fit`. ``factory``: FAISS's string."""
        tensors, z = cls.fit_centring(sample)
        return tensors | Quantiser.train(factory, z.numpy()).tensors()

    def _encode(self, z: torch.Tensor) -> np.ndarray:
        return self._quantiser.encode(z.numpy())

    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """See `VectorCoder.decode`. The table is on the device from its first use on."""
        if codes.device not in self._rows:
            self._rows[codes.device] = Rows(self._quantiser.rows(), self._quantiser.starts, self.centring, codes.device)
        return self._rows[codes.device].decode(codes, heads, positions, sizes, dtype)
