"""`BaseEngine`: what all engines do with requests, whatever runs the model: they take them within bounds, let those go that
nobody waits for, and tell what comes of them. An engine adds how prompts are made and how passes are run.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from memory3.answer import Usage
from memory3.choosing import Choice
from memory3.errors import EngineBusy, EngineClosed
from memory3.serving.handle import Handle
from memory3.serving.job import Cited, Event, Failed, Finished, Job, Observer, Text

__all__ = ["BaseEngine", "EngineState"]


@dataclass(frozen=True)
class EngineState:
    """What an engine is doing.

    Attributes:
        running: requests that have a place in the batch.
        waiting: requests that have none yet.
        looking: of the running ones, those that wait for their memories.
    """

    running: int
    waiting: int
    looking: int


class BaseEngine(ABC):
    """Serves requests until it is closed. Safe to call from any thread.

    An engine has a thread that runs passes, `_thread`, and begins it at the end of its making. All that is kept of a request
    is in its handle.
    """

    _thread: threading.Thread

    def __init__(self, *, slots: int, waiting: int, threads: int | None, observer: Observer | None) -> None:
        """
        Args:
            slots: requests in one pass at most.
            waiting: requests beside those, that wait for a place.
            threads: of torch, for passes; None: as many as the caller's.
            observer: is told what happens.
        """
        self._slots = slots
        self._most = slots + waiting
        self._threads = threads or torch.get_num_threads()
        self._observer = observer
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._here: dict[int, Handle] = {}  # by number, in the order they came
        self._draining = False
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def state(self) -> EngineState:
        """What it is doing now."""

    @property
    def threads(self) -> int:
        """Threads of torch that its passes run on."""
        return self._threads

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not (self._closed or self._draining)

    def submit(self, job: Job, tell: Callable[[Event], None] | None = None) -> Handle:
        """Take a request.

        Args:
            job: what is asked.
            tell: is called with every event, in a thread of the engine: it has to be quick. None: the handle keeps them.

        Raises:
            EngineBusy: as many requests are waiting as may.
            EngineClosed: it takes no more.
        """
        handle = Handle(next(self._numbers), job, tell)
        with self._changed:
            if self._closed or self._draining:
                raise EngineClosed("the server is shutting down: ask another, or later")
            if len(self._here) >= self._most:
                raise EngineBusy(f"{len(self._here)} requests are being answered or wait: ask again in a moment")
            self._here[handle.number] = handle
            self._changed.notify_all()  # from now on it may be cancelled, or its time be over
        self._open(handle)
        return handle

    def drain(self, seconds: float) -> bool:
        """Take no more requests, and wait for those that are here. Returns whether all of them ended in time."""
        until = time.perf_counter() + seconds
        with self._changed:
            self._draining = True
            while self._here:
                left = until - time.perf_counter()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.5))
        return True

    def close(self) -> None:
        """End everything. Requests that are not answered fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._close_others()
        self._thread.join()

    # ---- what an engine adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def _open(self, handle: Handle) -> None:
        """Have a request's prompt made in another thread. At once."""

    @abstractmethod
    def _close_others(self) -> None:
        """End the threads beside the one that runs passes."""

    def _stop(self, handle: Handle, reason: str) -> None:
        """End a request where it stands."""
        self._end(handle, reason)

    def _let_go(self, handle: Handle) -> None:  # noqa: B027 (not all have more to do)
        """A request leaves. Held: `_changed`."""

    # ---- for the thread that runs passes -----------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Let those go that nobody waits for any more, or whose time is over."""
        now = time.perf_counter()
        with self._changed:
            there = list(self._here.values())
        for handle in there:
            seconds = handle.job.seconds
            if handle.cancelled:
                self._stop(handle, "cancelled")
            elif seconds is not None and now - handle.came > seconds:
                self._stop(handle, "time")

    def _say(self, handle: Handle, choice: Choice, *, ends: bool, is_last: bool) -> str:
        """Tell of a token that was chosen.

        Args:
            handle: of the request.
            choice: the token.
            ends: whether it ends the answer, and is no part of it.
            is_last: whether the answer has the length that was asked for.

        Returns:
            why the answer ends with it; empty where it goes on.
        """
        answer = handle.answer
        assert answer is not None
        if not handle.first:
            handle.first = time.perf_counter()
            if self._observer is not None:
                self._observer.first_token(handle.first - handle.came)
        handle.tell(Text("" if ends else answer.text.add(choice.token), choice))
        if ends or answer.text.stopped:
            return "stop"
        if is_last:
            return "length"
        self._cite(handle)
        return ""

    def _cite(self, handle: Handle) -> None:
        """Tell what the stretches that are complete were read from."""
        answer = handle.answer
        assert answer is not None
        for stretch in answer.text.stretches[handle.cited :]:
            citations = answer.citations(stretch.first, stretch.last)
            if citations:
                handle.tell(Cited(stretch, citations))
        handle.cited = len(answer.text.stretches)

    def _end(self, handle: Handle, reason: str) -> None:
        """A request has its answer, as far as it goes."""
        answer = handle.answer
        try:
            if answer is None:  # it had not begun
                event = Finished(reason, "", [], Usage(0, 0), "", [], 0.0, time.perf_counter() - handle.came)
            else:
                more = answer.text.finish()
                if more:
                    handle.tell(Text(more, None))
                self._cite(handle)
                event = answer.finished(reason, handle.came, handle.first)
        except Exception as error:  # its bank may be gone by now
            self._fail(handle, error)
            return
        self._leave(handle, event, reason, event.usage)

    def _fail(self, handle: Handle, error: Exception) -> None:
        """A request cannot be answered. From any thread."""
        self._leave(handle, Failed(error), "failed", None)

    def _fail_all(self, error: Exception) -> None:
        """None of the requests that are here can be answered."""
        with self._changed:
            there = list(self._here.values())
        for handle in there:
            self._fail(handle, error)

    def _leave(self, handle: Handle, event: Event, reason: str, usage: Usage | None) -> None:
        with self._changed:
            there = self._here.pop(handle.number, None) is not None
            if there:
                self._let_go(handle)
            self._changed.notify_all()
        if not there:
            return
        answer, handle.answer = handle.answer, None  # what is kept of it goes
        if answer is not None:
            answer.leave()
        if self._observer is not None:
            self._observer.finished(reason, usage)
        handle.tell(event)
