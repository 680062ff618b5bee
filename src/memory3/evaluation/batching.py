"""Batch sizes found by trying: larger while that is faster, smaller when memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

__all__ = ["Batcher"]

T = TypeVar("T")
R = TypeVar("R")

#: A larger batch must be this much faster to be worth its memory.
_WORTH = 1.05
_WINDOW = 512


class Batcher:
    """Cuts items into batches and runs them.

    Attributes:
        size: of the next batch.
    """

    def __init__(self, size: int | None = None, most: int = 64) -> None:
        """``size``: fixed; None: found, from 4 up to ``most``."""
        self.size = 4 if size is None else size
        self._most = self.size if size is not None else most
        self._rate = 0.0
        self._seen = 0
        self._settled = size is not None

    def run(
        self, items: Sequence[T], work: Callable[[Sequence[T]], R], length: Callable[[T], int]
    ) -> Iterator[tuple[Sequence[T], R]]:
        """Every item once, in batches of about equal lengths, with what ``work`` makes of each batch."""
        for start in range(0, len(items), _WINDOW):
            rest = sorted(items[start : start + _WINDOW], key=length, reverse=True)
            while rest:
                batch = rest[: self.size]
                started = time.perf_counter()
                try:
                    result = work(batch)
                except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                    if len(batch) == 1 or not _out_of_memory(error):
                        raise
                    self.size, self._settled = max(1, len(batch) // 2), True
                    continue
                rest = rest[len(batch) :]
                if len(batch) == self.size:
                    self._learn(sum(map(length, batch)) / (time.perf_counter() - started))
                yield batch, result

    def _learn(self, rate: float) -> None:
        """After two batches of one size (the first warms up): on to the double, or back to the half if that was no slower."""
        if self._settled:
            return
        self._seen += 1
        if self._seen < 2:
            return
        self._seen = 0
        if self._rate and rate < self._rate * _WORTH:
            self.size, self._settled = self.size // 2, True
        elif self.size * 2 > self._most:
            self._settled = True
        else:
            self.size, self._rate = self.size * 2, rate


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
