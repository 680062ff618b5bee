"""Numbers of 8 or 4 bits: each channel of a centred vector by itself, in equal steps. Knows no bank and no model.

    code = round(z / step), within its bits        z = step * code

z is the vector less its head's mean, over its channel's width (`memory3.codec.centring`), so the scale of every layer, head and channel lies in the code book
and a record holds codes alone. The step is the one of least squared error on the memories the book was fitted on: it trades fineness for range.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memory3.codec.base import Codec, Record
from memory3.codec.books import CodeBook
from memory3.codec.centring import Centring
from memory3.codec.layout import Layout
from memory3.values import Memory

__all__ = ["BITS", "ScalarCodec", "fit_step", "rounded"]

#: Bits of a number, by codec.
BITS = {"int8": 8, "int4": 4}


class ScalarCodec(Codec):
    """``int8``: d bytes a vector. ``int4``: two numbers a byte, the first in the lower half."""

    def __init__(self, book: CodeBook) -> None:
        self.name = book.codec
        self.shape = book.shape
        self._bits = BITS[book.codec]
        self._book = book
        self._sides = [(Centring.of(side), float(side["step"])) for side in map(book.side, ("keys", "values"))]
        width = -(-self.shape.head_dim * self._bits // 8)
        self._layout = Layout(self.shape, book.positions, width, width)
        self.record_size = self._layout.size

    def encode(self, memory: Memory) -> bytes:
        """See `Codec.encode`."""
        heads, positions = self._layout.places(memory)
        low, _ = _range(self._bits)
        codes = []
        for vectors, (centring, step) in zip((memory.keys, memory.values), self._sides, strict=True):
            numbers = rounded(centring.centred(vectors, heads, positions), step, self._bits)
            codes.append(_packed((numbers - low).to(torch.uint8), self._bits).numpy())
        return self._layout.pack(memory, *codes)

    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """See `Codec.decode`."""
        if not records:
            return []
        coded = self._layout.unpack(records)
        heads, positions = coded.places(device)
        low, _ = _range(self._bits)
        vectors = []
        for codes, (centring, step) in zip((coded.keys, coded.values), self._sides, strict=True):
            numbers = _unpacked(torch.from_numpy(codes).to(device), self._bits, self.shape.head_dim)
            z = (numbers.float() + low) * step
            x = centring.to(device).restored(z, heads, positions)
            vectors.append([part.to(self.shape.torch_dtype, copy=True) for part in x.split(coded.sizes)])
        return coded.memories(*vectors)


def fit_step(z: torch.Tensor, bits: int) -> torch.Tensor:
    """The step of least squared error for numbers of width 1, a float32 scalar. ``z`` ``[n, d]``."""
    _, high = _range(bits)
    steps = torch.linspace(2.0, 12.0, 41) / high
    errors = [(rounded(z, float(step), bits) * step - z).square().mean() for step in steps]
    return steps[int(torch.stack(errors).argmin())]


def rounded(z: torch.Tensor, step: float, bits: int) -> torch.Tensor:
    """The number of steps nearest to each of ``z``, float32 of the same shape."""
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
