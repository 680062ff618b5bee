"""Requests that decode side by side: one buffer a layer holds what each of them reads, so that one kernel call serves all.

    keys of a layer, row r, head h     (unused) | memories, M | context, S_r | room
                                                              ^ front of the layer

Every request has a row. Its memories end where its context starts, at the same column in all rows; a mask tells what of a
row is its own. The query heads of one KV head stand as its further queries, so that no key is read twice. A `Lane` holds
contexts of up to one length, and `Lanes` has a lane for every power of two: a short request beside a long one is padded
to twice its length at most.

How many columns stand before the front is a matter of each layer: some have many times as many pairs as others. Whatever
no request uses is zero, since a masked column has weight 0, but 0 times NaN is NaN.

Exact twin: `memory3.attention.packed`, request by request.

Symbols: L layers, R rows, n rows that hold a request, H KV heads, A query heads, G = A / H, M memory pairs of a head, S_r
context length, d head dimension, W columns.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import DynamicLayer

from memory3.attention.attend import attention_with_lse, masked
from memory3.attention.kv_cache import GrowingLayer
from memory3.types import MemoryBatch

__all__ = ["Lane", "Lanes", "Leading", "Seat", "can_sit"]

#: Tokens of context that the shortest lane has room for.
_SHORTEST = 256
#: Rows that a lane begins with, and that are added at once.
_ROWS = 4
#: Columns before a front that are added at once.
_STRETCH = 64
#: Pages of this process alone; where there is no such flag (Windows), they are anyway.
_OWN = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}


class Leading(Protocol):
    """Memories that stand in front of a request; `memory3.attention.reading.Reading` is one."""

    @property
    def batch(self) -> MemoryBatch:
        """What they are, of one chunk."""

    @property
    def counted(self) -> frozenset[int]:
        """Layers whose queries it wants to see."""

    def saw(self, layer: int, query: torch.Tensor, lse: torch.Tensor, scale: float) -> None:
        """A token has read them.

        Args:
            layer: number of the layer in the model, from 0.
            query: ``[1, A, 1, d]``, after RoPE.
            lse: ``[1, A, 1]`` over context and memory together.
            scale: what scores were multiplied with.
        """


class Seat:
    """A request's place in a lane.

    Attributes:
        lane: in which.
        row: number of its row there.
        length: S_r, tokens of its context.
        reading: the memories that stand in front of it; None: none do.
    """

    def __init__(self, lane: Lane, row: int) -> None:
        self.lane = lane
        self.row = row
        self.length = 0
        self.reading: Leading | None = None
        self.widths: dict[int, int] = {}  # M of each layer that has memories


def can_sit(cache: Any) -> bool:
    """Whether a request with this cache of transformers can decode in a lane: plain layers of one shape, on the CPU.

    Elsewhere which kernels take a mask, and how it has to lie, is another matter; there requests attend one by one.
    """
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list) or not layers:
        return False
    if any(type(layer) not in (DynamicLayer, GrowingLayer) or not layer.is_initialized for layer in layers):
        return False
    first = layers[0].keys
    return (
        all(
            one.shape[:3] == first.shape[:3] and one.shape[3] == layer.keys.shape[3] and one.dtype == first.dtype
            for layer in layers
            for one in (layer.keys, layer.values)
        )
        and first.device.type == "cpu"
    )


class Lane:
    """Rows of one capacity."""

    def __init__(self, capacity: int) -> None:
        """
        Args:
            capacity: tokens of context that a row has room for.
        """
        self.capacity = capacity
        self._seats: list[Seat | None] = []  # by row
        self._fronts: list[int] = []  # of each layer's keys and values
        self._keys: list[torch.Tensor] = []  # [R, H, W, d] of each layer
        self._values: list[torch.Tensor] = []
        self._bias = torch.empty(0)  # [L, R, H, 1, W]
        self._front = 0  # of the bias: the largest of all
        self._feeding: list[Seat] = []
        self._rows: torch.Tensor | None = None  # of `_feeding`; None: they are the first rows, in order
        self._widest: list[int] = []  # of `_feeding`, by layer: the most columns of memories; empty: not known
        self._at = torch.empty(0)
        self._columns = torch.empty(0)  # [L, T]
        self._longest = 0

    @property
    def is_empty(self) -> bool:
        """Whether no request sits here."""
        return not any(self._seats)

    # ---- coming and going --------------------------------------------------------------------------------------------

    def take(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Seat:
        """A request sits down.

        Args:
            keys, values: its context, ``[1, H, S, d]`` of each layer.
        """
        if not self._keys:
            self._fronts = [0] * len(keys)
            self._keys, self._values = (
                [one.new_empty(0, one.shape[1], self.capacity, one.shape[3]) for one in part] for part in (keys, values)
            )
        row = next((n for n, seat in enumerate(self._seats) if seat is None), len(self._seats))
        if row == len(self._seats):
            self._lay(row + _ROWS, self._fronts)
        seat = Seat(self, row)
        self._seats[row] = seat
        seat.length = keys[0].shape[2]
        for number, given in enumerate(zip(keys, values, strict=True)):
            for buffer, one in zip(self._of(seat, number, 0, seat.length), given, strict=True):
                buffer[:] = one[0]
        self._bias[:, row, :, :, self._front : self._front + seat.length] = 0
        return seat

    def leave(self, seat: Seat) -> None:
        """A request goes; its row is free. With the last one goes all that the lane holds.

        Lane and seat know each other. What both still held would stay until Python looks for such circles, which may be long.
        """
        self._seats[seat.row] = seat.reading = None
        self._feeding, self._widest = [], []
        if self.is_empty:
            self._seats, self._fronts, self._keys, self._values = [], [], [], []
            return
        self._bias[:, seat.row] = masked(self._bias.dtype)
        for number in range(len(self._fronts)):
            for buffer in self._of(seat, number, -seat.widths.get(number, 0), seat.length):
                buffer.zero_()

    def context(self, seat: Seat) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values ``[1, H, S, d]`` of each layer of a request's context; views."""
        pairs = [self._of(seat, number, 0, seat.length) for number in range(len(self._fronts))]
        return [keys[None] for keys, _ in pairs], [values[None] for _, values in pairs]

    def lead(self, seat: Seat, reading: Leading) -> None:
        """Put the memories of one chunk in front of a request, in place of those that stood there."""
        layers = reading.batch.layers
        widths = {number: layer.keys.shape[2] for number, layer in layers.items()}
        needed = [max(old, -(-widths.get(number, 0) // _STRETCH) * _STRETCH) for number, old in enumerate(self._fronts)]
        if needed != self._fronts:
            self._lay(len(self._seats), needed)
        for number, width in seat.widths.items():
            for buffer in self._of(seat, number, -width, -min(width, widths.get(number, 0))):
                buffer.zero_()
        bias = self._bias[:, seat.row, :, :, : self._front]
        bias.fill_(masked(bias.dtype))
        for number, layer in layers.items():
            keys, values = self._of(seat, number, -widths[number], 0)
            keys[:], values[:] = layer.keys[0], layer.values[0]
            bias[number, ..., self._front - widths[number] :] = 0 if layer.bias is None else layer.bias[0]
        seat.widths = widths
        seat.reading = reading
        self._widest = []

    def _of(self, seat: Seat, layer: int, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[H, W, d]`` of a row, from column ``first`` to before ``end``, counted from the front; views."""
        front = self._fronts[layer]
        where = slice(front + first, front + end)
        return self._keys[layer][seat.row, :, where], self._values[layer][seat.row, :, where]

    def _lay(self, rows: int, fronts: Sequence[int]) -> None:
        """Buffers of so many rows, and of so many columns before the front of each layer; those who sit move along."""
        there = [seat for seat in self._seats if seat is not None]
        for number, (front, old_front) in enumerate(zip(fronts, self._fronts, strict=True)):
            for buffers in (self._keys, self._values):
                old = buffers[number]
                if (rows, front) == (old.shape[0], old_front):
                    continue
                buffers[number] = _zeros((rows, old.shape[1], front + self.capacity, old.shape[3]), old.dtype)
                for seat in there:
                    used = slice(old_front - seat.widths.get(number, 0), old_front + seat.length)
                    moved = slice(front - old_front + used.start, front - old_front + used.stop)
                    buffers[number][seat.row, :, moved] = old[seat.row, :, used]
        heads, dtype, old_bias, old_front = self._keys[0].shape[1], self._keys[0].dtype, self._bias, self._front
        self._front = max(fronts)
        self._bias = torch.full((len(fronts), rows, heads, 1, self._front + self.capacity), masked(dtype), dtype=dtype)
        if there:
            self._bias[:, : old_bias.shape[1], ..., self._front - old_front :] = old_bias
        self._fronts = list(fronts)
        self._seats += [None] * (rows - len(self._seats))

    # ---- a pass ------------------------------------------------------------------------------------------------------

    def begin(self, seats: Sequence[Seat]) -> None:
        """These feed one token each in the next pass, in this order."""
        if seats != self._feeding:
            self._widest = []
        self._feeding = list(seats)
        rows = [seat.row for seat in seats]
        self._at = torch.tensor(rows)
        self._rows = None if rows == list(range(len(rows))) else self._at
        lengths = torch.tensor([seat.length for seat in seats])
        self._bias[:, self._at, :, :, lengths + self._front] = 0
        self._columns = torch.tensor(self._fronts)[:, None] + lengths
        for seat in seats:
            seat.length += 1
        self._longest = max(seat.length for seat in seats)
        self._widest = self._widest or [max(s.widths.get(n, 0) for s in seats) for n in range(len(self._fronts))]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of the tokens that are fed, each over its own memories and context.

        Args:
            layer: number of the layer in the model, from 0.
            query: ``[1, A, T, d]``, after RoPE, of the T requests that `begin` was told.
            key, value: ``[1, H, T, d]`` of the same tokens, keys after RoPE; they join the context.
            scale: what scores are multiplied with.

        Returns:
            the attention output ``[1, A, T, d]``.
        """
        keys, values = self._keys[layer], self._values[layer]
        columns = self._columns[layer]
        keys[self._at, :, columns] = key[0].transpose(0, 1)
        values[self._at, :, columns] = value[0].transpose(0, 1)
        asked = query[0].transpose(0, 1).contiguous()  # [T, A, d]; what is kept of it must not keep the whole pass
        many, heads, dim = len(self._feeding), keys.shape[1], query.shape[3]
        if self._rows is not None:  # rows between them wait for something: what these would ask, nobody looks at
            many = max(seat.row for seat in self._feeding) + 1
            asked = asked.new_zeros(many, *asked.shape[1:]).index_copy_(0, self._rows, asked)
        front, widest = self._fronts[layer], self._widest[layer]
        where = slice(front - widest, front + self._longest)
        mask = slice(self._front - widest, self._front + self._longest)
        out, lse = attention_with_lse(
            asked.reshape(many, heads, -1, dim),
            keys[:many, :, where],
            values[:many, :, where],
            self._bias[layer, :many, :, :, mask],
            scale=scale,
        )
        asked, out, lse = asked.reshape(many, -1, dim), out.reshape(many, -1, dim), lse.reshape(many, -1)
        for seat in self._feeding:
            if seat.reading is not None and layer in seat.reading.counted:
                mine = slice(seat.row, seat.row + 1)
                seat.reading.saw(layer, asked[mine, :, None], lse[mine, :, None], scale)
        if self._rows is not None:
            out = out.index_select(0, self._rows)
        return out.transpose(0, 1)[None]


class Lanes:
    """All lanes of a batch."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}

    def take(self, cache: Any) -> Seat:
        """A request sits down with its context, of which `can_sit` is true; the cache is not needed after it."""
        keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
        return self.seat(keys, values)

    def seat(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Seat:
        """A request sits down with its context, of which there is a copy from then on.

        Args:
            keys, values: ``[1, H, S, d]`` of each layer, keys after RoPE.
        """
        return self._of(keys[0].shape[2] + 1).take(keys, values)

    def leave(self, seat: Seat) -> None:
        """A request goes."""
        seat.lane.leave(seat)
        if seat.lane.is_empty:
            del self._lanes[seat.lane.capacity]

    def with_room(self, seat: Seat) -> Seat:
        """The seat of a request whose next token fits; another one, where it has outgrown its lane."""
        if seat.length < seat.lane.capacity:
            return seat
        moved = self._of(seat.length + 1).take(*seat.lane.context(seat))
        if seat.reading is not None:
            moved.lane.lead(moved, seat.reading)
        self.leave(seat)
        return moved

    def begin(self, seats: Sequence[Seat]) -> list[tuple[Lane, list[int]]]:
        """These feed one token each in the next pass.

        Returns:
            the lanes they sit in, and of each which of ``seats``, by number.
        """
        by_lane: dict[int, list[int]] = {}
        for number, seat in enumerate(seats):
            by_lane.setdefault(seat.lane.capacity, []).append(number)
        found = [(self._lanes[capacity], sorted(mine, key=lambda n: seats[n].row)) for capacity, mine in by_lane.items()]
        for lane, mine in found:
            lane.begin([seats[n] for n in mine])
        return found

    def _of(self, length: int) -> Lane:
        capacity = max(_SHORTEST, 1 << (length - 1).bit_length())
        return self._lanes.setdefault(capacity, Lane(capacity))


def _zeros(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros, of which the system gives pages as they are written to, and has all of them back when they go. What malloc gives
    may stay with the process, scattered."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(size) * dtype.itemsize, **_OWN), dtype=dtype).view(size)
