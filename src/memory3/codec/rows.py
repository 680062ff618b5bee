"""Decoding as tensor gathers: a vector is a sum of rows of one table, then moved back to where its head lies. Knows no file and no FAISS.

Every additive quantiser decodes so: what a code stands for in its own few dimensions is written as a row of all d, the quantiser's rotation applied beforehand.
With ``embedding_bag`` the sum needs no intermediate tensor; gathering the short rows and multiplying by the rotation once takes four times as long
(2 cores, 14,400 vectors of 64).

Symbols: n vectors, S codes of a vector, c bytes of a coded vector, d head dimension, r <= d rotated dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding_bag

from memory3.codec.centring import Centring

__all__ = ["Rows", "fields"]


def fields(codes: torch.Tensor, bits: Sequence[int], starts: Sequence[int]) -> torch.Tensor:
    """Numbers of 1 to 16 bits out of packed bytes, least significant bit first.

    Args:
        codes: uint8 ``[n, c]``.
        bits: size of each of the S numbers.
        starts: bit at which each begins.

    Returns:
        int32 ``[n, S]``.
    """
    if all(size == 8 and start == 8 * place for place, (size, start) in enumerate(zip(bits, starts, strict=True))):
        return codes.int()
    # Each number lies in three bytes that follow one another. Columns first: each step below is then one run over memory.
    columns = torch.nn.functional.pad(codes.t().int(), (0, 0, 0, 2))
    device = codes.device
    first = torch.tensor([start // 8 for start in starts], device=device)
    shift = torch.tensor([start % 8 for start in starts], dtype=torch.int32, device=device)[:, None]
    mask = torch.tensor([(1 << size) - 1 for size in bits], dtype=torch.int32, device=device)[:, None]
    words = columns[:-2] | (columns[1:-1] << 8) | (columns[2:] << 16)
    return ((words.index_select(0, first) >> shift) & mask).t()


class Rows:
    """The table of a quantiser, with the place and width of every head, on one device.

    Attributes:
        table: float32 ``[rows, d]``: the tables of the S codes, one after the other.
    """

    def __init__(
        self, tables: Sequence[torch.Tensor], starts: Sequence[int], centring: Centring, device: torch.device | str
    ) -> None:
        """Tables ``[2^bits, d]`` of the S codes, and the bit at which each code begins."""
        self._bits = [len(table).bit_length() - 1 for table in tables]
        self._starts = starts
        sizes = [0, *(len(table) for table in tables[:-1])]
        self._offsets = torch.tensor(sizes).cumsum(0).int().to(device)
        self._half = centring.angles.shape[0]
        # Dimensions that RoPE pairs stand side by side, so that a rotation is one product of complex numbers.
        order = torch.arange(2 * self._half).view(2, -1).t().reshape(-1)
        order = torch.cat([order, torch.arange(2 * self._half, centring.mean.shape[1])])
        self.table = torch.cat([table[:, order] for table in tables]).float().to(device)
        self._mean = centring.mean[:, order].to(device)
        self._scale = centring.scale[:, order].to(device)
        self._angles = centring.angles.to(device)

    def decode(self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Vectors ``[n, d]`` of ``dtype`` from codes uint8 ``[n, c]``; ``heads`` and ``positions`` int64 ``[n]``."""
        numbers = fields(codes, self._bits, self._starts) + self._offsets
        z = embedding_bag(numbers, self.table, mode="sum")
        x = torch.addcmul(self._mean.index_select(0, heads), z, self._scale.index_select(0, heads))
        if not self._half:
            return x.to(dtype)
        turns = torch.outer(torch.arange(int(positions.max()) + 1, device=x.device, dtype=torch.float32), self._angles)
        turns = torch.polar(torch.ones_like(turns), turns).index_select(0, positions)
        paired = torch.view_as_complex(x[:, : 2 * self._half].contiguous().view(len(x), -1, 2)) * turns
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        out[:, : 2 * self._half].view(len(x), 2, -1).copy_(torch.view_as_real(paired).transpose(1, 2))
        out[:, 2 * self._half :] = x[:, 2 * self._half :]
        return out
