"""`Engine`: many requests at once on one model, each with its own bank, memories and clock (continuous batching).

    with Engine(m3) as engine:
        handle = engine.submit(Job(prompt="...", bank=bank))
        for event in handle: ...            # Text, Cited, Finished

Two threads. One runs forward passes, in each of which every request that is ready feeds what it has: the next part of a
prompt, or one token. The other looks things up (`memory3.serving.lookup`): it embeds, searches, reads and lays out, for
all requests that wait for it together. A request that waits pauses; the others go on. Tokens are those of
`Memory3.generate` for that request alone.

Knows no network. All queues are bounded: `submit` refuses what does not fit.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from memory3.answer import Usage
from memory3.asking import Asked, cite
from memory3.errors import EngineBusy, EngineClosed, Memory3Error, ServingError
from memory3.llm import Memory3
from memory3.recall.batching import Batch, Stream
from memory3.serving.handle import Handle
from memory3.serving.job import Cited, Event, Failed, Finished, Job, Observer, Text
from memory3.serving.lookup import Lookup
from memory3.serving.threads import start
from memory3.types import Citation

__all__ = ["AnyEngine", "Engine", "EngineState"]


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


class AnyEngine(Protocol):
    """What a server needs of an engine. `Engine` is one, on transformers; `memory3.vllm.engine.VllmEngine` another."""

    @property
    def state(self) -> EngineState:
        """What it is doing now."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""

    @property
    def threads(self) -> int:
        """Threads of torch that its passes run on."""

    def submit(self, job: Job, tell: Callable[[Event], None] | None = None) -> Handle:
        """Take a request.

        Args:
            job: what is asked.
            tell: is called with every event, in a thread of the engine. None: the handle keeps them.
        """

    def drain(self, seconds: float) -> bool:
        """Take no more requests, and wait for those that are here. Returns whether all of them ended in time."""

    def close(self) -> None:
        """End everything. Requests that are not answered fail."""


