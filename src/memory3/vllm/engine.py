"""`VllmEngine`: answers the jobs of `memory3 serve` with vLLM's engine, in this process.

    engine = VllmEngine(m3, folder)
    handle = engine.submit(Job(prompt="...", bank=bank))        # as memory3.serving.engine.Engine

Two threads, and the planner's. One makes prompts; the other runs vLLM's steps, one after the other, and tells of what they
gave. What is read is decided by the connector (`memory3.vllm.planning`). Tokens are those of `Memory3.generate`.
Shares of citations are of attention: workers count it (`memory3.vllm.paying`), and are asked where a sentence or an answer
ends.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory3.errors import ConfigError, EngineClosed, Memory3Error, ServingError
from memory3.llm import Memory3
from memory3.serving.base import BaseEngine, EngineState
from memory3.serving.handle import Handle
from memory3.serving.job import Observer
from memory3.serving.rounds import Rounds
from memory3.serving.threads import start
from memory3.vllm.inner import Inner, number_of, settings_of
from memory3.vllm.opened import Opened, choice_of
from memory3.vllm.opening import open_job
from memory3.vllm.reader import Reader
from memory3.vllm.release import check_release

__all__ = ["VllmEngine"]


class VllmEngine(BaseEngine):
    """Serves requests until it is closed. Safe to call from any thread; one in a process."""

    def __init__(
        self,
        m3: Memory3,
        folder: str | Path,
        *,
        slots: int = 16,
        waiting: int = 64,
        prompt_tokens: int = 256,
        cache_bytes: int = 1 << 30,
        threads: int | None = None,
        observer: Observer | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            m3: the model. vLLM holds it once more.
            folder: where what vLLM loads is made, unless it is there.
            slots: requests in one step at most.
            waiting: requests beside those, that wait for a place.
            prompt_tokens: of all prompts together in one step at most.
            cache_bytes: of vLLM's paged cache.
            threads: of torch, for steps; None: as many as the caller's.
            observer: is told what happens.
            settings: of vLLM's ``EngineArgs``, over those that are chosen here.

        Raises:
            MissingDependency: vLLM is not installed.
            UnsupportedModel: another release of vLLM is, or memories cannot be read in this model there.
            ServingError: vLLM does not start.
        """
        check_release()
        super().__init__(slots=slots, waiting=waiting, threads=threads, observer=observer)
        self._m3 = m3
        self._made: list[Handle] = []  # whose prompts are made, and that vLLM does not know yet
        sizes = {"slots": slots, "prompt_tokens": prompt_tokens, "cache_bytes": cache_bytes}
        self._settings = settings_of(m3, folder, **sizes) | (settings or {})
        self._inner: Inner | None = None
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._thread = start(self._run, "memory3-vllm", self._threads)
        self._begun.wait()
        if isinstance(self._failure, Memory3Error):
            raise self._failure
        if self._failure is not None:
            raise ServingError(f"vLLM does not start: {self._failure}") from self._failure
        self._prompts: Rounds[Handle] = Rounds("memory3-prompts", self._make)

    @property
    def state(self) -> EngineState:
        """What it is doing now."""
        assert self._inner is not None
        with self._changed:
            running = min(sum(one.answer is not None for one in self._here.values()), self._slots)
            return EngineState(running, len(self._here) - running, self._inner.planner.looking)

    def _open(self, handle: Handle) -> None:
        self._prompts.put(0, [handle])

    def _close_others(self) -> None:
        self._prompts.close()

    def _make(self, handles: Sequence[Handle]) -> None:
        """Make prompts. In a thread of their own."""
        assert self._inner is not None
        for handle in handles:
            try:
                handle.answer = answer = open_job(self._m3, handle.job, self._inner.planner.shelf)
                answer.count = self._inner.paid
            except Exception as error:
                self._fail(handle, error)
                continue
            with self._changed:
                self._made.append(handle)
                self._changed.notify_all()

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            inner = self._inner = Inner(self._settings)
            inner.check_card(self._m3)
        except BaseException as error:  # told by who waits for it
            self._failure = error
            return
        finally:
            self._begun.set()
        inner.planner.failed, inner.planner.begun = self._refused, self._read
        inner.planner.finder.reads_texts = True
        if self._observer is not None:
            inner.planner.finder.told = self._observer.looked_up
        try:
            while self._next(inner):
                pass
        finally:
            with self._changed:
                self._closed = True
            self._fail_all(EngineClosed("the server was shut down before this was answered"))
            inner.close()

    def _next(self, inner: Inner) -> bool:
        """One step of vLLM. Returns whether there are more."""
        with self._changed:
            if self._closed:
                return False
            if not self._made and not inner.inside and inner.is_told:
                self._changed.wait(0.1 if self._here else None)
            made, self._made = self._made, []
        self._sweep()
        for handle in made:
            self._enter(inner, handle)
        with self._changed:
            gone = inner.inside - self._here.keys()
        for number in gone:  # nobody waits for them any more
            inner.abort(number)
        if not inner.inside and inner.is_told:
            return True
        try:
            outputs = inner.step()
        except Exception as error:  # vLLM's engine does not live on after this
            self._fail_all(error if isinstance(error, Memory3Error) else ServingError(f"vLLM failed: {error}"))
            return False
        prompts = answers = 0
        for number, output in outputs:
            one = self._here.get(number)
            if one is not None:
                answer, is_first = one.answer, not one.first
                answers += self._take(one, output)
                prompts += len(answer.asked.tokens) if is_first and answer is not None else 0
        if answers and self._observer is not None:
            self._observer.tokens(prompts, answers)
        return True

    def _enter(self, inner: Inner, handle: Handle) -> None:
        answer = handle.answer
        if handle.number not in self._here or not isinstance(answer, Opened):  # it has left meanwhile
            handle.answer = None
            return
        try:
            inner.add(handle.number, answer.asked.tokens, answer.options)
        except Exception as error:
            kind = ConfigError if isinstance(error, ValueError) else ServingError  # of a setting that vLLM does not take
            self._fail(handle, error if isinstance(error, Memory3Error) else kind(f"vLLM refuses it: {error}"))

    def _refused(self, request: str, error: Memory3Error) -> None:
        """What the planner tells of a request that cannot be answered."""
        answer = self._answer(request)
        if answer is not None:
            answer.error = error

    def _read(self, reader: Reader) -> None:
        """What the planner tells of a request whose prompt's memories are known."""
        answer = self._answer(reader.request.request_id)
        if answer is not None:
            answer.reader = reader

    def _answer(self, request: str) -> Opened | None:
        handle = self._here.get(number_of(request))
        answer = None if handle is None else handle.answer
        return answer if isinstance(answer, Opened) else None

    def _take(self, handle: Handle, output: Any) -> int:
        """What a step gave to a request. Returns how many tokens of its answer."""
        answer, said = handle.answer, output.outputs[0]
        assert isinstance(answer, Opened)
        if answer.error is not None:
            self._fail(handle, answer.error)
            return 0
        for n, token in enumerate(said.token_ids):
            ends, is_last = token in answer.ends, output.finished and n + 1 == len(said.token_ids)
            if not ends:
                answer.ids.append(token)
            choice = choice_of(token, said.logprobs[n] if said.logprobs else None, handle.job.logprobs)
            reason = self._say(handle, choice, ends=ends, is_last=is_last)
            if reason:
                self._end(handle, reason)
                return n + 1
        if output.finished and not said.token_ids:
            self._end(handle, "length")
        return len(said.token_ids)
