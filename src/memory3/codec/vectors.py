"""What codes the keys of a codec, or its values: vectors to some bytes each, and back. Knows no memory and no file.

Imports no torch: a new codec is one file, which defines a coder and imports torch where that computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch


__all__ = ["Sample", "VectorCoder"]


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
        packs_anywhere: does `encode` take vectors on any device? Those that do not are given them on the CPU.
    """

    width: int
    packs_anywhere: ClassVar[bool] = False

    @abstractmethod
    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """Codes of vectors.

        Args:
            vectors: ``[n, d]``, of any dtype.
            heads: int64 ``[n]``: layer * H + head of each, on the CPU.
            positions: int64 ``[n]``: place of each token in its reference, on the CPU.

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
            heads, positions: as `encode` was given them: on the CPU, wherever ``codes`` lie.
            sizes: vectors of each tensor; they add up to n.
            dtype: of the tensors.

        Returns:
            Tensors ``[size, d]`` on the device of ``codes``.
        """
