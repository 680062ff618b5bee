"""`Planner`: the scheduler's side. It has what requests read found, keeps their clocks, and writes a `Step` for the workers.

    arrive -> a thread finds -> is_ready -> step, step, ...  -> leave

What a prompt reads is found by a thread beside the engine's steps (`memory3.vllm.finding`); until then its request waits and
others go on. So it is with what is read next while decoding: the text that it is found by is complete one step before the
first token that reads it, so the thread begins then, and a request whose memories are not there in time takes part in no
step until they are.

Nothing that a bank holds can end the engine: what goes wrong with a request's memories is found out here, and that request
alone is refused.

Knows vLLM's requests by the few attributes of `memory3.vllm.reader.EngineRequest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from typing import Any

from memory3.errors import InputError, Memory3Error, RecallError
from memory3.vllm.asked import KEY, MOST, Wanted, wanted
from memory3.vllm.finding import Finder
from memory3.vllm.reader import EngineRequest, Found, Reader
from memory3.vllm.shelf import Shelf
from memory3.vllm.step import Row, Span, Step
from memory3.vllm.told import salt, told

__all__ = ["Planner", "Scheduled"]

#: Seconds that an engine waits at most which has nothing to do: requests that come are let in behind it.
_MOMENT = 0.01


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


class Planner:
    """Plans what the requests of one engine read. All methods are for the engine's thread.

    Attributes:
        shelf: of the banks.
        finder: finds beside the steps.
        begun: is told of readers whose prompt's memories are known; None: nobody is.
        failed: is told of requests that cannot be answered, by id and why; None: nobody is.
    """

    def __init__(self, shelf: Shelf, *, block_size: int, default: str | None = None, most: int = MOST) -> None:
        """
        Args:
            shelf: of the banks.
            block_size: tokens of a block of the paged cache.
            default: bank of requests that name none.
            most: references that a request may ask for at once.
        """
        self.shelf = shelf
        self.finder = Finder(shelf)
        self.begun: Callable[[Reader], None] | None = None
        self.failed: Callable[[str, Memory3Error], None] | None = None
        self._block_size = block_size
        self._default = default
        self._most = most
        self._readers: dict[str, Reader] = {}
        self._ended: list[str] = []
        self._spoiled: set[int] = set()
        self._last: dict[str, Scheduled] = {}  # step
        self._forms: set[str] = set()  # that workers know
        self._written: set[int] = set()  # blocks, in the step

    def close(self) -> None:
        """End the thread that finds."""
        self.finder.close()

    @property
    def looking(self) -> int:
        """How many requests wait for what they read."""
        return sum(reader.finding is not None for reader in list(self._readers.values()))

    # ---- requests come and go ----------------------------------------------------------------------------------------

    def arrive(self, request: EngineRequest) -> None:
        """A request has come. What it reads is found beside what the engine does."""
        try:
            asked = wanted(request.kv_transfer_params, self.shelf.card.config, self._default, self._most)
            self._check_room(request, asked)
        except Exception as error:
            self._readers[request.request_id] = reader = Reader(request, None)
            self._refuse(reader, error)
            return
        if asked is None:
            return
        reader = self._readers[request.request_id] = Reader(request, asked)
        self.finder.begin(reader)

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
        """Whether a request may be scheduled: what it reads is known, and part of its cache's key."""
        reader = self._readers.get(request_id)
        if reader is None or reader.error is not None:
            return True
        was_salted = reader.is_salted
        self._settle(reader)
        # Where its key is new, its blocks were looked up by the one it had before.
        return was_salted and reader.finding is None

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
        return {KEY: told(reader)}

    def refuse(self, failures: Mapping[str, str]) -> None:
        """Workers could not read memories of these requests in the last step.

        Args:
            failures: why, by request.
        """
        for name, why in failures.items():
            reader = self._readers.get(name)
            if reader is not None and reader.error is None:
                self._refuse(reader, RecallError(why))
                self._spoil(self._last[name], reader)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def step(self, scheduled: Sequence[Scheduled]) -> Step:
        """What the workers must know of a step.

        Args:
            scheduled: its requests, those that read and others.
        """
        step = Step(tokens=sum(one.tokens for one in scheduled), ended=self._ended)
        self._ended = []
        readers = list(self._readers.values())
        if not scheduled:  # nothing is to be done until something is found: no need to ask again at once
            wait([each.finding for each in readers if each.finding is not None], _MOMENT, FIRST_COMPLETED)
        for each in readers:
            self._settle(each)
        self._written = {block for one in scheduled for block in self._blocks(one)}
        for one in scheduled:
            reader = self._readers.get(one.request)
            if reader is None:
                continue
            try:
                if reader.error is None:
                    self._plan(step, one, reader)
            except Exception as error:
                self._refuse(reader, error)
            if reader.error is not None:
                self._spoil(one, reader)
        self._last = {one.request: one for one in scheduled}
        return step

    def spoiled(self) -> set[int]:
        """Blocks whose keys and values are wrong after the step, of requests that failed; asked once."""
        spoiled, self._spoiled = self._spoiled, set()
        return spoiled

    def _spoil(self, one: Scheduled, reader: Reader) -> None:
        """Its tokens of a step read nothing, and its cache's key may say that they do."""
        if reader.is_salted:
            self._spoiled.update(self._blocks(one))

    def _blocks(self, one: Scheduled) -> Sequence[int]:
        """Those that its tokens of a step are written to."""
        return one.blocks[one.start // self._block_size : (one.start + one.tokens - 1) // self._block_size + 1]

    def _plan(self, step: Step, one: Scheduled, reader: Reader) -> None:
        if reader.finding is not None:  # scheduled all the same
            self._await(reader)
        if reader.follower is None:  # there is nothing for it to read
            return
        end = one.start + one.tokens
        follower = reader.follower
        while not follower.reach(reader.request.all_token_ids[:end]):
            again = follower.memory.would_read([])  # what was named, or what it reads already
            if not follower.lookups and all(name in reader for name in again):
                reader.found = Found([], [], [reader.packed[name] for name in reader.names(again)], {})
            elif reader.found is None or reader.found.queries != follower.lookups:
                self.finder.renew(reader)
                self._await(reader)
            self._take(reader)
        self._add(step, one, reader)
        left = reader.request.num_prompt_tokens + reader.request.max_tokens - len(follower.memory.tokens)
        if left > 1 and follower.next_lookup and reader.found is None:
            self.finder.renew(reader)

    def _await(self, reader: Reader) -> None:
        """Until what it reads is found. Raises why it cannot be."""
        assert reader.finding is not None
        wait([reader.finding])
        self._settle(reader)
        if reader.error is not None:
            raise reader.error

    def _add(self, step: Step, one: Scheduled, reader: Reader) -> None:
        follower = reader.follower
        assert follower is not None
        memory, end = follower.memory, one.start + one.tokens
        spans = tuple(Span(a, b, reader.names(names)) for a, b, names in follower.between(one.start, end))
        # From here on it needs what this step reads and what later ones will, as far as that is known.
        ahead = follower.between(one.start, max(end, len(memory.tokens)))
        reads = tuple(dict.fromkeys(name for _, _, names in ahead for name in reader.names(names)))
        if reads != reader.sent:
            held = set(reader.sent)
            packed = [reader.packed[name] for name in reads if name not in held]
            form = reader.form
            if packed and form is not None and form.key not in self._forms:
                step.forms.append(form)
                self._forms.add(form.key)
            step.packed += packed
            step.reads[one.request] = reader.sent = reads
        place = memory.place
        full = one.start // self._block_size
        slot = one.blocks[full] * self._block_size + one.start % self._block_size
        # vLLM gives a block to others in the very step that fills it: one who asks the same at the same moment.
        is_late = one.tokens == 1 and not self._written.isdisjoint(one.blocks[:full])
        row = Row(one.request, slot, one.start, end, place.split, memory.shift, follower.moved, place.missing, spans, is_late)
        step.rows.append(row)

    # ---- what was found ----------------------------------------------------------------------------------------------

    def _settle(self, reader: Reader) -> None:
        """Take what the thread has found."""
        finding = reader.finding
        if finding is None or not finding.done():
            return
        reader.finding = None
        error = finding.exception()
        if error is not None:
            self._refuse(reader, error)
            return
        if reader.is_salted:
            return  # found for a token to come
        request = reader.request
        if reader.follower is None:  # the bank has nothing for it
            del self._readers[request.request_id]
            return
        if reader.found is not None:
            self._take(reader)
        request.cache_salt = salt(reader)
        request.block_hashes.clear()
        request.update_block_hashes()
        reader.is_salted = True
        if self.begun is not None:
            self.begun(reader)

    @staticmethod
    def _take(reader: Reader) -> None:
        """Go on with what was found."""
        found, follower = reader.found, reader.follower
        assert found is not None
        assert follower is not None
        reader.found = None
        follower.receive(found.hits)
        follower.memory.statistics.bytes_read += sum(one.record.stored_bytes for one in found.packed)
        reader.texts.update(found.texts)
        reader.packed.update((one.name, one) for one in found.packed)

    def _refuse(self, reader: Reader, error: BaseException) -> None:
        """vLLM lets no connector refuse a request: it ends with its next token, and its response says why."""
        if not isinstance(error, Memory3Error):
            error = RecallError(f"its memories cannot be read ({type(error).__name__}: {error})")
        reader.error = error
        reader.request.max_tokens = 0
        if self.failed is not None:
            self.failed(reader.request.request_id, error)
