"""The composite quantiser of the paper (section 3.3): vectors of 2 d bytes in 14. Encoded by FAISS, decoded by gathers. Knows no memory and no file.

One quantiser serves all heads: what heads differ by, their place and widths, is taken off before (`memory3.codec.centring`). The paper's head dimension is 80:
160 bytes in 14, 11.4 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memory3.codec.centring import Centring
from memory3.codec.quantiser import Quantiser, default_factory
from memory3.codec.rows import Rows
from memory3.codec.vectors import CentredCoder

__all__ = ["ProductCoder"]

#: Vectors that a quantiser is trained on. FAISS would like 39 per centroid, 640,000; with 65,000 the squared error of held-out keys is 17% above that
#: with 262,000 (SmolLM2-135M).
_MOST_VECTORS = 262_144


class ProductCoder(CentredCoder):
    """``product`` or ``product:FACTORY``: codes of FAISS, by default 14 bytes a vector."""

    def __init__(self, name: str, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.centring = Centring.of(tensors)
        self._quantiser = Quantiser.of(_factory(name, head_dim), head_dim, tensors)
        self.width = self._quantiser.code_size
        self._rows: dict[torch.device, Rows] = {}

    @classmethod
    def shared_shapes(cls, name: str, head_dim: int) -> dict[str, tuple[int, ...]]:
        """See `CentredCoder.shared_shapes`."""
        return Quantiser.shapes(_factory(name, head_dim), head_dim)

    @classmethod
    def appetite(cls, name: str, head_dim: int) -> tuple[int, int]:
        """See `VectorCoder.appetite`. FAISS looks at 256 vectors for each row of a table at most."""
        rows = Quantiser.needed(_factory(name, head_dim), head_dim)
        return rows, min(_MOST_VECTORS, 256 * rows)

    @classmethod
    def fit_shared(cls, name: str, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `CentredCoder.fit_shared`."""
        return Quantiser.train(_factory(name, z.shape[1]), z.numpy()).tensors()

    def _encode(self, z: torch.Tensor) -> np.ndarray:
        return self._quantiser.encode(z.numpy())

    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """See `VectorCoder.decode`. The table is on the device from its first use on."""
        if codes.device not in self._rows:
            self._rows[codes.device] = Rows(self._quantiser.rows(), self._quantiser.starts, self.centring, codes.device)
        return self._rows[codes.device].decode(codes, heads, positions, sizes, dtype)


def _factory(name: str, head_dim: int) -> str:
    """FAISS's string in ``product:FACTORY``."""
    return name.partition(":")[2] or default_factory(head_dim)
