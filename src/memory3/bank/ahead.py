"""`Ahead`: a thread that fetches what will probably be read next, beside what the caller does.

A guess by a search is what the next search will find, most likely: who searches next waits for it, though not long. A guess by
names is worth less: it is fetched a few memories at a time, and given up as soon as a request waits for something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from threading import Lock
from typing import Any

__all__ = ["Ahead"]

#: For so many seconds a search waits for the guesses in front of it, which fetch most of what it will want.
_SECONDS = 5.0
#: Memories of a guess by names that are fetched at once, and bytes of one guess at most.
_AT_ONCE, MOST_BYTES = 4, 8 << 20


class Ahead:
    """Safe to share between threads. A guess is worth nothing if it fails: whoever needs it asks again, and is told."""

    def __init__(self, most: int = 4) -> None:
        """``most``: guesses that wait for the thread; others are left out."""
        self._most = most
        self._thread: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._guesses: list[Future[Any]] = []
        self._others: list[Future[Any]] = []
        self._waiting = 0
        self._closed = False

    def beside(self, work: Callable[[], Any]) -> None:
        """Do something in the thread, unless much is waiting there.

        Args:
            work: a guess by a search.
        """
        self._submit(work, settled=True)

    def names(self, reference_ids: Sequence[str], each_bytes: int, fetch: Callable[[list[str]], Any]) -> None:
        """Fetch memories by name, as long as no request waits.

        Args:
            reference_ids: the likeliest first.
            each_bytes: of a memory; together they are bounded.
            fetch: gets a few of them.
        """
        wanted = list(dict.fromkeys(reference_ids))[: MOST_BYTES // max(1, each_bytes)]

        def work() -> None:
            for start in range(0, len(wanted), _AT_ONCE):
                if self._waiting or not all(guess.done() for guess in self._guesses):
                    return
                fetch(wanted[start : start + _AT_ONCE])

        if wanted:
            self._submit(work, settled=False)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Somebody waits for what is done meanwhile: guesses by name end."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def settle(self) -> None:
        """Wait for the guesses by a search that are under way, though not long."""
        wait_for(self._guesses, _SECONDS)

    def close(self, *, wait: bool = False) -> None:
        """End the thread after what it is doing now.

        Args:
            wait: for that.
        """
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=wait, cancel_futures=True)

    def _submit(self, work: Callable[[], Any], *, settled: bool) -> None:
        with self._lock:
            self._guesses = [one for one in self._guesses if not one.done()]
            self._others = [one for one in self._others if not one.done()]
            if self._closed or len(self._guesses if settled else self._others) >= self._most:
                return
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="memory3-ahead")
            (self._guesses if settled else self._others).append(self._thread.submit(work))
