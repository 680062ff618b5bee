"""`Handle`: one request that an engine works on."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator

from memory3.asking import Asked
from memory3.recall.batching import Stream
from memory3.serving.job import Event, Failed, Finished, Job
from memory3.serving.stretches import GrowingText
from memory3.types import Reference

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
        asked: its prompt as tokens; None until that is made.
        stream: of its tokens, while it is in the engine.
        text: of its answer so far.
        known: the references that it has read, by id.
    """

    def __init__(self, number: int, job: Job, tell: Callable[[Event], None] | None) -> None:
        self.number = number
        self.job = job
        self.asked: Asked | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.tell = tell or self._events.put
        self.cancelled = False
        self.came = time.perf_counter()
        self.first = 0.0
        self.stream: Stream | None = None
        self.text: GrowingText | None = None
        self.known: dict[str, Reference] = {}
        self.cited = 0

    def begin(self, asked: Asked, stream: Stream, text: GrowingText) -> None:
        """Its prompt was made: what it is, what runs it, and what its answer grows in."""
        self.asked, self.stream, self.text = asked, stream, text

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
