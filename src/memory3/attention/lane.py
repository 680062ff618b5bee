"""Requests that decode side by side: one buffer a layer holds what each of them reads, so that one kernel call serves all.

    keys of a layer, row r, head h     (unused) | memories, M | context, S_r | room
                                                              ^ front

Every request has a row. Its memories end where its context starts, at the same column in all rows; a mask tells what of a
row is its own. The query heads of one KV head stand as its further queries, so that no key is read twice. A `Lane` holds
contexts of up to one length, and `Lanes` has a lane for every power of two: a short request beside a long one is padded
to twice its length at most.

Buffers are not cleared when they are made: that would cost more than all that is written into them. Instead, each row is
cleared as far as a kernel is about to look. A masked column has weight 0, but 0 times NaN is NaN.

Exact twin: `memory3.attention.packed`, request by request.

Symbols: L layers, R rows, n rows that hold a request, H KV heads, A query heads, G = A / H, M memory pairs of a head, S_r
context length, d head dimension, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from transformers.cache_utils import DynamicLayer

from memory3.attention.attend import attention_with_lse, masked
from memory3.attention.kv_cache import GrowingLayer
from memory3.types import MemoryBatch

__all__ = ["Lane", "Lanes", "Leading", "Seat", "can_sit"]

#: Tokens of context that the shortest lane has room for.
_SHORTEST = 256
#: Rows that a lane begins with.
_ROWS = 4
#: Bytes that a lane may hold while nobody sits in it: to make it anew for every request would scatter what the process holds.
_KEPT = 256 << 20
#: Columns that are cleared at once.
_STRETCH = 64


class Leading(Protocol):
    """Memories that stand in front of a request; `memory3.attention.reading.Reading` is one."""

    @property
    def batch(self) -> MemoryBatch:
        """What they are, of one chunk."""

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
        self.clean = (0, 0)  # the columns that hold numbers of this request or zeros, from the front on


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
        self._front = 0
        self._keys: list[torch.Tensor] = []  # [R, H, W, d] of each layer
        self._values: list[torch.Tensor] = []
        self._bias = torch.empty(0)  # [L, R, H, 1, W]
        self._feeding: list[Seat] = []
        self._rows: torch.Tensor | None = None  # of `_feeding`; None: they are the first rows, in order
        self._columns = torch.empty(0)
        self._at = torch.empty(0)
        self._end = 0

    @property
    def is_empty(self) -> bool:
        """Whether no request sits here."""
        return not any(self._seats)

    @property
    def nbytes(self) -> int:
        """Bytes of its buffers."""
        return sum(one.nbytes for one in [*self._keys, *self._values, self._bias])

    # ---- coming and going --------------------------------------------------------------------------------------------

    def take(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Seat:
        """A request sits down.

        Args:
            keys, values: its context, ``[1, H, S, d]`` of each layer.
        """
        row = next((n for n, seat in enumerate(self._seats) if seat is None), len(self._seats))
        if row == len(self._seats):
            self._lay(2 * row or _ROWS, self._front, keys, values)
        seat = Seat(self, row)
        self._seats[row] = seat
        seat.length = keys[0].shape[2]
        where = slice(self._front, self._front + seat.length)
        for buffers, given in ((self._keys, keys), (self._values, values)):
            for buffer, one in zip(buffers, given, strict=True):
                buffer[row, :, where] = one[0]
        self._bias[:, row, :, :, where] = 0
        seat.clean = (0, seat.length)
        return seat

    def leave(self, seat: Seat) -> None:
        """A request goes; its row is free."""
        self._bias[:, seat.row] = masked(self._bias.dtype)
        self._seats[seat.row] = None

    def context(self, seat: Seat) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values ``[1, H, S, d]`` of each layer of a request's context; views."""
        where = slice(self._front, self._front + seat.length)
        keys, values = ([buffer[seat.row, None, :, where] for buffer in part] for part in (self._keys, self._values))
        return keys, values

    def lead(self, seat: Seat, reading: Leading) -> None:
        """Put the memories of one chunk in front of a request, in place of those that stood there."""
        layers = reading.batch.layers
        most = max((layer.keys.shape[2] for layer in layers.values()), default=0)
        if most > self._front:
            self._lay(len(self._seats), most + most // 2)  # the next memories may need more
        widths = {number: layer.keys.shape[2] for number, layer in layers.items()}
        self._clear(seat, -most, seat.length, widths)
        front = slice(0, self._front)
        self._bias[:, seat.row, :, :, front] = masked(self._bias.dtype)
        for number, layer in layers.items():
            where = slice(self._front - layer.keys.shape[2], self._front)
            self._keys[number][seat.row, :, where] = layer.keys[0]
            self._values[number][seat.row, :, where] = layer.values[0]
            self._bias[number, seat.row, :, :, where] = 0 if layer.bias is None else layer.bias[0]
        seat.widths = widths
        seat.reading = reading

    def _lay(self, rows: int, front: int, keys: Sequence[torch.Tensor] = (), values: Sequence[torch.Tensor] = ()) -> None:
        """New buffers of so many rows and columns in front; those who sit move along. ``keys``, ``values``: of whom the
        first take their shape.
        """
        old_front, old_bias, there = self._front, self._bias, [seat for seat in self._seats if seat is not None]
        whole = front + self.capacity
        olds = [*(self._keys or keys), *(self._values or values)]
        sizes = [(rows, old.shape[1], whole, old.shape[3]) for old in olds]
        # In one piece: of that the system gives pages as they are written to, and has all of them back when it goes.
        pieces = olds[0].new_empty(sum(map(math.prod, sizes))).split([math.prod(size) for size in sizes])
        news = [piece.view(size) for piece, size in zip(pieces, sizes, strict=True)]
        for seat in there:
            to, of = (slice(at + seat.clean[0], at + seat.clean[1]) for at in (front, old_front))
            for new, old in zip(news, olds, strict=True):
                new[seat.row, :, to] = old[seat.row, :, of]
        self._keys, self._values = news[: len(olds) // 2], news[len(olds) // 2 :]
        heads, dtype = self._keys[0].shape[1], self._keys[0].dtype
        self._bias = self._keys[0].new_full((len(self._keys), rows, heads, 1, whole), masked(dtype))
        for seat in there:
            to, of = (slice(at + seat.clean[0], at + seat.clean[1]) for at in (front, old_front))
            self._bias[:, seat.row, :, :, to] = old_bias[:, seat.row, :, :, of]
        self._front = front
        self._seats += [None] * (rows - len(self._seats))

    def _clear(self, seat: Seat, first: int, end: int, filled: Mapping[int, int] = MappingProxyType({})) -> None:
        """Let a row hold nothing but its request's numbers and zeros from column ``first`` to before ``end``, counted from
        the front.

        Args:
            filled: for layers, how many columns before the front are written anyway, right after this.
        """
        before, behind = seat.clean
        if first >= before and end <= behind:
            return
        first = max(-self._front, min(before, first // _STRETCH * _STRETCH))
        end = min(self.capacity, max(behind, -(-end // _STRETCH) * _STRETCH))
        for number, buffers in enumerate(zip(self._keys, self._values, strict=True)):
            for start, stop in ((first, min(before, -filled.get(number, 0))), (behind, end)):
                if stop > start:
                    for buffer in buffers:
                        buffer[seat.row, :, self._front + start : self._front + stop] = 0
        seat.clean = (first, end)

    # ---- a pass ------------------------------------------------------------------------------------------------------

    def begin(self, seats: Sequence[Seat]) -> None:
        """These feed one token each in the next pass, in this order."""
        self._feeding = list(seats)
        rows = [seat.row for seat in seats]
        self._at = torch.tensor(rows)
        self._rows = None if rows == list(range(len(rows))) else self._at
        self._columns = torch.tensor([self._front + seat.length for seat in seats])
        self._bias[:, self._at, :, :, self._columns] = 0
        for seat in seats:
            seat.length += 1
        longest = max(seat.length for seat in seats)
        widest = max((width for seat in seats for width in seat.widths.values()), default=0)
        for seat in seats:
            self._clear(seat, -widest, longest)
        self._end = self._front + longest

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
        keys[self._at, :, self._columns] = key[0].transpose(0, 1)
        values[self._at, :, self._columns] = value[0].transpose(0, 1)
        asked = query[0].transpose(0, 1).contiguous()  # [T, A, d]; what is kept of it must not keep the whole pass
        many, heads, dim = len(self._feeding), keys.shape[1], query.shape[3]
        if self._rows is not None:  # rows between them wait for something: what these would ask, nobody looks at
            many = max(seat.row for seat in self._feeding) + 1
            asked = asked.new_zeros(many, *asked.shape[1:]).index_copy_(0, self._rows, asked)
        start = self._front - max(seat.widths.get(layer, 0) for seat in self._feeding)
        where = slice(start, self._end)
        out, lse = attention_with_lse(
            asked.reshape(many, heads, -1, dim),
            keys[:many, :, where],
            values[:many, :, where],
            self._bias[layer, :many, :, :, where],
            scale=scale,
        )
        asked, out, lse = asked.reshape(many, -1, dim), out.reshape(many, -1, dim), lse.reshape(many, -1)
        for seat in self._feeding:
            if seat.reading is not None and layer in seat.widths:
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
        if seat.lane.is_empty and seat.lane.nbytes > _KEPT:
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
