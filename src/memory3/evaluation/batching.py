"""Batches of items of about equal lengths: large ones, smaller when memory runs out.

Sizes that are tried against one another settle on too small ones: the first batches also encode memories for the first time,
so that one of 4 once looked no slower than one of 8 and a run of hours took twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

__all__ = ["Batcher"]

T = TypeVar("T")
R = TypeVar("R")

#: Larger batches gain nothing on two cores, and hold gigabytes where five references stand in every prompt.
_MOST = 32
_WINDOW = 512


class Batcher:
    """Cuts items into batches and runs them.

    Attributes:
        size: of the next batch.
    """

    def __init__(self, size: int | None = None) -> None:
        """``size``: at first; None: as large as is of use."""
        self.size = _MOST if size is None else size

    def run(
        self, items: Sequence[T], work: Callable[[Sequence[T]], R], length: Callable[[T], int]
    ) -> Iterator[tuple[Sequence[T], R]]:
        """Every item once, in batches of about equal lengths, with what ``work`` makes of each batch.

        Args:
            items: what to work on.
            work: makes something of a batch; out of memory, it is tried again with half.
            length: of an item; those of like length go together.
        """
        for start in range(0, len(items), _WINDOW):
            rest = sorted(items[start : start + _WINDOW], key=length, reverse=True)
            while rest:
                batch = rest[: self.size]
                try:
                    result = work(batch)
                except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                    if len(batch) == 1 or not _out_of_memory(error):
                        raise
                    self.size = max(1, len(batch) // 2)
                    continue
                rest = rest[len(batch) :]
                yield batch, result


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
