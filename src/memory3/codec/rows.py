"""Decoding as tensor gathers: a vector is a sum of rows of one table, then moved back to where its head lies. Knows no file
and no FAISS.

Every additive quantiser decodes so: what a code stands for in its own few dimensions is written as a row of all d, the
quantiser's rotation applied beforehand. With ``embedding_bag`` the sum needs no intermediate tensor; gathering the short rows
and multiplying by the rotation once takes four times as long (2 cores, 14,400 vectors of 64).

Symbols: n vectors, S codes of a vector, c bytes of a coded vector, d head dimension, r <= d rotated dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding_bag

from memory3.attention.rotary import rotate_pairs
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
    if not len(codes):
        return codes.new_zeros((0, len(bits)), dtype=torch.int32)
    if all(size == 8 and start == 8 * place for place, (size, start) in enumerate(zip(bits, starts, strict=True))):
        return codes.int()
    # A number lies in two 16-bit words that follow one another. Words first: each step below is then one run over memory.
    words = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).view(torch.int16).t().contiguous().int()
    device = codes.device
    first = torch.tensor([start // 16 for start in starts], device=device)
    shift = torch.tensor([start % 16 for start in starts], dtype=torch.int32, device=device)[:, None]
    mask = torch.tensor([(1 << size) - 1 for size in bits], dtype=torch.int32, device=device)[:, None]
    low = words.index_select(0, first).bitwise_and_(0xFFFF)
    high = words.index_select(0, (first + 1).clamp(max=len(words) - 1)).bitwise_left_shift_(16)
    return low.bitwise_or_(high).bitwise_right_shift_(shift).bitwise_and_(mask).t()


class Rows:
    """The table of a quantiser, with the place and width of every head, on one device.

    Attributes:
        table: float32 ``[rows, d]``: the tables of the S codes, one after the other, then every head's place over its width.
    """

    def __init__(
        self, tables: Sequence[torch.Tensor], starts: Sequence[int], centring: Centring, device: torch.device | str
    ) -> None:
        """Tables ``[2^bits, d]`` of the S codes, and the bit at which each code begins."""
        self._bits = [len(table).bit_length() - 1 for table in tables]
        self._starts = starts
        self._offsets = torch.tensor([0, *(len(table) for table in tables)]).cumsum(0).int().to(device)
        self._half = centring.angles.shape[0]
        # Dimensions that RoPE pairs stand side by side, as `rotate_pairs` wants them.
        order = torch.arange(2 * self._half).view(2, -1).t().reshape(-1)
        order = torch.cat([order, torch.arange(2 * self._half, centring.mean.shape[1])])
        self.table = torch.cat([*tables, centring.mean / centring.scale])[:, order].float().contiguous().to(device)
        self._scale = centring.scale[:, order].contiguous().to(device)
        self._angles = centring.angles.to(device)

    def decode(
        self, codes: torch.Tensor, heads: torch.Tensor, positions: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Vectors of ``dtype``, in tensors of their own ``[size, d]``, from codes uint8 ``[n, c]``.

        ``heads`` and ``positions`` are int64 ``[n]``, on the CPU wherever ``codes`` lie; ``sizes`` add up to n.
        """
        if not len(heads):
            return [self.table.new_zeros(0, self.table.shape[1], dtype=dtype) for _ in sizes]
        heads = heads.to(codes.device)
        numbers = torch.cat([fields(codes, self._bits, self._starts), heads.int()[:, None]], 1).add_(self._offsets)
        x = embedding_bag(numbers, self.table, mode="sum").mul_(self._scale.index_select(0, heads))
        half, width = self._half, x.shape[1]
        parts = x.split(list(sizes))
        if not half:
            return [part.to(dtype, copy=True) for part in parts]
        rotated = rotate_pairs(x[:, : 2 * half].contiguous(), positions, self._angles)
        vectors = []
        for turned, straight in zip(rotated.split(list(sizes)), parts, strict=True):
            vectors.append(torch.empty(straight.shape, dtype=dtype, device=x.device))
            vectors[-1].as_strided((len(straight), 2, half), (width, half, 1)).copy_(turned)
            if 2 * half < width:
                vectors[-1][:, 2 * half :] = straight[:, 2 * half :]
        return vectors
