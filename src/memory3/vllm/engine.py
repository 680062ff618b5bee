"""`VllmEngine`: answers the jobs of `memory3 serve` with vLLM's engine, in this process.

    engine = VllmEngine(m3, folder)
    handle = engine.submit(Job(prompt="...", bank=bank))        # as memory3.serving.engine.Engine

Two threads. One makes prompts; the other runs vLLM's steps, one after the other, and tells of what they gave. What is read
is decided by the connector (`memory3.vllm.planning`). Tokens are those of `Memory3.generate`; the shares of citations are by
the scores of retrieval, since vLLM's steps keep no account of attention.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from memory3.answer import Usage
from memory3.asking import prepare
from memory3.choosing import Chooser
from memory3.errors import EngineBusy, EngineClosed, Memory3Error, ServingError
from memory3.llm import Memory3
from memory3.recall.retrieval import one_version
from memory3.serving.engine import EngineState
from memory3.serving.handle import Handle
from memory3.serving.job import Cited, Event, Failed, Finished, Job, Observer, Text
from memory3.serving.stretches import GrowingText
from memory3.serving.threads import start
from memory3.vllm.asked import KEY
from memory3.vllm.card import make_folder
from memory3.vllm.follower import Follower
from memory3.vllm.opened import Opened, choice_of
from memory3.vllm.plugin import CONNECTOR, register
from memory3.vllm.release import check_release
from memory3.vllm.sampling import sampling_options
from memory3.vllm.threads import one_thread

__all__ = ["VllmEngine"]


class VllmEngine:
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
        self._m3 = m3
        self._most = slots + waiting
        self._slots = slots
        self._threads = threads or torch.get_num_threads()
        self._observer = observer
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._here: dict[str, Opened | None] = {}  # by number of the request; None while its prompt is made
        self._handles: dict[str, Handle] = {}
        self._opened: list[Opened] = []
        self._draining = self._closed = False
        self._settings = {
            "model": str(make_folder(m3, folder)),
            "dtype": str(m3.model.dtype).removeprefix("torch."),
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": True,
            "max_model_len": m3.geometry.max_positions,
            "max_num_seqs": slots,
            "max_num_batched_tokens": max(prompt_tokens, slots),
            "kv_cache_memory_bytes": cache_bytes,
            "disable_hybrid_kv_cache_manager": True,
            "disable_log_stats": True,
            "trust_remote_code": False,
            **(settings or {}),
        }
        self._prompts = ThreadPoolExecutor(1, "memory3-prompts", initializer=one_thread)
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._engine: Any = None
        self._planner: Any = None
        self._shelf: Any = None
        self._thread = start(self._run, "memory3-vllm", self._threads)
        self._begun.wait()
        if isinstance(self._failure, Memory3Error):
            raise self._failure
        if self._failure is not None:
            raise ServingError(f"vLLM does not start: {self._failure}") from self._failure

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> EngineState:
        """What it is doing now."""
        with self._changed:
            inside = sum(one is not None for one in self._here.values())
            running = min(inside, self._slots)
            return EngineState(running, len(self._here) - running, self._planner.looking)

    @property
    def threads(self) -> int:
        """Threads of torch that its steps run on."""
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
        name = str(handle.number)
        with self._changed:
            if self._closed or self._draining:
                raise EngineClosed("the server is shutting down: ask another, or later")
            if len(self._here) >= self._most:
                raise EngineBusy(f"{len(self._here)} requests are being answered or wait: ask again in a moment")
            self._here[name] = None
            self._handles[name] = handle
        self._prompts.submit(self._open, handle)
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
        self._prompts.shutdown(wait=True, cancel_futures=True)
        self._thread.join()

    # ---- prompts, in a thread of their own ---------------------------------------------------------------------------

    def _open(self, handle: Handle) -> None:
        try:
            opened = self._made(handle)
        except Exception as error:
            self._leave(handle, Failed(error), "failed", None)
            return
        with self._changed:
            self._opened.append(opened)
            self._changed.notify_all()

    def _made(self, handle: Handle) -> Opened:
        m3, job = self._m3, handle.job
        bank = one_version(job.bank)
        prompt: Any = job.prompt
        (asked,) = prepare([prompt], [job.retrieval], m3.prompts, bank, job.mode)
        m3.prompts.check_length([asked.tokens], job.settings.max_new_tokens or 0, job.mode)
        end = m3.tokenizer.eos_token_id
        chooser = Chooser(m3.model, job.settings, asked.tokens, ends=[] if end is None else [end])
        options = sampling_options(m3.model, job, chooser)
        reads = job.mode == "memory" and bank is not None and not job.retrieval.finds_nothing(bank)
        if reads:
            how = job.retrieval
            name = str(id(job.bank))
            self._shelf.put(name, job.bank)
            wanted: dict[str, Any] = {"bank": name, "k": how.k, "gap": how.gap, "where": how.where}
            if how.references is not None:
                wanted["references"] = list(how.references)
            options["extra_args"] = {"kv_transfer_params": {KEY: wanted}}
        else:
            options["extra_args"] = {"kv_transfer_params": {KEY: False}}
        text = GrowingText(lambda ids: str(m3.tokenizer.decode(ids, skip_special_tokens=True)), job.stop)
        ends = set() if job.ignore_eos else chooser.ends
        return Opened(handle, asked, text, options, ends, bank if reads else None)

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        register()
        from vllm import EngineArgs
        from vllm.config import KVTransferConfig
        from vllm.v1.engine.llm_engine import LLMEngine

        transfer = KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_consumer")
        arguments = EngineArgs(**{"kv_transfer_config": transfer, **self._settings})
        self._engine = LLMEngine.from_engine_args(arguments)
        self._planner = self._engine.engine_core.engine_core.scheduler.connector.planner
        self._planner.failed = self._failed
        self._planner.begun = self._read
        self._shelf = self._planner.shelf

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:  # told by who waits for it
            self._failure = error
            return
        finally:
            self._begun.set()
        try:
            while self._next():
                pass
        finally:
            with self._changed:
                self._closed = True
            for handle in list(self._handles.values()):
                gone = EngineClosed("the server was shut down before this was answered")
                self._leave(handle, Failed(gone), "failed", None)
            self._engine.engine_core.shutdown()

    def _next(self) -> bool:
        """One step of vLLM. Returns whether there are more."""
        with self._changed:
            if self._closed:
                return False
            opened, self._opened = self._opened, []
            if not opened and not self._engine.has_unfinished_requests():
                self._changed.wait(0.1 if self._here else None)
                opened, self._opened = self._opened, []
        for one in opened:
            self._enter(one)
        self._sweep()
        if not self._engine.has_unfinished_requests():
            return True
        try:
            outputs = self._engine.step()
        except Exception as error:  # vLLM's engine does not live on after this
            failure = error if isinstance(error, Memory3Error) else ServingError(f"vLLM failed: {error}")
            for handle in list(self._handles.values()):
                self._leave(handle, Failed(failure), "failed", None)
            return False
        for output in outputs:
            self._take(output)
        return True

    def _enter(self, one: Opened) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**one.options, output_kind=RequestOutputKind.DELTA, detokenize=False)
        with self._changed:
            if one.name not in self._here:
                return
            self._here[one.name] = one
        try:
            self._engine.add_request(one.name, {"prompt_token_ids": one.asked.tokens}, params)
        except Exception as error:
            refused = error if isinstance(error, Memory3Error) else ServingError(f"vLLM refuses it: {error}")
            self._leave(one.handle, Failed(refused), "failed", None)

    def _sweep(self) -> None:
        """Let those go that nobody waits for any more, or whose time is over."""
        now = time.perf_counter()
        for handle in list(self._handles.values()):
            seconds = handle.job.seconds
            reason = "cancelled" if handle.cancelled else ""
            if seconds is not None and now - handle.came > seconds:
                reason = reason or "time"
            if reason:
                self._stop(handle, reason)

    def _stop(self, handle: Handle, reason: str) -> None:
        """End a request where it stands."""
        one = self._here.get(str(handle.number))
        if one is None:  # it had not begun
            usage = Usage(0, 0)
            event = Finished(reason, "", [], usage, "", [], 0.0, time.perf_counter() - handle.came)
            self._leave(handle, event, reason, usage)
            return
        self._engine.abort_request([one.name])
        self._end(one, reason)

    def _failed(self, request: str, error: Memory3Error) -> None:
        """What the planner tells of a request that cannot be answered."""
        one = self._here.get(_name(request))
        if one is not None:
            one.error = error

    def _read(self, request: str, follower: Follower) -> None:
        """What the planner tells of a request whose prompt's memories are known."""
        one = self._here.get(_name(request))
        if one is not None:
            one.follower = follower

    def _take(self, output: Any) -> None:
        """What a step gave to a request."""
        one = self._here.get(_name(output.request_id))
        if one is None:
            return
        if one.error is not None:
            self._leave(one.handle, Failed(one.error), "failed", None)
            return
        said = output.outputs[0]
        handle = one.handle
        for n, token in enumerate(said.token_ids):
            if not handle.first:
                handle.first = time.perf_counter()
                if self._observer is not None:
                    self._observer.first_token(handle.first - handle.came)
                    self._observer.tokens(len(one.asked.tokens), 0)
            if self._observer is not None:
                self._observer.tokens(0, 1)
            choice = choice_of(token, said.logprobs[n] if said.logprobs else None, handle.job.logprobs)
            if token in one.ends:
                handle.tell(Text("", choice))
                self._end(one, "stop", aborts=not output.finished)
                return
            one.ids.append(token)
            handle.tell(Text(one.text.add(token), choice))
            if one.text.stopped:
                self._end(one, "stop", aborts=not output.finished)
                return
        if output.finished:
            self._end(one, "length")
        elif len(one.text.stretches) > handle.cited:
            self._cite(one)

    # ---- ends --------------------------------------------------------------------------------------------------------

    def _cite(self, one: Opened) -> None:
        """Tell what the stretches that are complete were read from."""
        for stretch in one.text.stretches[one.handle.cited :]:
            citations = one.citations(stretch.first, stretch.last)
            if citations:
                one.handle.tell(Cited(stretch, citations))
        one.handle.cited = len(one.text.stretches)

    def _end(self, one: Opened, reason: str, *, aborts: bool = False) -> None:
        """A request has its answer, as far as it goes."""
        handle = one.handle
        if aborts:
            self._engine.abort_request([one.name])
        try:
            more = one.text.finish()
            if more:
                handle.tell(Text(more, None))
            self._cite(one)
            event = one.finished(reason)
        except Exception as error:  # its bank may be gone by now
            self._leave(handle, Failed(error), "failed", None)
            return
        self._leave(handle, event, reason, event.usage)

    def _leave(self, handle: Handle, event: Event, reason: str, usage: Usage | None) -> None:
        name = str(handle.number)
        with self._changed:
            there = self._handles.pop(name, None) is not None
            self._here.pop(name, None)
            self._changed.notify_all()
        if not there:
            return
        if self._observer is not None:
            self._observer.finished(reason, usage)
        handle.tell(event)


def _name(request: str) -> str:
    """Of a request as we named it: vLLM puts something behind it."""
    return request.partition("-")[0]
