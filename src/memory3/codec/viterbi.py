"""Viterbi's algorithm over the windows of a trellis (`memory3.codec.trellis`), many streams side by side.

    cost[w] after number t  =  (x_t - table[b_t, w])^2 weight_t  +  least cost before it of the windows that w can come from

New bits enter a window at the top and old ones leave at the bottom, so those are the 2^b_t windows whose upper bits are w's
lower ones. Two by two, down to the least; of each two a byte tells whether it was the second, and the way back follows these.

Symbols: n streams, T numbers a stream, b_t bits of number t.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

__all__ = ["STATES", "WINDOW", "best_windows"]

#: Bits of the window, and the most that a number can have.
WINDOW = 8
STATES = 1 << WINDOW
#: Streams at once. On a CPU more no longer fit into its cache, and with fewer the calls take longer than the arithmetic.
_AT_ONCE = 1920
_AT_ONCE_ELSEWHERE = 1 << 15


def best_windows(numbers: torch.Tensor, bits: Sequence[int], weights: Sequence[float], table: torch.Tensor) -> torch.Tensor:
    """The windows of the stream of least error for each row.

    Args:
        numbers: float32 ``[n, T]``.
        bits: of each of the T numbers, 1 to 8.
        weights: of their squared errors.
        table: float32 ``[9, 256]``, on any device: what a window stands for, by the bits that entered last.

    Returns:
        uint8 ``[T, n]``, on the device of ``numbers``.
    """
    device, count = numbers.device, len(numbers)
    table = table.to(device)
    at_once = _AT_ONCE if device.type == "cpu" else _AT_ONCE_ELSEWHERE
    found = torch.empty(len(bits), count, dtype=torch.uint8, device=device)
    rooms: dict[int, _Room] = {}
    for start in range(0, count, at_once):
        streams = min(at_once, count - start)
        if streams not in rooms:
            rooms[streams] = _Room(bits, streams, device)
        x = numbers[start : start + streams].t().contiguous()
        rooms[streams].run(x, weights, table, found[:, start : start + streams])
    return found


class _Room:
    """Memory for so many streams, and what is where in it, so that the same is used for one lot after the other."""

    def __init__(self, bits: Sequence[int], streams: int, device: torch.device) -> None:
        self._bits, self._ends = bits, list(accumulate(bits))
        self._first = sum(end <= WINDOW for end in self._ends)
        self._cost, halves = torch.empty(2, STATES, streams, device=device).unbind()
        self._streams = torch.arange(streams, device=device)
        self._steps = {size: _Step(self._cost, halves, size) for size in {*bits[self._first :]}}
        # Of each two windows that were compared, was the second the better one? First all of the upper half with those of the
        # lower one, then of what was left, and so on.
        rows = [STATES - (STATES >> size) for size in bits[self._first :]]
        self._seconds = torch.empty(sum(rows), streams, dtype=torch.bool, device=device).split(rows)
        self._flat = [each.view(torch.uint8).view(-1) for each in self._seconds]

    def run(self, x: torch.Tensor, weights: Sequence[float], table: torch.Tensor, found: torch.Tensor) -> None:
        """Numbers ``x`` ``[T, n]`` to windows ``found`` uint8 ``[T, n]``."""
        first, cost = self._first, self._cost
        _begin(x[:first], self._bits[:first], weights[:first], table, cost)
        of_window, sizes = table[:, :, None].unbind(), self._bits[first:]
        for number, size, weight, second in zip(x[first:].unbind(), sizes, weights[first:], self._seconds, strict=True):
            self._steps[size].run(number, of_window[size], weight, second)
        window = _first_least(cost)
        for t in range(len(self._bits) - 1, -1, -1):
            found[t] = window
            size = self._bits[t]
            stayed = window.bitwise_and_((STATES >> size) - 1)
            if self._ends[t] <= WINDOW:  # what left was not of the stream yet
                window = stayed << size
            else:
                window = torch.add(self._left(self._flat[t - first], stayed, size), stayed, alpha=1 << size)

    def _left(self, seconds: torch.Tensor, stayed: torch.Tensor, size: int) -> torch.Tensor:
        """The lower bits of the windows that were chosen before a number, int64 ``[n]``.

        Args:
            seconds: uint8 ``[(256 - 256 / 2^b) n]``, what was told of it.
            stayed: int64 ``[n]``: the upper bits.
            size: b, how many bits left.
        """
        streams, left = self._streams, None
        number = streams.shape[0]
        for bit in range(size):
            # The last comparisons lie behind the others.
            at = STATES - ((STATES >> size) << (bit + 1))
            place = stayed if left is None else torch.add(left, stayed, alpha=1 << bit)
            told = seconds[at * number :].index_select(0, torch.add(streams, place, alpha=number))
            left = told.long() if left is None else torch.add(left, told, alpha=1 << bit)
        assert left is not None
        return left


class _Step:
    """One number of some bits: from the costs before it to those after it, in place."""

    def __init__(self, cost: torch.Tensor, halves: torch.Tensor, size: int) -> None:
        rows, streams = STATES >> size, cost.shape[1]
        self._pairs = []
        leaving, at = cost.view(rows, 1 << size, streams), 0
        while leaving.shape[1] > 1:  # by halves: amin takes twice as long on a CPU
            half = leaving.shape[1] // 2
            into = halves[at : at + rows * half].view(rows, half, streams)
            self._pairs.append((leaving[:, :half], leaving[:, half:], into, slice(at, at + rows * half)))
            leaving, at = into, at + rows * half
        self._cost = cost
        self._off = cost.view(1 << size, rows, streams)
        self._best = leaving[:, 0].expand_as(self._off)
        # On a CPU numpy compares in a quarter of torch's time.
        on_cpu = cost.device.type == "cpu"
        self._arrays = [(one.numpy(), other.numpy()) for one, other, _, _ in self._pairs] if on_cpu else None

    def run(self, number: torch.Tensor, of_window: torch.Tensor, weight: float, seconds: torch.Tensor) -> None:
        """
        Args:
            number: ``[n]``.
            of_window: ``[256, 1]``: what windows stand for.
            weight: of the squared error.
            seconds: bool ``[256 - 256 / 2^b, n]``, written to.
        """
        told = seconds.numpy() if self._arrays is not None else None
        for place, (one, other, into, rows) in enumerate(self._pairs):
            if told is not None and self._arrays is not None:
                first, second = self._arrays[place]
                np.less(second, first, out=told[rows].reshape(first.shape))
            else:
                torch.lt(other, one, out=seconds[rows].view(one.shape))
            torch.minimum(one, other, out=into)
        torch.sub(number, of_window, out=self._cost)
        torch.addcmul(self._best, self._off, self._off, value=weight, out=self._off)


def _begin(x: torch.Tensor, bits: Sequence[int], weights: Sequence[float], table: torch.Tensor, cost: torch.Tensor) -> None:
    """Costs ``[256, n]`` after the first numbers ``[T, n]``, whose bits fill a window at most: nothing leaves it yet, so there
    is one way to each, and only those to choose from that end in as many zeros as are left.
    """
    sums, end = x.new_zeros(1, x.shape[1]), 0
    for number, size, weight in zip(x, bits, weights, strict=True):
        end += size
        off = torch.sub(number, table[size][:: STATES >> end, None]).view(1 << size, len(sums), -1)
        sums = torch.addcmul(sums.expand_as(off), off, off, value=weight).flatten(0, 1)
    cost.fill_(torch.inf)[:: STATES >> end] = sums


def _first_least(costs: torch.Tensor) -> torch.Tensor:
    """Which of the rows has the least number of each column, int64 ``[n]``, the first where several have. Two by two, which is
    ten times as fast as argmin on a CPU. ``costs``: ``[2^k, n]``, k >= 1.
    """
    second = []  # of each two, is the second less?
    while len(costs) > 1:
        one, other = costs[::2], costs[1::2]
        second.append(other < one)
        if len(one) > 1:
            costs = torch.minimum(one, other)
        else:
            break
    which = second.pop().long()
    for more in reversed(second):
        which = torch.add(more.gather(0, which), which, alpha=2)
    return which[0]