class Engine:
    """Serves requests until it is closed. Safe to call from any thread."""

    def __init__(
        self,
        m3: Memory3,
        *,
        slots: int = 16,
        waiting: int = 64,
        prompt_tokens: int = 256,
        threads: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            m3: the model. It must not change while it is served.
            slots: requests in one pass at most.
            waiting: requests beside those, that wait for a place.
            prompt_tokens: of all prompts together in one pass at most, so that a long one does not hold up the others.
            threads: of torch, for passes; None: as many as the caller's. It is fastest where no other thread of the process
                has run torch on several (`memory3.serving.threads`).
            observer: is told what happens.
        """
        self._m3 = m3
        self._slots = slots
        self._most = slots + waiting
        self._prompt_tokens = prompt_tokens
        self._observer = observer
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._opening: list[Handle] = []  # not yet in the batch, in the order they came
        self._running: list[Handle] = []
        self._is_ready: set[int] = set()  # numbers of those that may feed
        self._draining = False
        self._closed = False
        self._batch = Batch(m3.model, m3.geometry)
        self._lookup = Lookup(m3, self._ready, self._fail, observer)
        self._threads = threads or torch.get_num_threads()
        self._lookup.start()
        self._thread = start(self._run, "memory3-engine", self._threads)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> EngineState:
        """What it is doing now."""
        with self._changed:
            looking = sum(one.number not in self._is_ready for one in self._running)
            return EngineState(len(self._running), len(self._opening), looking)

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
            busy = len(self._opening) + len(self._running)
            if busy >= self._most:
                raise EngineBusy(f"{busy} requests are being answered or wait: ask again in a moment")
            self._opening.append(handle)
        self._lookup.open(handle)
        return handle

    def drain(self, seconds: float) -> bool:
        """Take no more requests, and wait for those that are here. Returns whether all of them ended in time."""
        until = time.perf_counter() + seconds
        with self._changed:
            self._draining = True
            while self._opening or self._running:
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
        self._lookup.close()
        self._thread.join()

    # ---- the other thread says ---------------------------------------------------------------------------------------

    def _ready(self, handles: Sequence[Handle]) -> None:
        """Requests have what they read, and may feed."""
        with self._changed:
            self._is_ready.update(one.number for one in handles)
            self._changed.notify_all()

    def _fail(self, handle: Handle, error: Exception) -> None:
        self._leave(handle, Failed(error), "failed", None)

    # ---- passes ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._batch:
            while True:
                self._sweep()
                self._batch.sweep()
                with self._changed:
                    if self._closed:
                        break
                    self._admit()
                    ready = [one for one in self._running if one.number in self._is_ready]
                    if not ready:
                        self._changed.wait(0.1 if self._running or self._opening else None)
                        continue
                self._step(ready)
        for handle in [*self._running, *self._opening]:
            self._fail(handle, EngineClosed("the server was shut down before this was answered"))

    def _sweep(self) -> None:
        """Let those go that nobody waits for any more, or whose time is over."""
        now = time.perf_counter()
        with self._changed:
            there = [*self._running, *self._opening]
        for handle in there:
            seconds = handle.job.seconds
            if handle.cancelled:
                self._end(handle, "cancelled")
            elif seconds is not None and now - handle.came > seconds:
                self._end(handle, "time")

    def _admit(self) -> None:
        """Let requests in that fit and have what they read, in the order they came. Held: `_changed`."""
        for handle in list(self._opening):
            if len(self._running) >= self._slots:
                break
            if handle.number in self._is_ready:
                self._opening.remove(handle)
                self._running.append(handle)

    def _step(self, ready: Sequence[Handle]) -> None:
        by_stream = {id(one.stream): one for one in ready}
        streams = [one.stream for one in ready if one.stream is not None]
        # Decoding first: what is left of the pass, prompts share.
        streams.sort(key=lambda stream: not stream.is_prompt_read)
        unread = sum(stream.pending for stream in streams if not stream.is_prompt_read)
        try:
            chosen = self._batch.step(streams, self._prompt_tokens)
        except Exception as error:  # the model's own code: its requests fail, the server lives
            for handle in ready:
                self._fail(handle, error if isinstance(error, Memory3Error) else ServingError(f"the model failed: {error}"))
            return
        if self._observer is not None:
            left = sum(stream.pending for stream in streams if not stream.is_prompt_read)
            self._observer.tokens(unread - left, len(chosen))
        waiting = []
        for stream in chosen:
            handle = by_stream[id(stream)]
            if not handle.first:
                handle.first = time.perf_counter()
                if self._observer is not None:
                    self._observer.first_token(handle.first - handle.came)
            if self._say(handle, stream):
                continue
            stream.begin()
            if stream.needs_memories:
                waiting.append(handle)
            elif stream.is_near_renewal:
                self._lookup.prefetch(handle)
        if waiting:
            with self._changed:
                self._is_ready.difference_update(one.number for one in waiting)
            self._lookup.renew(waiting)

    def _say(self, handle: Handle, stream: Stream) -> bool:
        """Tell of the token that was chosen. Returns whether the answer has ended with it."""
        text, choice = handle.text, stream.chosen[-1]
        assert text is not None
        ended = choice.token in stream.chooser.ends
        handle.tell(Text("" if ended else text.add(choice.token), choice))
        if ended or text.stopped:
            self._end(handle, "stop")
            return True
        if stream.is_done:
            self._end(handle, "length")
            return True
        if len(text.stretches) > handle.cited:
            self._cite(handle, stream)
        return False

    def _cite(self, handle: Handle, stream: Stream) -> None:
        """Tell what the stretches that are complete were read from."""
        text = handle.text
        assert text is not None
        stream.settle()
        for stretch in text.stretches[handle.cited :]:
            citations = self._citations(handle, stream.shares(stretch.first, stretch.last))
            if citations:
                handle.tell(Cited(stretch, citations))
        handle.cited = len(text.stretches)

    @staticmethod
    def _citations(handle: Handle, shares: Sequence[tuple[str, float, float]]) -> list[Citation]:
        return [cite(handle.known[name], share, score) for name, share, score in shares]

    def _end(self, handle: Handle, reason: str) -> None:
        """A request has its answer, as far as it goes."""
        stream, text, asked = handle.stream, handle.text, handle.asked
        if stream is None or text is None or asked is None:  # it had not begun
            usage = Usage(0, 0)
            event: Event = Finished(reason, "", [], usage, "", [], 0.0, time.perf_counter() - handle.came)
            self._leave(handle, event, reason, usage)
            return
        try:
            more = text.finish()
            if more:
                handle.tell(Text(more, None))
            self._cite(handle, stream)
            event = self._finished(handle, stream, asked, reason)
        except Exception as error:  # its bank may be gone by now
            self._fail(handle, error)
            return
        self._leave(handle, event, reason, event.usage)

    def _finished(self, handle: Handle, stream: Stream, asked: Asked, reason: str) -> Finished:
        said, citations = stream.answer, list(asked.passages or [])
        usage = Usage(len(stream.prompt), len(said))
        if stream.memory is not None:
            did = stream.memory.statistics
            usage = Usage(len(stream.prompt), len(said), did.recalls, did.references, did.bytes_read)
            citations = self._citations(handle, stream.memory.shares())
        elif asked.passages is not None:
            read = sum(len(citation.text.encode()) for citation in citations)
            usage = Usage(len(stream.prompt), len(said), 1, len(citations), read)
        now = time.perf_counter()
        first = (handle.first or now) - handle.came
        text = handle.text.text if handle.text else ""
        by = "attention" if asked.passages is None else "retrieval"
        return Finished(reason, text, citations, usage, asked.note, said, first, now - handle.came, by)

    def _leave(self, handle: Handle, event: Event, reason: str, usage: Usage | None) -> None:
        with self._changed:
            there = handle in self._running or handle in self._opening
            if handle in self._running:
                self._running.remove(handle)
            if handle in self._opening:
                self._opening.remove(handle)
            self._is_ready.discard(handle.number)
            self._changed.notify_all()
        if not there:
            return
        stream, handle.stream = handle.stream, None  # its context and memories go
        if stream is not None:
            stream.leave()
        if self._observer is not None:
            self._observer.finished(reason, usage)
        handle.tell(event)
