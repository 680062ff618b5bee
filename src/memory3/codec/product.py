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
        """Names and shapes of the tensors that the coder is made of; -1 is any size.

        Args:
            factory: FAISS's string.
            heads: L*H.
            head_dim: d.
        """
        return cls.centring_shapes(heads, head_dim) | table_shapes(factory, head_dim)

    @classmethod
    def fit(cls, factory: str, sample: Sample) -> dict[str, torch.Tensor]:
        """Tensors of the coder, fitted: each head's mean and widths, and the quantiser's tables.

        Args:
            factory: FAISS's string.
            sample: vectors to fit to.
        """
        tensors, z = cls.fit_centring(sample)
        return tensors | Quantiser.train(factory, z.numpy()).tensors()

    def _encode(self, z: torch.Tensor) -> np.ndarray:
        return self._quantiser.encode(z.numpy())

    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The vectors that codes stand for, as one tensor ``[p, d]`` per memory.

        The table is on the device from its first use on.

        Args:
            codes: uint8 ``[p, bytes of a vector]``, on the device where vectors are wanted.
            heads: int64 ``[p]`` on the CPU: the memory layer and KV head of each, l*H + h.
            positions: int64 ``[p]`` on the CPU: in the reference.
            sizes: vectors of each memory.
            dtype: of the vectors.
        """
        if codes.device not in self._rows:
            self._rows[codes.device] = Rows(self._quantiser.rows(), self._quantiser.starts, self.centring, codes.device)
        return self._rows[codes.device].decode(codes, heads, positions, sizes, dtype)
