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

from collections.abc import Sequence

from memory3.errors import EngineClosed, Memory3Error, ServingError
from memory3.llm import Memory3
from memory3.recall.batching import Batch
from memory3.serving.base import BaseEngine, EngineState
from memory3.serving.handle import Handle
from memory3.serving.job import Observer
from memory3.serving.lookup import Lookup
from memory3.serving.streamed import Streamed
from memory3.serving.threads import start

__all__ = ["Engine"]


class Engine(BaseEngine):
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
        super().__init__(slots=slots, waiting=waiting, threads=threads, observer=observer)
        self._prompt_tokens = prompt_tokens
        self._running: list[Handle] = []
        self._is_ready: set[int] = set()  # numbers of those that may feed
        self._batch = Batch(m3.model, m3.geometry)
        self._lookup = Lookup(m3, self._ready, self._fail, observer)
        self._thread = start(self._run, "memory3-engine", self._threads)

    @property
    def state(self) -> EngineState:
        """What it is doing now."""
        with self._changed:
            running = len(self._running)
            looking = sum(one.number not in self._is_ready for one in self._running)
            return EngineState(running, len(self._here) - running, looking)

    def _open(self, handle: Handle) -> None:
        self._lookup.open(handle)

    def _close_others(self) -> None:
        self._lookup.close()

    def _let_go(self, handle: Handle) -> None:
        if handle in self._running:
            self._running.remove(handle)
        self._is_ready.discard(handle.number)

    def _ready(self, handles: Sequence[Handle]) -> None:
        """Requests have what they read, and may feed. In the other thread."""
        with self._changed:
            self._is_ready.update(one.number for one in handles if one.number in self._here)
            self._changed.notify_all()

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
                        self._changed.wait(0.1 if self._here else None)
                        continue
                self._step(ready)
        self._fail_all(EngineClosed("the server was shut down before this was answered"))

    def _admit(self) -> None:
        """Let requests in that fit and have what they read, in the order they came. Held: `_changed`."""
        for handle in self._here.values():
            if len(self._running) >= self._slots:
                break
            if handle.number in self._is_ready and handle not in self._running:
                self._running.append(handle)

    def _step(self, ready: Sequence[Handle]) -> None:
        answers = [(one, one.answer) for one in ready]
        by_stream = {id(answer.stream): one for one, answer in answers if isinstance(answer, Streamed)}
        streams = [answer.stream for _, answer in answers if isinstance(answer, Streamed)]
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
            handle, choice = by_stream[id(stream)], stream.chosen[-1]
            reason = self._say(handle, choice, ends=choice.token in stream.chooser.ends, is_last=stream.is_done)
            if reason:
                self._end(handle, reason)
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
