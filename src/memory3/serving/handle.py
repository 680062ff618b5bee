"""`Handle`: one request that an engine works on."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator

from memory3.serving.answering import Answering
from memory3.serving.job import Event, Failed, Finished, Job

__all__ = ["Handle"]


class Handle:
    """One request that an engine works on. Iterate over it for its events; the last is `Finished` or `Failed`.

    Attributes:
        number: of the request, counted by the engine.
        tell: is called with every event.
        cancelled: whether it is to end where it stands.
        came: moment of `time.perf_counter` at which it was submitted.
        first: the same of its first token; 0: it has none.
        cited: how many stretches of its answer were cited.
        job: what was asked.
        answer: in the making; None until the prompt is made, and again after the end.
    """

    def __init__(self, number: int, job: Job, tell: Callable[[Event], None] | None) -> None:
        self.number = number
        self.job = job
        self.answer: Answering | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.tell = tell or self._events.put
        self.cancelled = False
        self.came = time.perf_counter()
        self.first = 0.0
        self.cited = 0

    def cancel(self) -> None:
        """End it where it stands: it leaves the batch before the next pass."""
        self.cancelled = True

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Finished | Failed):
                return

    def result(self) -> Finished:
        """Wait for the end.

        Raises:
            Memory3Error: it could not be answered.
        """
        for event in self:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                return event
        raise AssertionError("events end with Finished or Failed")
