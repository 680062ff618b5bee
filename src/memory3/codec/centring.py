"""Centring: vectors of all heads brought to one place and width, so that one quantiser serves them all. Knows no quantiser.

    z = (R(-position) x - mean) / scale        x = R(position) (mean + scale z)

``mean`` and ``scale`` belong to the head and the channel and lie in the codebook, so they cost a record nothing. R is the
rotation of RoPE, for keys only: a head's keys share a large mean before that rotation, which the rotation spreads over a
circle. Taking it back needs the position, which the record holds. Measured on SmolLM2-135M, 14 bytes a vector (PQ16x7),
squared error over squared length: keys as they come 0.099, less the head's mean 0.062, rotated back before that 0.053, over
the channel's width 0.048; values 0.165, 0.151 and 0.127. A rotation of each head onto its principal axes gives no more.

Symbols: n vectors, L*H heads, d head dimension, r <= d rotated dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from memory3.attention.rotary import rotate_vectors as turned
from memory3.codec.vectors import Sample, VectorCoder

__all__ = ["CentredCoder", "Centring", "turned"]

#: A head that kept few vectors borrows its widths: as many vectors of the average head are counted in.
_BORROWED = 16


@dataclass(frozen=True)
class Centring:
    """Means and widths of every head and channel, and the angles by which vectors are rotated back.

    Attributes:
        mean: float32 ``[L*H, d]``.
        scale: float32 ``[L*H, d]``, positive.
        angles: float32 ``[r/2]``, RoPE's angle per position; empty where vectors are not rotated.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    angles: torch.Tensor

    @classmethod
    def fit(
        cls, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, number: int, angles: torch.Tensor | None
    ) -> Centring:
        """The means and widths of each head's vectors.

        Args:
            vectors: ``[n, d]``, rotated where ``angles`` say so.
            heads: int64 ``[n]``: the head of each.
            positions: int64 ``[n]``: in the reference.
            number: of heads.
            angles: radians by which one position turns each pair of numbers; None: vectors are not rotated.
        """
        angles = vectors.new_zeros(0, dtype=torch.float32) if angles is None else angles.detach().to("cpu", torch.float32)
        x = turned(vectors.float(), -positions, angles)
        count = torch.bincount(heads, minlength=number)[:, None].float()
        mean = x.new_zeros(number, x.shape[1]).index_add_(0, heads, x) / count.clamp(min=1)
        squares = x.new_zeros(number, x.shape[1]).index_add_(0, heads, (x - mean[heads]).square())
        typical = (squares.sum() / max(1, squares.shape[1] * len(x))).clamp(min=1e-12)
        of_head = (squares.mean(1, keepdim=True) + _BORROWED * typical) / (count + _BORROWED)
        variance = (squares + _BORROWED * of_head) / (count + _BORROWED)
        return cls(mean, variance.sqrt(), angles)

    def centred(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """z, float32 ``[n, d]``, of vectors ``[n, d]`` that belong to ``heads`` and lie at ``positions``, int64 ``[n]``
        both.
        """
        return (turned(vectors.float(), -positions, self.angles) - self.mean[heads]) / self.scale[heads]

    def restored(self, z: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The vectors, float32 ``[n, d]``: inverse of `centred`. ``heads`` and ``positions`` lie on the CPU, wherever
        ``z`` lies.
        """
        heads = heads.to(z.device)
        return turned(self.mean[heads] + self.scale[heads] * z, positions, self.angles)

    def to(self, device: torch.device | str) -> Centring:
        """The same on another device."""
        return Centring(self.mean.to(device), self.scale.to(device), self.angles.to(device))

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, for a codebook."""
        return {"mean": self.mean, "scale": self.scale, "angles": self.angles}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Centring:
        """Inverse of `tensors`."""
        return cls(tensors["mean"], tensors["scale"], tensors["angles"])


class CentredCoder(VectorCoder):
    """Brings vectors to one place and width first (`memory3.codec.centring`), so that heads can share what codes them."""

    centring: Centring

    @staticmethod
    def centring_shapes(heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `Centring.tensors`; -1 is any size.

        Args:
            heads: L*H.
            head_dim: d.
        """
        return {"mean": (heads, head_dim), "scale": (heads, head_dim), "angles": (-1,)}

    @staticmethod
    def fit_centring(sample: Sample) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Those tensors, and the sample's vectors centred, float32 ``[n, d]``. The metric is not heeded."""
        centring = Centring.fit(sample.vectors, sample.heads, sample.positions, sample.number, sample.angles)
        return centring.tensors(), centring.centred(sample.vectors, sample.heads, sample.positions)

    def encode(self, vectors: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
        """Codes of vectors, from their head's mean, in units of its widths.

        Args:
            vectors: ``[p, d]``, keys after RoPE.
            heads: int64 ``[p]``: the memory layer and KV head of each, l*H + h.
            positions: int64 ``[p]``: in the reference.

        Returns:
            uint8 ``[p, bytes of a vector]``.
        """
        return self._encode(self.centring.centred(vectors, heads, positions))

    @abstractmethod
    def _encode(self, z: torch.Tensor) -> np.ndarray:
        """Codes of centred vectors."""
