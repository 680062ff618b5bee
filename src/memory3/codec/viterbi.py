"""Viterbi's algorithm over the windows of a trellis (`memory3.codec.trellis`), many streams side by side.

    cost[w] after number t  =  (x_t - table[b_t, w])^2 weight_t  +  least cost before it of the windows that w can come from

New bits enter a window at the top and old ones leave at the bottom, so those are the 2^b_t windows whose upper bits are w's
lower ones. Nothing is kept of who was the least: on the way back the few that it can be are summed up again, which takes less
time than to keep the choice of each of 256 windows.

Symbols: n streams, T numbers a stream, b_t bits of number t.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    rooms: dict[int, torch.Tensor] = {}  # memory that was used before is at hand, the system's has to be fetched
    found = torch.empty(len(bits), len(numbers), dtype=torch.uint8, device=numbers.device)
    for part, mine in zip(numbers.split(at_once), found.split(at_once, dim=1), strict=True):
        if len(part) not in rooms:
            rooms[len(part)] = part.new_empty(2 * STATES + sum(STATES >> size for size in bits), len(part))
        cost, halves, *least = rooms[len(part)].split([STATES, STATES, *(STATES >> size for size in bits)])
        x = part.t().contiguous()
        _forwards(x, bits, weights, table, cost, halves, least)
        _backwards(x, bits, weights, table, cost, least, mine)
    return found


def _forwards(
    x: torch.Tensor,
    bits: Sequence[int],
    weights: Sequence[float],
    table: torch.Tensor,
    cost: torch.Tensor,
    halves: torch.Tensor,
    least: Sequence[torch.Tensor],
) -> None:
    """Costs of all streams.

    Args:
        x: ``[T, n]``.
        bits, weights, table: as `best_windows` has them.
        cost: ``[256, n]``, written to: of each last window.
        halves: ``[256, n]``, scratch.
        least: T of ``[256 / 2^b_t, n]``, written to: least cost before number t of the windows with these upper bits.
    """
    streams = x.shape[1]
    cost.fill_(torch.inf)[0] = 0
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


def _backwards(
    x: torch.Tensor,
    bits: Sequence[int],
    weights: Sequence[float],
    table: torch.Tensor,
    cost: torch.Tensor,
    least: Sequence[torch.Tensor],
    found: torch.Tensor,
) -> None:
    """The windows ``found`` ``[T, n]`` that lead to the least cost; the rest as `_forwards` leaves it."""
    streams = x.shape[1]
    window = _first_least(cost)
    for t in range(len(bits) - 1, 0, -1):
        found[t] = window
        ways, number_of = 1 << bits[t], STATES >> bits[t]
        stayed = window.bitwise_and_(number_of - 1)
        which = stayed.expand(1, ways, streams)
        off = table[bits[t - 1]].view(number_of, ways, 1).expand(-1, -1, streams).gather(0, which).sub_(x[t - 1])
        before, fewer = least[t - 1], len(least[t - 1]) // ways
        if fewer > 1:
            which = (stayed & (fewer - 1)).expand(1, ways, streams)
            before = before.view(fewer, ways, streams).gather(0, which)
        elif len(before) < ways:
            before = before.expand(ways // len(before), -1, -1).reshape(1, ways, streams)
        costs = torch.addcmul(before, off, off, value=weights[t - 1])[0]
        window = torch.add(_first_least(costs), stayed, alpha=ways)
    found[0] = window


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
