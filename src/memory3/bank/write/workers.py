"""Threads that encode while the caller's reads, splits and commits. Knows no model and no bank.

On a CPU two threads that encode different references, each alone, have nothing to wait for from one another, and what one of
them cannot do on several cores, such as packing, costs the other nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event
from types import TracebackType
from typing import TypeVar

import torch

from memory3.bank.protocol import MemoryWriter
from memory3.encode.stopping import check_stopped, stoppable

__all__ = ["Workers", "working"]

T = TypeVar("T")


@contextmanager
def working(m3: MemoryWriter, *, lazy: bool) -> Iterator[Workers | None]:
    """Workers for as long as the block runs: as many as a writer says that may encode at once, as ``encoders``; None where
    it says nothing, or one, or nothing is encoded.

    Args:
        m3: who encodes.
        lazy: memories are left out.
    """
    number = int(getattr(m3, "encoders", 1))
    if lazy or number < 2:
        yield None
        return
    with Workers(number) as workers:
        yield workers


class Workers:
    """Some threads, each with one of torch's, for the length of a ``with`` block.

    At its end what has not begun is dropped, and what has begun ends at its next layer.
    """

    def __init__(self, number: int) -> None:
        """
        Args:
            number: of threads.
        """
        self._stop = Event()
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="memory3-write", initializer=_alone)
        # Torch keeps the last number that was set as the default of threads to come: so all begin now, and it is set again.
        own, begun = torch.get_num_threads(), Barrier(number + 1)
        for _ in range(number):
            self._pool.submit(begun.wait)
        begun.wait()
        torch.set_num_threads(own)

    def submit(self, work: Callable[[], T]) -> Callable[[], T]:
        """Have something computed, after what was submitted before.

        Args:
            work: what is to be done.

        Returns:
            Waits for it, and returns what it returns, or raises what it raises.
        """

        def run() -> T:
            with stoppable(self._stop):
                check_stopped()
                return work()

        return self._pool.submit(run).result

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # what a thread is asked for first, it keeps
