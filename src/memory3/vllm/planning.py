"""`Planner`: the scheduler's side. It finds what requests read, keeps their clocks, and writes a `Step` for the workers.

    arrive -> a thread searches -> is_ready -> step, step, ...  -> leave

What a prompt reads is found by a thread beside the engine's steps; until then its request waits and others go on. What is
renewed while decoding is found within the step that needs it, for all requests at once: vLLM has no place where a running
request could pause.

Knows vLLM's requests by the few attributes of `EngineRequest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory3.bank.record import MemoryRecord
from memory3.errors import InputError, Memory3Error, RecallError
from memory3.recall.retrieval import Retrieval, one_version
from memory3.vllm.asked import KEY, Wanted, wanted
from memory3.vllm.follower import Follower
from memory3.vllm.shelf import Shelf
from memory3.vllm.step import Name, Packed, Row, Span, Step
from memory3.vllm.threads import one_thread

__all__ = ["EngineRequest", "Planner", "Scheduled"]


class EngineRequest(Protocol):
    """What is asked of a request of vLLM."""

    request_id: str
    kv_transfer_params: dict[str, Any] | None
    prompt_token_ids: list[int] | None
    cache_salt: str | None
    max_tokens: int
    num_prompt_tokens: int
    block_hashes: list[Any]

    @property
    def all_token_ids(self) -> Sequence[int]:
        """Prompt and answer so far."""

    def update_block_hashes(self) -> None:
        """Compute those of full blocks that have none."""


@dataclass(frozen=True)
class Scheduled:
    """A request in a step.

    Attributes:
        request: its id.
        start: tokens of it that are computed already.
        tokens: that this step computes.
        blocks: ids of its blocks in the paged cache.
    """

    request: str
    start: int
    tokens: int
    blocks: Sequence[int]


@dataclass
class _Reader:
    """A request that reads. ``source``: the bank as it was when the request came. ``records``: of all it has read.
    ``sent``: what the workers hold for it. ``error``: why it cannot be answered.
    """

    request: EngineRequest
    wanted: Wanted
    source: Any = None
    version: str = ""
    follower: Follower | None = None
    records: dict[Name, MemoryRecord] = field(default_factory=dict)
    finding: Future[None] | None = None
    is_salted: bool = False
    sent: tuple[Name, ...] = ()
    error: Memory3Error | None = None


class Planner:
    """Plans what the requests of one engine read. All methods are for the engine's thread.

    Attributes:
        shelf: of the banks.
        begun: is told of requests whose prompt's memories are known, by id and who follows them; None: nobody is.
        failed: is told of requests that cannot be answered, by id and why; None: nobody is.
    """

    def __init__(self, shelf: Shelf, *, block_size: int, default: str | None = None) -> None:
        """
        Args:
            shelf: of the banks.
            block_size: tokens of a block of the paged cache.
            default: bank of requests that name none.
        """
        self.shelf = shelf
        self.begun: Callable[[str, Follower], None] | None = None
        self.failed: Callable[[str, Memory3Error], None] | None = None
        self._block_size = block_size
        self._default = default
        self._readers: dict[str, _Reader] = {}
        self._ended: list[str] = []
        self._spoiled: set[int] = set()
        self._is_idle = True  # whether the last step had nothing to compute
        self._thread = ThreadPoolExecutor(1, "memory3-find", initializer=one_thread)

    def close(self) -> None:
        """End the thread that searches."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def looking(self) -> int:
        """How many requests wait for what their prompts read."""
        return sum(reader.finding is not None for reader in list(self._readers.values()))

    # ---- requests come and go ----------------------------------------------------------------------------------------

    def arrive(self, request: EngineRequest) -> None:
        """A request has come. What it reads is found beside what the engine does."""
        try:
            asked = wanted(request.kv_transfer_params, self.shelf.card.config, self._default)
            self._check_room(request, asked)
        except Memory3Error as error:
            self._readers[request.request_id] = reader = _Reader(request, Wanted("", Retrieval(0)))
            self._refuse(reader, error)
            return
        if asked is None:
            return
        reader = self._readers[request.request_id] = _Reader(request, asked)
        reader.finding = self._thread.submit(self._begin, reader)

    def _check_room(self, request: EngineRequest, asked: Wanted | None) -> None:
        """An answer is as long as the model has positions for, behind memories."""
        if asked is None:
            return
        card = self.shelf.card
        taken = len(card.frame.prefix) + card.config.reference_length + request.num_prompt_tokens
        if taken >= card.positions:
            raise InputError(
                f"a prompt of {request.num_prompt_tokens} tokens and its memories take {taken} of the {card.positions} "
                f"positions of {card.name}, and none is left for an answer: shorten it"
            )
        request.max_tokens = min(request.max_tokens, card.positions - taken)

    def is_ready(self, request_id: str) -> bool:
        """Whether a request may be scheduled: what its prompt reads is known, and part of its cache's key."""
        reader = self._readers.get(request_id)
        if reader is None or reader.is_salted or reader.error is not None:
            return True
        if reader.finding is not None and self._is_idle:  # nothing else is to be done: no need to ask again at once
            _wait(reader.finding)
        self._settle(reader)
        return False  # its blocks were looked up by the key it had before

    def leave(self, request: EngineRequest) -> dict[str, Any] | None:
        """A request has ended.

        Returns:
            what it read, for its response; None where it was not ours.
        """
        reader = self._readers.pop(request.request_id, None)
        if reader is None:
            return None
        self._ended.append(request.request_id)
        if reader.error is not None:
            return {KEY: {"error": str(reader.error)}}
        return {KEY: self._told(reader)}

    # ---- a step ------------------------------------------------------------------------------------------------------

    def step(self, scheduled: Sequence[Scheduled]) -> Step:
        """What the workers must know of a step.

        Args:
            scheduled: its requests, those that read and others.
        """
        step = Step(tokens=sum(one.tokens for one in scheduled), ended=self._ended)
        self._ended = []
        self._is_idle = not scheduled
        for each in list(self._readers.values()):
            self._settle(each)
        mine = [(one, reader) for one in scheduled if (reader := self._reading(one.request)) is not None]
        self._renew([(one, reader) for one, reader in mine if not self._reach(one, reader)])
        for one, reader in mine:
            if reader.error is None:
                self._add(step, one, reader)
        return step

    def spoiled(self) -> set[int]:
        """Blocks whose keys and values will be wrong after the step, of requests that failed in it; asked once."""
        spoiled, self._spoiled = self._spoiled, set()
        return spoiled

    def _reading(self, request_id: str) -> _Reader | None:
        reader = self._readers.get(request_id)
        if reader is None or reader.error is not None:
            return None
        if reader.finding is not None:  # scheduled all the same: it does not read the prefix cache
            _wait(reader.finding, None)
            self._settle(reader)
        return reader if reader.error is None and reader.follower is not None else None

    @staticmethod
    def _reach(one: Scheduled, reader: _Reader) -> bool:
        assert reader.follower is not None
        return reader.follower.reach(reader.request.all_token_ids[: one.start + one.tokens])

    def _renew(self, waiting: Sequence[tuple[Scheduled, _Reader]]) -> None:
        """Find what decoded tokens read next, for all requests that need it now."""
        groups: dict[Any, list[tuple[Scheduled, _Reader]]] = {}
        for one, reader in waiting:
            how = reader.wanted.retrieval
            groups.setdefault((reader.wanted.bank, reader.version, how.k, repr(how.where)), []).append((one, reader))
        for alike in groups.values():
            try:
                self._find([reader for _, reader in alike])
            except Memory3Error as error:
                for one, reader in alike:
                    self._refuse(reader, error)
                    self._spoiled.add(one.blocks[one.start // self._block_size])
                continue
            for one, reader in alike:
                if not self._reach(one, reader):
                    raise RecallError(f"request {one.request} needs memories twice in one step of vLLM")

    def _add(self, step: Step, one: Scheduled, reader: _Reader) -> None:
        follower = reader.follower
        assert follower is not None
        memory, end = follower.memory, one.start + one.tokens

        def named(names: Sequence[str]) -> tuple[Name, ...]:
            return tuple((reader.wanted.bank, reader.version, name) for name in names)

        spans = tuple(Span(a, b, named(names)) for a, b, names in follower.between(one.start, end))
        # From here on it needs what this step reads and what later ones will, as far as that is known.
        ahead = follower.between(one.start, max(end, len(memory.tokens)))
        reads = tuple(dict.fromkeys(name for _, _, names in ahead for name in named(names)))
        if reads != reader.sent:
            held = set(reader.sent)
            step.packed += [Packed(name, reader.records[name]) for name in reads if name not in held]
            step.reads[one.request] = reader.sent = reads
        place = memory.place
        slot = one.blocks[one.start // self._block_size] * self._block_size + one.start % self._block_size
        row = Row(one.request, slot, one.start, end, place.split, memory.shift, follower.moved, place.missing, spans)
        step.rows.append(row)

    # ---- finding -----------------------------------------------------------------------------------------------------

    def _begin(self, reader: _Reader) -> None:
        """What a request's prompt reads. In the thread."""
        asked = reader.wanted
        source = one_version(self.shelf.bank(asked.bank))
        if asked.retrieval.finds_nothing(source):
            return
        reader.source = source
        reader.version = str(source.snapshot.id) if hasattr(source, "snapshot") else ""
        card, tokenizer = self.shelf.card, self.shelf.tokenizer
        prompt = reader.request.prompt_token_ids
        if prompt is None:
            raise RecallError("a prompt of embeddings has no text by which memories could be found: give tokens or text")
        follower = Follower(card.frame, card.config, asked.retrieval, prompt, lambda ids: str(tokenizer.decode(ids)))
        reader.follower = follower
        if follower.memory.is_waiting:
            self._find([reader])

    def _find(self, readers: Sequence[_Reader]) -> None:
        """Find what requests wait for, and the records of it. They search alike."""
        source, how = readers[0].source, readers[0].wanted.retrieval
        followers = [reader.follower for reader in readers if reader.follower is not None]
        lookups = [follower.lookups for follower in followers]
        queries = [query for mine in lookups for query in mine]
        hits = iter(source.search(queries, how.k, where=how.where) if queries else ())
        for reader, follower, mine in zip(readers, followers, lookups, strict=True):
            before = len(follower.reads)
            follower.receive([next(hits) for _ in mine])
            found = {name for _, _, names in follower.reads[max(0, before - 1) :] for name in names}
            new = [name for name in found if (reader.wanted.bank, reader.version, name) not in reader.records]
            for record in source.records(new) if new else ():
                reader.records[(reader.wanted.bank, reader.version, record.reference_id)] = record
                follower.memory.statistics.bytes_read += record.stored_bytes

    def _settle(self, reader: _Reader) -> None:
        """Take what the thread has found."""
        finding = reader.finding
        if finding is None or not finding.done():
            return
        reader.finding = None
        error = finding.exception()
        if error is not None:
            if not isinstance(error, Memory3Error):
                error = RecallError(f"its memories were not found: {error}")
            self._refuse(reader, error)
            return
        if reader.follower is None:  # the bank has nothing for it
            del self._readers[reader.request.request_id]
            return
        request = reader.request
        request.cache_salt = self._salt(reader)
        request.block_hashes.clear()
        request.update_block_hashes()
        reader.is_salted = True
        if self.begun is not None:
            self.begun(request.request_id, reader.follower)

    def _salt(self, reader: _Reader) -> str:
        """Equal only for requests of which equal tokens read the same memories at the same places, renewals among them."""
        follower, how = reader.follower, reader.wanted.retrieval
        assert follower is not None
        memory = follower.memory
        parts = (
            reader.request.cache_salt,
            reader.wanted.bank,
            reader.version,
            (how.k, how.gap, how.where, how.references),
            (memory.place.split, memory.place.missing, memory.shift),
            len(reader.request.prompt_token_ids or ()),
            follower.reads,
        )
        return f"memory3-{hashlib.sha256(repr(parts).encode()).hexdigest()}"

    def _refuse(self, reader: _Reader, error: Memory3Error) -> None:
        """vLLM lets no connector refuse a request: it ends with its next token, and its response says why."""
        reader.error = error
        reader.request.max_tokens = 0
        if self.failed is not None:
            self.failed(reader.request.request_id, error)

    @staticmethod
    def _told(reader: _Reader) -> dict[str, Any]:
        """What a request's answer read: references by the order of retrieval, each once."""
        memory = reader.follower.memory if reader.follower is not None else None
        if memory is None or reader.follower is None:
            return {"references": []}
        prompt = reader.request.num_prompt_tokens  # its last chunk is what the first decoded tokens read
        names = dict.fromkeys(name for _, end, ids in reader.follower.reads if end >= prompt for name in ids)
        statistics = memory.statistics
        return {
            "bank": reader.wanted.bank,
            "references": [{"id": name, "score": memory.scores.get(name, 0.0)} for name in names],
            "order": "retrieval",
            "recalls": statistics.recalls,
            "read": statistics.references,
            "bytes_read": statistics.bytes_read,
        }


def _wait(finding: Future[None], seconds: float | None = 0.01) -> None:
    """Until it is found, at most so long."""
    try:
        finding.exception(seconds)
    except TimeoutError:
        return
