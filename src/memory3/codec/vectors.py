"""What codes the keys of a codec, or its values: vectors to some bytes each, and back. Knows no memory and no file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memory3.codec.centring import Centring

__all__ = ["CentredCoder", "Sample", "VectorCoder"]


@dataclass(frozen=True)
class Sample:
    """Vectors that a coder is fitted to: keys, or values.

    Attributes:
        vectors: ``[n, d]``.
        heads: int64 ``[n]``: layer * H + head of each.
        positions: int64 ``[n]``: place of each token in its reference.
        number: L*H.
        angles: ``[r/2]``, RoPE's angle per position, for keys; None: vectors are not rotated.
        metric: float32 ``[L*H, d, d]``: an error e in a vector of head h costs ``e^T metric[h] e``, in the coordinates that
            the rotation by -position leads to; None: its squared length.
    """

    vectors: torch.Tensor
    heads: torch.Tensor
    positions: torch.Tensor
    number: int
    angles: torch.Tensor | None = None
    metric: torch.Tensor | None = None


class VectorCoder(ABC):
    """Codes vectors: a `memory3.codec.base.VectorCodec` that was fitted.

    Symbols: n vectors, at least one, c bytes of a coded vector, d head dimension.

    Attributes:
        width: c.
    """

    width: int

    @abstractmethod
    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """Codes of vectors.

        Args:
            vectors: ``[n, d]``, of any dtype.
            heads: int64 ``[n]``: layer * H + head of each.
            positions: int64 ``[n]``: place of each token in its reference.

        Returns:
            uint8 ``[n, c]``.
        """

    @abstractmethod
    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The vectors that codes stand for, cut into tensors of their own. Any code must stand for finite numbers.

        Args:
            codes: uint8 ``[n, c]``.
            heads, positions: as `encode` was given them, all on the device of ``codes``.
            sizes: vectors of each tensor; they add up to n.
            dtype: of the tensors.

        Returns:
            Tensors ``[size, d]`` on the device of ``codes``.
        """


class CentredCoder(VectorCoder):
    """Brings vectors to one place and width first (`memory3.codec.centring`), so that heads can share what codes them."""

    centring: Centring

    @staticmethod
    def centring_shapes(heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Of `Centring.tensors`; -1 is any size."""
        return {"mean": (heads, head_dim), "scale": (heads, head_dim), "angles": (-1,)}

    @staticmethod
    def fit_centring(sample: Sample) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Those tensors, and the sample's vectors centred, float32 ``[n, d]``. The metric is not heeded."""
        centring = Centring.fit(sample.vectors, sample.heads, sample.positions, sample.number, sample.angles)
        return centring.tensors(), centring.centred(sample.vectors, sample.heads, sample.positions)

    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """See `VectorCoder.encode`."""
        return self._encode(self.centring.centred(vectors, heads, positions))

    @abstractmethod
    def _encode(self, z: torch.Tensor) -> np.ndarray:
        """Codes of centred vectors."""
