"""What codes the keys of a codec, or its values: vectors to some bytes each, and back. Knows no memory and no file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

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
        metric: float32 ``[L*H, d, d]``: an error e in a vector of head h costs ``e^T metric[h] e``, in the coordinates that the rotation by
            -position leads to; None: its squared length.
    """

    vectors: torch.Tensor
    heads: torch.Tensor
    positions: torch.Tensor
    number: int
    angles: torch.Tensor | None = None
    metric: torch.Tensor | None = None


class VectorCoder(ABC):
    """Codes vectors.

    Symbols: n vectors, c bytes of a coded vector, d head dimension.

    Attributes:
        width: c.
        uses_metric: is it fitted to `Sample.metric`?
    """

    width: int
    uses_metric: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, name: str, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """From the tensors of one side of a code book; ``name`` is that side's part of the codec's name."""

    @classmethod
    @abstractmethod
    def shapes(cls, name: str, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Shapes of those tensors, all float32; -1 is any size. ConfigError: the name does not fit the head dimension."""

    @classmethod
    @abstractmethod
    def appetite(cls, name: str, head_dim: int) -> tuple[int, int]:
        """Vectors that it must be fitted on at least, and those that make it good."""

    @classmethod
    @abstractmethod
    def fit(cls, name: str, sample: Sample) -> dict[str, torch.Tensor]:
        """Those tensors."""

    @abstractmethod
    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """Codes uint8 ``[n, c]`` of vectors ``[n, d]`` of ``heads`` at ``positions``, int64 ``[n]`` both."""

    @abstractmethod
    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Vectors of ``dtype`` in tensors of their own ``[size, d]``, all on the device of ``codes``, uint8 ``[n, c]``.

        ``heads`` and ``positions`` are int64 ``[n]``; ``sizes`` add up to n.
        """


class CentredCoder(VectorCoder):
    """Brings vectors to one place and width first (`memory3.codec.centring`), so that heads can share what codes them."""

    centring: Centring

    @classmethod
    def shapes(cls, name: str, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """See `VectorCoder.shapes`."""
        centring = {"mean": (heads, head_dim), "scale": (heads, head_dim), "angles": (-1,)}
        return centring | cls.shared_shapes(name, head_dim)

    @classmethod
    def fit(cls, name: str, sample: Sample) -> dict[str, torch.Tensor]:
        """See `VectorCoder.fit`. The metric is not heeded."""
        centring = Centring.fit(sample.vectors, sample.heads, sample.positions, sample.number, sample.angles)
        z = centring.centred(sample.vectors, sample.heads, sample.positions)
        return centring.tensors() | cls.fit_shared(name, z)

    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """See `VectorCoder.encode`."""
        return self._encode(self.centring.centred(vectors, heads, positions))

    @classmethod
    @abstractmethod
    def shared_shapes(cls, name: str, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what heads share."""

    @classmethod
    @abstractmethod
    def fit_shared(cls, name: str, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """What heads share, fitted to centred vectors float32 ``[n, d]``."""

    @abstractmethod
    def _encode(self, z: torch.Tensor) -> np.ndarray:
        """Codes of centred vectors."""
