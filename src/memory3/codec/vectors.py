"""What codes the keys of a codec, or its values: vectors to some bytes each, and back. Knows no memory and no file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memory3.codec.centring import Centring

__all__ = ["VectorCoder"]


class VectorCoder(ABC):
    """Codes vectors that were brought to one place and width first (`memory3.codec.centring`).

    Symbols: n vectors, c bytes of a coded vector, d head dimension.

    Attributes:
        centring: of all heads.
        width: c.
    """

    centring: Centring
    width: int

    @abstractmethod
    def __init__(self, name: str, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """From the tensors of one side of a code book; ``name`` is that side's part of the codec's name."""

    @classmethod
    @abstractmethod
    def shapes(cls, name: str, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors it needs beside the centring's. ConfigError: the name does not fit the head dimension."""

    @classmethod
    @abstractmethod
    def appetite(cls, name: str, head_dim: int) -> tuple[int, int]:
        """Vectors that it must be fitted on at least, and those that make it good."""

    @classmethod
    @abstractmethod
    def fit(cls, name: str, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those tensors, fitted to centred vectors float32 ``[n, d]``."""

    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """Codes uint8 ``[n, c]`` of vectors ``[n, d]`` of ``heads`` at ``positions``, int64 ``[n]`` both."""
        return self._encode(self.centring.centred(vectors, heads, positions))

    @abstractmethod
    def _encode(self, z: torch.Tensor) -> np.ndarray:
        """Codes of centred vectors."""

    @abstractmethod
    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Vectors of ``dtype`` in tensors of their own ``[size, d]``, all on the device of ``codes``, uint8 ``[n, c]``.

        ``heads`` and ``positions`` are int64 ``[n]``; ``sizes`` add up to n.
        """
