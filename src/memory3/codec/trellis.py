"""Trellis-coded quantisation: numbers to a stream of bits, a few each, read back through a sliding window. Knows no vector,
head or file.

The stream gets b_t new bits for number t. What stands for the number is read from a table by the last 8 bits of the stream so
far, the new ones and those before them:

    number t  =  table[b_t, window_t]        window_t = bits end_t - 8 .. end_t of the stream, zeros before its beginning

So a number is chosen from 256 values and not from 2^b, though only b bits are spent; which 2^b of them it can be depends on
the numbers before. The best stream is found by Viterbi's algorithm over the 256 states, and reading it is one table look-up
per number, all at once (after the bitshift trellis of Tseng et al. 2024, QTIP, arXiv 2406.11235). With 8 bits a normal number
of variance 1 has a squared error of 0.312, 0.088 and 0.026 at 1, 2 and 3 bits, where rounding to the best 2^b values has
0.363, 0.119 and 0.037, and no code has less than 0.250, 0.063 and 0.016. A window of 10 bits would take four times as long to
write for 0.305, 0.086 and 0.024.

Symbols: n streams, T numbers a stream, b_t bits of number t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from memory3.codec.viterbi import STATES, WINDOW, best_windows

__all__ = ["ERROR", "Trellis"]

#: Squared error of a normal number of variance 1, by bits (from 5 on extrapolated: they are rare).
ERROR = (1.0, 0.312, 0.0881, 0.0262, 0.0077, 0.00226, 0.00067, 0.0002, 0.0000871)
_ROUNDS = 8


class Trellis:
    """A trellis for numbers of these sizes."""

    table_shape: ClassVar[tuple[int, int]] = (WINDOW + 1, STATES)

    def __init__(self, bits: Sequence[int], weights: torch.Tensor, table: torch.Tensor) -> None:
        """``bits`` of each of T numbers, 1 to 8; ``weights`` ``[T]`` of their squared errors; ``table`` as `fit` makes it."""
        self.bits, self.weights, self.table = list(bits), weights, table
        self._ends = np.cumsum(self.bits).tolist()
        self._on: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    @classmethod
    def fit(cls, bits: Sequence[int], weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """The table of least error, float32 ``[9, 256]``, for numbers ``[n, T]``: mean of what each window came to stand for,
        again and again.

        Args:
            bits: of each of the T numbers.
            weights: ``[T]``: what a squared error of each costs.
            numbers: ``[n, T]``, of variance 1.
        """
        generator = torch.Generator().manual_seed(0)
        normal = torch.erfinv(2 * (torch.arange(STATES) + 0.5) / STATES - 1) * 2**0.5
        # Any order in which neighbours in the trellis are no neighbours in value will do to begin with.
        table = torch.stack([normal[torch.randperm(STATES, generator=generator)] for _ in range(WINDOW + 1)])
        sizes = torch.tensor(bits)
        for _ in range(_ROUNDS if len(numbers) else 0):
            at = (cls(bits, weights, table).windows(numbers).long() + STATES * sizes).flatten()
            count = torch.bincount(at, minlength=table.numel())
            sums = torch.zeros(table.numel()).index_add_(0, at, numbers.float().flatten())
            table = torch.where(count > 0, sums / count.clamp(min=1), table.flatten()).view_as(table)
        return table

    def windows(self, numbers: torch.Tensor) -> torch.Tensor:
        """The windows of the best stream for each row of ``numbers`` ``[n, T]``: uint8 ``[n, T]``, on their device."""
        return best_windows(numbers.float(), self.bits, self.weights.tolist(), self.table).t()

    def encode(self, numbers: torch.Tensor) -> np.ndarray:
        """Streams of the rows of ``numbers`` ``[n, T]``, packed least significant bit first: uint8 ``[n, bytes]``."""
        windows = self.windows(numbers).t().cpu()
        # Those bits of each window that came with its number, which are its uppermost.
        number = torch.repeat_interleave(torch.arange(len(self.bits)), torch.tensor(self.bits))
        place = torch.cat([torch.arange(WINDOW - size, WINDOW) for size in self.bits]).to(torch.uint8)
        fresh = windows.index_select(0, number).bitwise_right_shift_(place[:, None]).bitwise_and_(1)
        return np.ascontiguousarray(np.packbits(fresh.numpy(), axis=0, bitorder="little").T)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The numbers, float32 ``[n, T]``, of streams uint8 ``[n, bytes]``, on their device.

        All is done with the streams side by side, so that each step is one run over memory.
        """
        device = codes.device
        if device not in self._on:
            ends = torch.tensor(self._ends)
            offsets = torch.tensor(self.bits, dtype=torch.int32)[:, None] * STATES
            parts = self.table.flatten(), ends // 8, (ends % 8).to(torch.int16)[:, None], offsets
            self._on[device] = tuple(part.to(device) for part in parts)
        table, first, shift, offsets = self._on[device]
        # A byte of zeros in front, so that a window of 8 bits ends where it should begin; each lies in two bytes that follow
        # one another.
        padded = codes.new_zeros((codes.shape[1] + 2, len(codes)), dtype=torch.int16)
        padded[1:-1] = codes.t()
        words = padded[1:].bitwise_left_shift(8).bitwise_or_(padded[:-1])
        windows = words.index_select(0, first).bitwise_right_shift_(shift).bitwise_and_(STATES - 1)
        at = windows.int().add_(offsets)
        return table.index_select(0, at.flatten()).view(at.shape).t()
