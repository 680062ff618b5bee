"""`Lookup`: the thread that finds what requests read, beside the passes of other requests.

Whatever waits when it looks is done in one go: one embedding, one search for those that search alike, one read for those
of one bank. Requests that decode come first, then those that come new, then guesses for those that will soon ask again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch

from memory3.asking import prepare
from memory3.choosing import Chooser
from memory3.llm import Memory3
from memory3.recall.batching import Stream
from memory3.recall.retrieval import one_version
from memory3.serving.handle import Handle
from memory3.serving.job import Observer
from memory3.serving.stretches import GrowingText
from memory3.serving.threads import start

__all__ = ["Lookup"]


class Lookup:
    """Opens requests, and finds what they read. All methods return at once."""

    def __init__(
        self,
        m3: Memory3,
        ready: Callable[[Sequence[Handle]], None],
        fail: Callable[[Handle, Exception], None],
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            m3: the model.
            ready: is told of requests that may feed.
            fail: is told of one that cannot be answered, and why.
            observer: is told how long it took.
        """
        self._m3 = m3
        self._ready = ready
        self._fail = fail
        self._observer = observer
        self._changed = threading.Condition()
        self._renewing: list[Handle] = []
        self._opening: list[Handle] = []
        self._guessing: list[Handle] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, with torch on one thread: passes have the others."""
        self._thread = start(self._run, "memory3-lookup", 1)

    def close(self) -> None:
        """End after what is being done now."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def open(self, handle: Handle) -> None:
        """Make a request's prompt, and find what that reads."""
        self._put(self._opening, [handle])

    def renew(self, handles: Sequence[Handle]) -> None:
        """Find what requests read next, which have to wait for it."""
        self._put(self._renewing, handles)

    def prefetch(self, handle: Handle) -> None:
        """Bring into RAM what a request would read if it asked now; it will soon, and then most of it is there."""
        self._put(self._guessing, [handle])

    def _put(self, where: list[Handle], handles: Iterable[Handle]) -> None:
        with self._changed:
            where.extend(handles)
            self._changed.notify_all()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._renewing or self._opening or self._guessing):
                    self._changed.wait()
                if self._closed:
                    return
                renewing, opening, guessing = list(self._renewing), list(self._opening), list(self._guessing)
                self._renewing.clear()
                self._guessing.clear()
                if renewing:
                    opening = []  # the next round
                else:
                    self._opening.clear()
            with torch.inference_mode():
                if renewing:
                    self._find(renewing)
                elif opening:
                    self._find(self._open(opening))
                else:
                    self._guess(guessing)

    def _open(self, handles: Sequence[Handle]) -> list[Handle]:
        """Make the prompts of requests. Returns those that could be made."""
        opened: list[Handle] = []

        def make(alike: Sequence[Handle]) -> None:
            job = alike[0].job
            bank = one_version(job.bank)
            prompts: list[Any] = [one.job.prompt for one in alike]
            asked = prepare(prompts, [one.job.retrieval for one in alike], self._m3.prompts, bank, job.mode)
            for handle, question in zip(alike, asked, strict=True):
                self._begin(handle, question, bank)
                opened.append(handle)

        self._each(handles, lambda one: (id(one.job.bank), one.job.mode, repr(one.job.retrieval)), make)
        return opened

    def _begin(self, handle: Handle, asked: Any, bank: Any) -> None:
        m3, job = self._m3, handle.job
        m3.prompts.check_length([asked.tokens], job.settings.max_new_tokens or 0, job.mode)
        end = m3.tokenizer.eos_token_id
        ends = [] if end is None else [end]
        chooser = Chooser(m3.model, job.settings, asked.tokens, ends=ends, seed=job.seed, logprobs=job.logprobs)
        if job.ignore_eos:
            chooser.ends = set()
        source = bank if job.mode == "memory" else None
        stream = Stream(m3.encoder, asked.tokens, chooser, source, job.retrieval, text_of=m3.tokenizer.decode)
        stream.begin()
        handle.begin(asked, stream, GrowingText(self._text, job.stop))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._m3.tokenizer.decode(ids, skip_special_tokens=True))

    def _find(self, handles: Sequence[Handle]) -> None:
        """Find and lay out what requests read, and let them go on."""
        started = time.perf_counter()
        found: list[Handle] = []

        def find(alike: Sequence[Handle]) -> None:
            streams = [stream for one in alike if (stream := one.stream) is not None]
            waiting = [stream for stream in streams if stream.needs_memories]
            if waiting:
                self._read(alike, waiting)
            found.extend(alike)

        self._each(handles, _alike, find, reads=True)
        if found and self._observer is not None:
            self._observer.looked_up(time.perf_counter() - started, len(found))
        if found:
            self._ready(found)

    def _read(self, handles: Sequence[Handle], streams: Sequence[Stream]) -> None:
        """Streams of one source that search alike."""
        source: Any = streams[0].source
        lookups = [stream.lookups for stream in streams]
        queries = [query for mine in lookups for query in mine]
        hits: Any = iter(())
        if queries:
            assert streams[0].memory is not None
            how = streams[0].memory.retrieval
            hits = iter(source.search(queries, how.k, where=how.where))
        names = [stream.receive([next(hits) for _ in mine]) for stream, mine in zip(streams, lookups, strict=True)]
        every = list(dict.fromkeys(name for mine in names for name in mine))
        device = self._m3.model.device
        memories = dict(zip(every, source.memories(every, device=device), strict=True)) if every else {}
        texts = dict(zip(every, source.references(every), strict=True)) if every else {}
        for stream, mine in zip(streams, names, strict=True):
            stream.load({name: memories[name] for name in mine})
        for handle in handles:
            handle.known.update(texts)

    def _guess(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            stream = handle.stream
            if stream is None or stream.memory is None:
                continue
            source: Any = stream.source
            how = stream.memory.retrieval
            # A guess is worth nothing if it fails: the request itself will say so.
            with contextlib.suppress(Exception):
                (hits,) = source.search([stream.next_query()], how.k, where=how.where)
                source.memories([hit.reference_id for hit in hits], device=self._m3.model.device)

    def _each(
        self,
        handles: Sequence[Handle],
        key: Callable[[Handle], Hashable],
        work: Callable[[Sequence[Handle]], None],
        *,
        reads: bool = False,
    ) -> None:
        """Work on requests that are alike together; where that fails, on each alone, so that one fails no other."""
        groups: dict[Hashable, list[Handle]] = {}
        for handle in handles:
            groups.setdefault(key(handle), []).append(handle)
        for alike in groups.values():
            try:
                work(alike)
            except Exception as error:
                if len(alike) == 1:
                    self._fail(alike[0], error)
                    continue
                for handle in alike:
                    if handle.stream is None or (reads and handle.stream.needs_memories):
                        self._each([handle], key, work, reads=reads)
                    elif reads:  # it has taken what was found and not what that says: it can neither go on nor begin again
                        self._fail(handle, error)


def _alike(handle: Handle) -> Hashable:
    stream = handle.stream
    if stream is None or stream.memory is None:
        return None
    how = stream.memory.retrieval
    return id(stream.source), how.k, repr(how.where), how.references is None
