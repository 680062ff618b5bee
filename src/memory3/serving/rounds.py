"""`Rounds`: a thread that works beside passes: whatever waits when it looks is done in one go.

`together` is how a go is done: what is alike at once, and where that fails each alone, so that one fails no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from memory3.serving.threads import start

__all__ = ["Rounds", "together"]

T = TypeVar("T")


class Rounds(Generic[T]):
    """Queues and the thread that works them off, with torch on one thread: passes have the others."""

    def __init__(self, name: str, *work: Callable[[Sequence[T]], None]) -> None:
        """
        Args:
            name: of the thread.
            work: what is done with all that waits in a queue, for each queue. The first that holds something has its turn.
                It must not raise.
        """
        self._work = work
        self._queues: list[list[T]] = [[] for _ in work]
        self._changed = threading.Condition()
        self._closed = False
        self._thread = start(self._run, name, 1)

    def put(self, queue: int, items: Iterable[T]) -> None:
        """Let something wait in a queue.

        Args:
            queue: its number.
            items: what waits.
        """
        with self._changed:
            self._queues[queue].extend(items)
            self._changed.notify_all()

    def close(self) -> list[T]:
        """End after what is being done now. Returns what waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        return [item for queue in self._queues for item in queue]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or any(self._queues)):
                    self._changed.wait()
                if self._closed:
                    return
                number = next(n for n, queue in enumerate(self._queues) if queue)
                items, self._queues[number] = self._queues[number], []
            self._work[number](items)


def together(
    items: Sequence[T],
    key: Callable[[T], Hashable],
    work: Callable[[Sequence[T]], None],
    failed: Callable[[T, Exception], None],
) -> None:
    """Work on items that are alike at once; where that fails, on each alone.

    Args:
        items: in any order.
        key: equal for those that are alike.
        work: on those. What it changes before it fails must not be in its way when it is called again.
        failed: is told of an item that fails alone.
    """
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    for alike in groups.values():
        try:
            work(alike)
        except Exception as error:
            if len(alike) == 1:
                failed(alike[0], error)
                continue
            for item in alike:
                together([item], key, work, failed)
