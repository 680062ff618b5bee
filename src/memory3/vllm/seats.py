"""Rows of single tokens from step to step: each sits in a lane (`memory3.attention.lane`), where its memories and a copy of
its context lie side by side, so that one kernel call a layer serves all of them.

The paged cache has the context in blocks that lie anywhere, with keys turned. To gather it anew for every token costs more
than to read it. So it is copied once, when a row begins to decode, and then grows by what each step writes. The copy is
dropped when the row is computed in any other way: when its tokens are computed anew, or when it has ended.

Symbols: R rows, S context length, H KV heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memory3.attention.lane import Lane, Lanes, Seat
from memory3.types import MemoryBatch
from memory3.vllm.paying import Payments
from memory3.vllm.step import Name, Step

__all__ = ["Chunk", "Seats", "chunk_of"]

#: What tokens read, by how far that moves, and how many tokens of the prefix with it.
Chunk = tuple[tuple[Name, ...], int, int]


def chunk_of(row: Any, span: int) -> Chunk:
    """What a span of a row reads.

    Args:
        row: `memory3.vllm.step.Row`.
        span: which of its spans.
    """
    names = row.spans[span].names if row.spans else ()
    return names, row.moved, row.missing


@dataclass(frozen=True)
class _Lead:
    """Memories in front of a seat, where nobody asks who was looked at."""

    batch: MemoryBatch
    counted: frozenset[int] = frozenset()

    def saw(self, layer: int, query: torch.Tensor, lse: torch.Tensor, scale: float) -> None:
        """See `memory3.attention.reading.Reading.saw`."""


class Seats:
    """The seats of a worker's rows."""

    def __init__(
        self,
        laid: Callable[[Sequence[Chunk]], MemoryBatch],
        context: Callable[[torch.Tensor, int], tuple[list[torch.Tensor], list[torch.Tensor]]],
        payments: Payments | None = None,
    ) -> None:
        """
        Args:
            laid: memories of chunks, laid out.
            context: of a row, by its blocks and its length S: keys and values ``[1, H, S, d]`` of each layer, as the paged
                cache has them.
            payments: counts attention; None: nobody asks for it.
        """
        self._laid = laid
        self._context = context
        self._payments = payments
        self._lanes = Lanes()
        self._seats: dict[str, Seat] = {}
        self._reads: dict[str, Chunk] = {}

    def __len__(self) -> int:
        return len(self._seats)

    def begin(self, step: Step, blocks: Sequence[torch.Tensor]) -> list[tuple[Lane, list[int]]]:
        """Rows of single tokens take their seats for a step, with what they read in front of them.

        Args:
            step: which rows there are.
            blocks: of each of its rows, int64 ``[B]``.

        Returns:
            the lanes, and which rows of the step feed in each.
        """
        for name in step.ended:
            self._leave(name)
            if self._payments is not None:
                self._payments.forget(name)
        for row in step.rows:
            seat = self._seats.get(row.request)
            if seat is not None and not (row.is_one and seat.length == row.start):
                self._leave(row.request)
        ones = [n for n, row in enumerate(step.rows) if row.is_one]
        ones.sort(key=lambda n: step.rows[n].request)  # the same whatever vLLM's order is
        for n in ones:
            self._sit(step.rows[n], blocks[n])
            if self._payments is not None:
                self._payments.fed(step.rows[n].request, step.rows[n].start)
        lanes = self._lanes.begin([self._seats[step.rows[n].request] for n in ones])
        return [(lane, [ones[k] for k in mine]) for lane, mine in lanes]

    def _sit(self, row: Any, blocks: torch.Tensor) -> None:
        name = row.request
        if name in self._seats:
            self._seats[name] = self._lanes.with_room(self._seats[name])
        else:
            self._seats[name] = self._lanes.seat(*self._context(blocks, row.start))
        chunk = chunk_of(row, 0)
        if self._reads.get(name) != chunk:
            seat = self._seats[name]
            batch = self._laid([chunk])
            names = [one for _, _, one in chunk[0]]
            seat.lane.lead(seat, _Lead(batch) if self._payments is None else self._payments.lead(name, batch, names))
            self._reads[name] = chunk

    def _leave(self, name: str) -> None:
        seat = self._seats.pop(name, None)
        self._reads.pop(name, None)
        if seat is not None:
            self._lanes.leave(seat)
