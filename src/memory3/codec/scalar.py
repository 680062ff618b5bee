"""Numbers of 8 or 4 bits: each channel of a centred vector by itself, in equal steps. Knows no memory and no file.

    code = round(z / step), within its bits        z = step * code

z is the vector less its head's mean, over its channel's width (`memory3.codec.centring`), so the scale of every layer, head
and channel lies in the codebook and a record holds codes alone. The step is the one of least squared error on the memories the
codebook was fitted on: it trades fineness for range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memory3.codec.centring import CentredCoder, Centring
from memory3.codec.vectors import Sample

__all__ = ["ScalarCoder", "fit_step", "rounded"]


class ScalarCoder(CentredCoder):
    """``int8``: d bytes a vector. ``int4``: two numbers a byte, the first in the lower half."""

    def __init__(self, bits: int, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.centring = Centring.of(tensors)
        self._bits, self._head_dim, self._step = bits, head_dim, float(tensors["step"])
        self.width = -(-head_dim * self._bits // 8)

    @classmethod
    def shapes(cls, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that the coder is made of; -1 is any size.

        Args:
            heads: L*H.
            head_dim: d.
        """
        return cls.centring_shapes(heads, head_dim) | {"step": ()}

    @classmethod
    def fit(cls, bits: int, sample: Sample) -> dict[str, torch.Tensor]:
        """Tensors of the coder, fitted: each head's mean and widths, and the step.

        Args:
            bits: of a number.
            sample: vectors to fit to.
        """
        tensors, z = cls.fit_centring(sample)
        return tensors | {"step": fit_step(z, bits)}

    def _encode(self, z: torch.Tensor) -> np.ndarray:
        low, _ = _range(self._bits)
        return _packed((rounded(z, self._step, self._bits) - low).to(torch.uint8), self._bits).numpy()

    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The vectors that codes stand for, as one tensor ``[p, d]`` per memory.

        Args:
            codes: uint8 ``[p, bytes of a vector]``, on the device where vectors are wanted.
            heads: int64 ``[p]`` on the CPU: the memory layer and KV head of each, l*H + h.
            positions: int64 ``[p]`` on the CPU: in the reference.
            sizes: vectors of each memory.
            dtype: of the vectors.
        """
        low, _ = _range(self._bits)
        z = (_unpacked(codes, self._bits, self._head_dim).float() + low) * self._step
        x = self.centring.to(codes.device).restored(z, heads, positions)
        return [part.to(dtype, copy=True) for part in x.split(list(sizes))]


def fit_step(z: torch.Tensor, bits: int) -> torch.Tensor:
    """The step of least squared error for numbers of width 1, a float32 scalar.

    Args:
        z: float32 ``[n, d]``, of width 1.
        bits: of a number.
    """
    _, high = _range(bits)
    steps = torch.linspace(2.0, 12.0, 41) / high
    errors = [(rounded(z, float(step), bits) * step - z).square().mean() for step in steps]
    return steps[int(torch.stack(errors).argmin())]


def rounded(z: torch.Tensor, step: float, bits: int) -> torch.Tensor:
    """The number of steps nearest to each number, float32 of the same shape.

    Args:
        z: numbers.
        step: width of a step.
        bits: of a number: what lies beyond is clamped.
    """
    return (z / step).round().clamp(*_range(bits))


def _range(bits: int) -> tuple[int, int]:
    """Least and greatest number: -128 to 127, -8 to 7."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 ``[n, d]`` of ``bits`` each, as uint8 ``[n, ceil(d bits / 8)]``."""
    if bits == 8:
        return numbers
    even = torch.nn.functional.pad(numbers, (0, numbers.shape[1] % 2))
    return even[:, ::2] | (even[:, 1::2] << 4)


def _unpacked(codes: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """Inverse of `_packed`."""
    return codes if bits == 8 else torch.stack([codes & 15, codes >> 4], 2).flatten(1)[:, :width]
