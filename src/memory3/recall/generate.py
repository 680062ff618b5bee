"""Recall inside plain ``model.generate()`` of transformers: the adapter that drives the memories of a batch of requests,
and the exact twin of other engines.

    with m3.recall(bank) as recall:
        m3.model.generate(...)          # plain transformers

A pre-hook on the model tells every request (`memory3.recall.request`) which of its tokens come next, looks up what it
wants, moves the positions of the tokens behind the memories and hands the attention its reader. Memories never enter the
`Cache`. All state is the recall's: several may be open on one model, in threads beside one another or entered by turns, a
forward pass each.

Knows banks through `MemorySource` and nothing of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from weakref import ref

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

from memory3.attention.attach import attached
from memory3.attention.layout import select_chunks
from memory3.attention.reading import Reading
from memory3.attention.watching import Watch
from memory3.encode.encoder import Encoder
from memory3.errors import RecallError
from memory3.models.geometry import ModelGeometry
from memory3.prompt import token_positions
from memory3.recall.chunks import chunk_table
from memory3.recall.current import belong_to, install, owner
from memory3.recall.request import RecallStatistics, RequestMemory
from memory3.recall.retrieval import MemorySource, Retrieval, one_version
from memory3.types import Memory, MemoryBatch

__all__ = ["Recall"]

#: The first parameters of every causal model's forward, for callers that pass them by position.
_FORWARD = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds")


#: A chunk that is laid out: its row, its tokens from and to, what it reads, and by how far that was moved.
_Laid = tuple[int, int, int, tuple[str, ...], int]


class Recall:
    """Context in which a model reads memories. Made by `Memory3.recall`; one generation at a time.

    May be left and entered again in the middle of a generation: passes inside belong to it, others do not.

    Attributes:
        statistics: what all its requests did.
        source: what is searched and read: the bank as it was when the context was entered for this generation.
        requests: the memory of each row of the batch that is generated; with beams, one for each.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: ModelGeometry,
        tokenizer: Any,
        encoder: Encoder,
        bank: MemorySource,
        retrieval: Retrieval | Sequence[Retrieval],
        *,
        chunk_length: int,
        prompt: Sequence[Sequence[int]] | None = None,
        answer_tokens: Sequence[int] | None = None,
        use_cache: bool = True,
        watch: Watch | None = None,
    ) -> None:
        """See `Memory3.recall`. ``retrieval``: of every row, or one for each prompt. ``watch``: is told what the answer of
        one row looked at.
        """
        self.statistics = RecallStatistics()
        self.requests: list[RequestMemory] = []
        self.source = bank
        self._model = model
        self._base = geometry.base
        self._tokenizer = tokenizer
        install(self._base)
        self._encoder = encoder
        self._bank = bank
        self._retrieval = retrieval
        self._chunk = chunk_length
        self._announced = None if prompt is None else [[int(t) for t in row] for row in prompt]
        self._answer_tokens = answer_tokens
        self._use_cache = use_cache
        self._watch = watch
        self._entered: MemorySource = bank
        self._nothing = False
        self._open: list[ExitStack] = []
        self._cache: ref[Any] | None = None  # that the prompt was begun with, if it was
        self._length = 0  # tokens that are in the cache now
        self._shift: torch.Tensor | None = None  # [B, 1], how far tokens behind the memories move
        self._batch: MemoryBatch | None = None  # what the chunks of the prompt read
        self._laid: list[_Laid] = []  # the chunks of `_batch`
        # Of a prompt's last tokens, and of which rows they are the last.
        self._prompt_reading: tuple[Reading, list[bool]] | None = None
        self._reading: Reading | None = None  # of decoded tokens: one chunk a row
        self._renewals: list[int] = []  # of each row, when `_reading` was made
        self._fresh: set[int] = set()  # rows whose references were decided for this pass and not yet read

    # ---- the context -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recall:
        around = owner(self._base)
        if isinstance(around, Recall) and around is not self:
            # Whose a pass is could not be told where two generators of a thread are entered by turns.
            raise RecallError("this model is recalling already: leave one `with recall` before entering another")
        with ExitStack() as stack:
            self._entered = one_version(self._bank)
            if not self.requests:
                self._look_at(self._entered)
            stack.enter_context(attached(self._model))
            stack.enter_context(belong_to(self, self._base))
            self._open.append(stack.pop_all())
        return self

    def __exit__(self, *_: object) -> None:
        self._open.pop().close()

    def _look_at(self, source: MemorySource) -> None:
        self.source = source
        each = [self._retrieval] if isinstance(self._retrieval, Retrieval) else self._retrieval
        self._nothing = all(one.finds_nothing(source) for one in each)

    @property
    def rows(self) -> int:
        """Rows of the batch that is generated; with beams, one for each."""
        return len(self.requests)

    def shares(self, row: int = 0) -> list[tuple[str, float, float]]:
        """What the last answer of a row was read from: (reference id, share of attention 0..1, retrieval score), largest
        first.
        """
        self._settle()
        return self.requests[row].shares() if 0 <= row < len(self.requests) else []

    def attention(self, row: int = 0) -> float:
        """Share of its attention that the last answer of a row paid to its references, 0 to 1, over the heads of the
        memory layers and the answer's tokens.

        In a batch, tokens count that a row was padded with after its end.
        """
        self._settle()
        return self.requests[row].attention() if 0 <= row < len(self.requests) else 0.0

    # ---- every forward pass ------------------------------------------------------------------------------------------

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Set positions and the reader of one pass.

        Args:
            args, kwargs: of the forward pass.

        Returns:
            the pass's arguments as ``(args, kwargs)``; None: the pass goes on as it is.

        Raises:
            RecallError: a pass that cannot be followed: without token ids, of a cache that is not known here, with a
                mask of another kind.
        """
        kwargs = {**dict(zip(_FORWARD, args, strict=False)), **kwargs}
        cache = kwargs.get("past_key_values")
        if self.source is not self._entered and (cache is None or cache.get_seq_length() == 0):
            self._look_at(self._entered)  # entered again, for another generation
        if self._nothing:
            return None
        ids = kwargs.get("input_ids")
        if ids is None:
            raise RecallError("recall reads token ids, but this forward pass was given inputs_embeds alone: pass input_ids")
        rows, new = ids.shape
        past = self._past(cache)
        mask = kwargs.get("attention_mask")
        if mask is None:
            # Without a mask, transformers takes the gap in our positions for two packed sequences and hides one from the
            # other.
            mask = torch.ones(rows, past + new, dtype=torch.int64, device=ids.device)
        elif mask.ndim != 2 or mask.shape[1] != past + new:
            raise RecallError(
                f"recall needs the two-dimensional attention mask of all {past + new} tokens, not one of shape "
                f"{tuple(mask.shape)}"
            )
        if past == 0:
            self._begin(rows)
            self._cache, self._length = None if cache is None else ref(cache), 0
        elif len(self.requests) != rows or past != self._length or (self._cache is not None and self._cache() is not cache):
            raise RecallError(
                f"{past} tokens of {rows} rows are in the cache that recall has not seen: start the generation "
                "inside `with recall`, without "
                "past_key_values of another, and finish one prompt before the next"
            )
        self._length += new
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = token_positions(mask)[:, past:]
        real = mask[:, past:].bool()
        fed = (
            [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]
            if new > 1 or not bool(real.all())
            else ids.tolist()
        )
        before = [len(request.tokens) for request in self.requests]
        for request, tokens in zip(self.requests, fed, strict=True):
            request.feed(tokens)
        self._find()
        if all(request.is_decoding for request in self.requests):
            kwargs["memory3"] = self._decode(cache)
            assert self._shift is not None  # a prompt came before
            positions = positions + self._shift  # all decoded tokens lie behind the memories
        else:
            positions, kwargs["memory3"] = self._prompt(real, before, positions.expand(rows, -1))
        kwargs.update(attention_mask=mask, position_ids=positions)
        return (), kwargs

    def _past(self, cache: Any) -> int:
        if cache is None:
            return 0
        if isinstance(cache, StaticCache):
            raise RecallError("recall cannot follow a static cache: generate with the default (dynamic) cache")
        if "reorder_cache" not in vars(cache):
            self._follow(cache)
        return int(cache.get_seq_length())

    def _follow(self, cache: Any) -> None:
        """Beam search permutes the rows of the cache, ours go with them. Speculative decoding takes tokens back: refused."""
        reorder = cache.reorder_cache

        def reorder_cache(beams: torch.Tensor) -> None:
            reorder(beams)
            self._permute(beams.tolist())

        def crop(*_: Any) -> None:
            raise RecallError("recall cannot take tokens back: generate without an assistant model or prompt lookup")

        cache.reorder_cache, cache.crop = reorder_cache, crop

    def _permute(self, order: list[int]) -> None:
        self._settle()
        old, renewals = self.requests, self._renewals
        self.requests = [old[i].fork() for i in order]
        if self._shift is not None:
            self._shift = self._shift[order]
        if self._reading is None:
            return
        self._renewals = [renewals[i] for i in order]
        # Beams of one prompt read the same until they have written a chunk each: then nothing has to be copied.
        if any(old[i].moved != old[n].moved or old[i].reading != old[n].reading for n, i in enumerate(order)):
            self._reading = Reading(select_chunks(self._reading.batch, order))

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _begin(self, rows: int) -> None:
        """A new request for every row."""
        prompts, self._announced = self._announced, None
        if prompts is not None and len(prompts) != rows:
            raise RecallError(f"{len(prompts)} prompts were announced, but {rows} rows are generated")
        each = [self._retrieval] * rows if isinstance(self._retrieval, Retrieval) else self._retrieval
        if self._watch is not None and rows != 1:
            raise RecallError(f"one answer is watched at a time, but {rows} rows are generated: ask one question, no beams")
        if not each or rows % len(each):
            raise RecallError(f"references were given for {len(each)} prompts, but {rows} rows are generated")
        beams = rows // len(each)
        self.requests = [
            RequestMemory(
                self._encoder.frame,
                each[n // beams],
                chunk_length=self._chunk,
                room=self._encoder.config.reference_length,
                text_of=self._tokenizer.decode,
                prompt=None if prompts is None else prompts[n],
                answer_tokens=0 if prompts is None or self._answer_tokens is None else self._answer_tokens[n],
            )
            for n in range(rows)
        ]
        self._batch = self._prompt_reading = self._reading = self._shift = None

    def _find(self) -> None:
        """Look up what requests want, those that want it alike in one search."""
        wanting = [(request, request.lookups) for request in self.requests]
        groups: dict[tuple[int, str], list[int]] = {}
        for number, (request, lookups) in enumerate(wanting):
            if lookups:
                groups.setdefault((request.retrieval.k, repr(request.retrieval.where)), []).append(number)
        hits: dict[int, Sequence[Any]] = {}
        for members in groups.values():
            how = wanting[members[0]][0].retrieval
            found = iter(self.source.search([text for n in members for text in wanting[n][1]], how.k, where=how.where))
            hits |= {n: [next(found) for _ in wanting[n][1]] for n in members}
        for number, request in enumerate(self.requests):
            mine = request.statistics
            asked, read = len(mine.queries), mine.references
            if request.receive(hits.get(number, ())):
                self.statistics.recalls += len(mine.queries) - asked
                self.statistics.references += mine.references - read
                self.statistics.queries += mine.queries[asked:]
                self._fresh.add(number)
                if not request.is_decoding:
                    self._batch = None

    def _load(self, found: Sequence[Sequence[str]], rows: Sequence[int]) -> MemoryBatch:
        """Memories laid out for chunks, of which chunk i is of row ``rows[i]``."""
        names = list(dict.fromkeys(name for ids in found for name in ids))
        memories: dict[str, Memory] = {}
        if names:
            read = self.source.memories(names, use_cache=self._use_cache, device=self._model.device)
            memories = dict(zip(names, read, strict=True))
        if self._watch is not None:
            self._watch.know(memories)
        self._count(found, rows, memories)
        requests = [self.requests[n] for n in rows]
        return self._encoder.lay_out(found, memories, [r.moved for r in requests], [r.place.missing for r in requests])

    def _count(self, found: Sequence[Sequence[str]], rows: Sequence[int], memories: dict[str, Memory]) -> None:
        """Count what was read by those rows that have looked something up for this pass."""
        read: dict[int, set[str]] = {row: set() for row in rows if row in self._fresh}
        for names, row in zip(found, rows, strict=True):
            read.get(row, set()).update(names)
        for row, mine in read.items():
            self.requests[row].statistics.bytes_read += sum(memories[name].bytes_read for name in mine)
        self.statistics.bytes_read += sum(memories[name].bytes_read for name in set().union(*read.values()))
        self._fresh.clear()

    # ---- the prompt --------------------------------------------------------------------------------------------------

    def _prompt(self, real: torch.Tensor, before: Sequence[int], positions: torch.Tensor) -> tuple[torch.Tensor, Reading]:
        """Positions and reader of a pass over prompt tokens: a whole prompt, a part of it, or a later turn.

        Args:
            real: bool ``[B, T]``, which tokens are no padding.
            before: tokens that each request had been fed before this pass.
            positions: int64 ``[B, T]``.
        """
        requests, device = self.requests, real.device
        index = torch.tensor(before, device=device)[:, None] + real.cumsum(-1) - 1  # each token's number within its row
        self._place(real, index, positions)
        assert self._shift is not None
        # A row that decodes already, beside others that do not, reads its references with the one token that it was fed.
        chunks = [
            (n, chunk.start, chunk.end, chunk.references, request.moved)
            for n, request in enumerate(requests)
            for chunk in request.chunks
        ]
        if self._batch is None or chunks != self._laid:
            self._batch, self._laid = self._load([c[3] for c in chunks], [c[0] for c in chunks]), chunks
        self._settle()
        self._inherit(chunks)
        splits = torch.tensor([request.place.split for request in requests], device=device)[:, None]
        behind = real & (index >= splits)
        table = chunk_table([chunk[:3] for chunk in chunks], self._chunk, index, behind)
        columns = torch.arange(real.shape[1], device=device)
        reading = Reading(self._batch, table, torch.where(behind, columns, 0).amax(-1), self._watch is not None)
        ended = [seen and request.is_prompt_read for seen, request in zip(behind.any(-1).tolist(), requests, strict=True)]
        if any(ended):
            self._prompt_reading = reading, ended  # its last tokens choose the first answer tokens
        return torch.where(behind, positions + self._shift, positions), reading

    def _inherit(self, chunks: Sequence[_Laid]) -> None:
        """Let the tokens to be decoded read what the last chunk of their row reads."""
        assert self._batch is not None
        final = {chunk[0]: number for number, chunk in enumerate(chunks)}
        everyone = range(len(self.requests))
        self._renewals = [request.renewals for request in self.requests]
        # A row may have no token behind its memories yet; then it has no chunk to inherit.
        whole = len(final) == len(self.requests)
        batch = select_chunks(self._batch, [final[n] for n in everyone]) if whole else None
        batch = batch or self._load([request.reading for request in self.requests], everyone)
        self._reading = Reading(batch, keeps_all=self._watch is not None)

    def _place(self, real: torch.Tensor, index: torch.Tensor, positions: torch.Tensor) -> None:
        """Fix where memories lie: at the position that the first token behind them would have had."""
        for n, request in enumerate(self.requests):
            if request.is_placed:
                continue
            if bool(real[n].any()):
                column = int(real[n].int().argmax())
                request.lie_at(int(positions[n, column] - index[n, column]))
                request.is_placed = True
            else:  # it has not begun: as if its first token came at position 0, until it comes
                request.lie_at(0)
        self._shift = torch.tensor([[request.shift] for request in self.requests], device=positions.device)

    # ---- decoding ----------------------------------------------------------------------------------------------------

    def _decode(self, cache: Any) -> Reading:
        """Reader of a pass of one decoded token of every row."""
        renewals = [request.renewals for request in self.requests]
        if self._reading is None or renewals != self._renewals:
            self._settle()
            self._reading = None  # its memories make room for the next
            batch = self._load([request.reading for request in self.requests], range(len(self.requests)))
            self._reading = Reading(batch, keeps_all=self._watch is not None)
            self._renewals = renewals
        self._reading.follow(cache)
        self._batch = None  # the prompt has been read
        self._guess()
        return self._reading

    def _guess(self) -> None:
        """Tell a source that fetches beside us what requests would look up now: they will soon, and find about the same."""
        ahead = getattr(self.source, "ahead", None)
        if ahead is None:
            return
        for request in self.requests:
            if request.is_near_renewal and request.reads:
                ahead([request.next_query()], request.retrieval.k, where=request.retrieval.where)

    # ---- who was looked at -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Count the attention paid since the last recall, that of the prompt's last token included."""
        if self._reading is None:
            return
        everyone = [True] * len(self.requests)
        readings = (
            [(self._reading, everyone)] if self._prompt_reading is None else [self._prompt_reading, (self._reading, everyone)]
        )
        self._prompt_reading = None
        batch = self._reading.batch
        for reading, counted in readings:
            if self._watch is not None and all(counted):
                self._watch.take(reading.seen, batch, self._encoder.shape.layers, reading.scale)
            before = reading.looked
            paid = reading.settle(batch).tolist()
            for request, counts, names, values in zip(self.requests, counted, batch.references, paid, strict=True):
                if counts:
                    request.pay(dict(zip(names, values, strict=False)), reading.looked - before)
