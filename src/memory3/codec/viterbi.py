"""Viterbi's algorithm over the windows of a trellis (`memory3.codec.trellis`), many streams side by side.

    cost[w] after number t  =  (x_t - table[b_t, w])^2 weight_t  +  least cost before it of the windows that w can come from

New bits enter a window at the top and old ones leave at the bottom, so those are the 2^b_t windows whose upper bits are w's
lower ones. Nothing is kept of who was the least: on the way back the few that it can be are summed up again, which takes less
time than to keep the choice of each of 256 windows.

Symbols: n streams, T numbers a stream, b_t bits of number t.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

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
    table = table.to(numbers.device)
    at_once = _AT_ONCE if numbers.device.type == "cpu" else _AT_ONCE_ELSEWHERE
    ends, first = list(accumulate(bits)), sum(end <= WINDOW for end in accumulate(bits))
    rows = [STATES, STATES, STATES, *(STATES >> size for size in bits[first:])]
    rooms: dict[int, torch.Tensor] = {}  # memory that was used before is at hand, the system's has to be fetched
    found = torch.empty(len(bits), len(numbers), dtype=torch.uint8, device=numbers.device)
    for part, mine in zip(numbers.split(at_once), found.split(at_once, dim=1), strict=True):
        if len(part) not in rooms:
            rooms[len(part)] = part.new_empty(sum(rows), len(part))
        begun, cost, halves, *least = rooms[len(part)].split(rows)
        x = part.t().contiguous()
        _begin(x[:first], bits[:first], weights[:first], table, begun)
        cost.copy_(begun)
        _forwards(x[first:], bits[first:], weights[first:], table, cost, halves, least)
        window = _first_least(cost)
        for t in range(len(bits) - 1, -1, -1):
            mine[t] = window
            stayed = window.bitwise_and_((STATES >> bits[t]) - 1)
            if t and ends[t] <= WINDOW:  # what left was not of the stream yet
                window = stayed << bits[t]
            elif t:
                n = t - 1 - first
                before = begun if n < 0 else least[n]
                costs = _of_each(before, stayed, 1 << bits[t])
                if n >= 0:
                    off = _of_each(table[bits[t - 1]][:, None], stayed, 1 << bits[t]) - x[t - 1]
                    costs = torch.addcmul(costs, off, off, value=weights[t - 1])
                window = torch.add(_first_least(costs), stayed, alpha=1 << bits[t])
    return found


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


def _forwards(
    x: torch.Tensor,
    bits: Sequence[int],
    weights: Sequence[float],
    table: torch.Tensor,
    cost: torch.Tensor,
    halves: torch.Tensor,
    least: Sequence[torch.Tensor],
) -> None:
    """Costs after more numbers.

    Args:
        x: ``[T, n]``.
        bits, weights, table: as `best_windows` has them.
        cost: ``[256, n]``, of each window, from before them to after them.
        halves: ``[256, n]``, scratch.
        least: T of ``[256 / 2^b_t, n]``, written to: least cost before number t of the windows with these upper bits.
    """
    streams = x.shape[1]
    for number, size, weight, best in zip(x, bits, weights, least, strict=True):
        leaving, free = cost.view(len(best), 1 << size, streams), halves
        while leaving.shape[1] > 1:  # by halves: amin takes twice as long on a CPU
            half = leaving.shape[1] // 2
            into, free = free.split([len(best) * half, len(free) - len(best) * half])
            into = (into if half > 1 else best).view(len(best), half, streams)
            leaving = torch.minimum(leaving[:, :half], leaving[:, half:], out=into)
        entering = (1 << size, len(best), streams)
        off = torch.sub(number, table[size][:, None], out=cost).view(entering)
        torch.addcmul(best.expand(entering), off, off, value=weight, out=off)


def _of_each(x: torch.Tensor, stayed: torch.Tensor, ways: int) -> torch.Tensor:
    """The rows of ``x`` for the windows that may have come before, ``[ways, n]``.

    Args:
        x: ``[k, n]`` or ``[k, 1]``, by the lower bits of a window.
        stayed: int64 ``[n]``: the upper bits of each column's window.
        ways: number of windows with these upper bits, a power of 2.
    """
    streams = len(stayed)
    if len(x) <= ways:
        return x.expand(ways // len(x), len(x), streams).reshape(ways, streams)
    blocks = len(x) // ways
    which = stayed if len(x) == STATES else stayed & (blocks - 1)
    return x.view(blocks, ways, -1).expand(-1, -1, streams).gather(0, which.expand(1, ways, streams))[0]


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
