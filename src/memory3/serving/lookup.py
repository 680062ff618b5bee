"""`Lookup`: the thread that finds what requests read, beside the passes of other requests.

Whatever waits when it looks is done in one go: one embedding, one search for those that search alike, one read for those
of one bank. Requests that decode come first, then those that come new, then guesses for those that will soon ask again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from memory3.asking import Asked, prepare
from memory3.choosing import Chooser
from memory3.llm import Memory3
from memory3.recall.batching import Stream
from memory3.recall.retrieval import one_version
from memory3.serving.handle import Handle
from memory3.serving.job import Observer
from memory3.serving.rounds import Rounds, together
from memory3.serving.streamed import Streamed
from memory3.serving.stretches import GrowingText

__all__ = ["Lookup"]

#: Queues, in the order of their turn.
_RENEWING, _OPENING, _GUESSING = range(3)


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
        self._rounds: Rounds[Handle] = Rounds("memory3-lookup", self._find, self._begin, self._guess)

    def close(self) -> None:
        """End after what is being done now."""
        self._rounds.close()

    def open(self, handle: Handle) -> None:
        """Make a request's prompt, and find what that reads."""
        self._rounds.put(_OPENING, [handle])

    def renew(self, handles: Sequence[Handle]) -> None:
        """Find what requests read next, which have to wait for it."""
        self._rounds.put(_RENEWING, handles)

    def prefetch(self, handle: Handle) -> None:
        """Bring into RAM what a request would read if it asked now; it will soon, and then most of it is there."""
        self._rounds.put(_GUESSING, [handle])

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _begin(self, handles: Sequence[Handle]) -> None:
        """Make the prompts of requests, and find what those that could be made read."""
        opened: list[Handle] = []

        def make(alike: Sequence[Handle]) -> None:
            job = alike[0].job
            bank = one_version(job.bank)
            prompts: list[Any] = [one.job.prompt for one in alike]
            asked = prepare(prompts, [one.job.retrieval for one in alike], self._m3.prompts, bank, job.mode)
            for handle, question in zip(alike, asked, strict=True):
                try:
                    handle.answer = self._opened(handle, question, bank)
                except Exception as error:
                    self._fail(handle, error)
                else:
                    opened.append(handle)

        with torch.inference_mode():
            together(handles, lambda one: (id(one.job.bank), one.job.mode, repr(one.job.retrieval)), make, self._fail)
        self._find(opened)

    def _opened(self, handle: Handle, asked: Asked, bank: Any) -> Streamed:
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
        return Streamed(asked, GrowingText(self._text, job.stop), stream)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._m3.tokenizer.decode(ids, skip_special_tokens=True))

    def _find(self, handles: Sequence[Handle]) -> None:
        """Find and lay out what requests read, and let them go on."""
        started = time.perf_counter()
        found: list[Handle] = []

        def find(alike: Sequence[Handle]) -> None:
            # One that has left meanwhile has no answer any more.
            here = [(one, answer) for one in alike if isinstance(answer := one.answer, Streamed)]
            waiting = [pair for pair in here if pair[1].stream.needs_memories]
            found.extend(one for one, answer in here if not answer.stream.needs_memories)
            if waiting:
                found.extend(self._read(waiting))

        with torch.inference_mode():
            together(handles, _alike, find, self._fail)
        if found and self._observer is not None:
            self._observer.looked_up(time.perf_counter() - started, len(found))
        if found:
            self._ready(found)

    def _read(self, waiting: Sequence[tuple[Handle, Streamed]]) -> list[Handle]:
        """Of requests of one source that search alike. Returns those that have what they read.

        All is fetched before any of them is told, so that nothing has changed where that fails.
        """
        streams = [answer.stream for _, answer in waiting]
        source: Any = streams[0].source
        lookups = [stream.lookups for stream in streams]
        queries = [query for mine in lookups for query in mine]
        hits: Any = iter(())
        if queries:
            assert streams[0].memory is not None
            how = streams[0].memory.retrieval
            hits = iter(source.search(queries, how.k, where=how.where))
        each = [[next(hits) for _ in mine] for mine in lookups]
        wanted = [stream.would_read(mine) for stream, mine in zip(streams, each, strict=True)]
        every = list(dict.fromkeys(name for mine in wanted for name in mine))
        device = self._m3.model.device
        memories = dict(zip(every, source.memories(every, device=device), strict=True)) if every else {}
        texts = dict(zip(every, source.references(every), strict=True)) if every else {}
        read: list[Handle] = []
        for (handle, answer), mine in zip(waiting, each, strict=True):
            try:
                names = answer.stream.receive(mine)
                answer.stream.load({name: memories[name] for name in names})
                answer.known.update((name, texts[name]) for name in names)
                read.append(handle)
            except Exception as error:  # it can neither go on nor begin again
                self._fail(handle, error)
        return read

    def _guess(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            stream = handle.answer.stream if isinstance(handle.answer, Streamed) else None
            if stream is None or stream.memory is None:
                continue
            source: Any = stream.source
            how = stream.memory.retrieval
            # A guess is worth nothing if it fails: the request itself will say so.
            with contextlib.suppress(Exception), torch.inference_mode():
                (hits,) = source.search([stream.next_query()], 2 * how.k, where=how.where)
                source.memories([hit.reference_id for hit in hits[: how.k]], device=self._m3.model.device)
                prefetch = getattr(source, "prefetch", None)  # a bank's; other sources have what they have
                if prefetch is not None:
                    prefetch([hit.reference_id for hit in hits[how.k :]])


def _alike(handle: Handle) -> Hashable:
    stream = handle.answer.stream if isinstance(handle.answer, Streamed) else None
    if stream is None or stream.memory is None:
        return None
    how = stream.memory.retrieval
    return id(stream.source), how.k, repr(how.where), how.references is None
