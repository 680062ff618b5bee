"""Recall: memories found and read while a model generates (PAPER.md section 4).

    with m3.recall(bank) as recall:
        m3.model.generate(...)          # plain transformers

The clock, per row of a batch. The prompt behind the place of the memories is cut into chunks of 64 tokens (`memory3.recall.chunks`); each chunk reads the five
references nearest to its text; all chunks are read in one forward pass. The first 64 decoded tokens inherit the memories of the last prompt chunk; then every
64 decoded tokens become the query for the next 64.

Positions. Memories lie in the same 128 positions behind the prefix, or, where the settings say so, in a row that ends there, the best one last. The rest of the prompt follows after them: a pre-hook on
the model moves the ``position_ids`` of all tokens behind the memories and hands the attention its reader. Memories never enter the `Cache`.

Knows banks through `MemorySource` and nothing of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar
from weakref import ref

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

from memory3.attention.attach import attached
from memory3.attention.exclusive import exclusive
from memory3.attention.layout import select_chunks
from memory3.attention.reading import Reading
from memory3.encode.encoder import Encoder
from memory3.errors import ConfigError, RecallError
from memory3.models.frame import Place
from memory3.models.geometry import ModelGeometry
from memory3.recall.chunks import Chunk, ChunkPlan, cut
from memory3.types import Memory, MemoryBatch

__all__ = ["MemorySource", "Recall", "RecallStatistics", "check_no_recall", "one_version", "within"]


#: The first parameters of every causal model's forward, for callers that pass them by position.
_FORWARD = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds")


class _Hit(Protocol):
    @property
    def reference_id(self) -> str: ...

    @property
    def score(self) -> float: ...


_Found = TypeVar("_Found", bound=_Hit)
_Source = TypeVar("_Source")


def within(hits: Sequence[_Found], gap: float) -> Sequence[_Found]:
    """The hits, most similar first, whose score is within ``gap`` of the first one's."""
    return [hit for hit in hits if hit.score >= hits[0].score - gap]


class MemorySource(Protocol):
    """What recall needs of a bank. One that changes while it is read has a method ``pin`` besides, which gives a source that does not."""

    def search(self, queries: Sequence[str], k: int, where: Mapping[str, Any] | None = None) -> Sequence[Sequence[_Hit]]:
        """The k nearest references of each query, most similar first."""

    def memories(self, reference_ids: Sequence[str], *, use_cache: bool = True) -> Sequence[Memory]:
        """Their memories, in order."""

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many references there are."""


def one_version(bank: _Source) -> _Source:
    """The bank as it is now, for all that one answer finds, reads and cites."""
    pin = getattr(bank, "pin", None)
    return bank if pin is None else pin()


def check_no_recall(base: torch.nn.Module) -> None:
    """Raise RecallError inside a recall of this model: whatever is generated there reads its memories."""
    if any(isinstance(getattr(hook, "__self__", None), Recall) for hook in base._forward_pre_hooks.values()):
        raise RecallError(
            "this model is recalling already: leave one `with recall` before entering another, or asking without memories"
        )


@dataclass
class RecallStatistics:
    """What recall did since it was entered.

    Attributes:
        recalls: chunks that looked for memories.
        references: memories read by them.
        bytes_read: size of those memories, each counted once per recall.
        queries: text each chunk was looked up by, in order.
    """

    recalls: int = 0
    references: int = 0
    bytes_read: int = 0
    queries: list[str] = field(default_factory=list)


@dataclass
class _Row:
    """One row of the batch.

    Attributes:
        place: where its memories stand.
        reads: whether it may read anything.
        tokens: real tokens seen so far, prompt and decoded.
        planned: how many tokens the chunks cut so far reach to.
        moved: by how many positions its memories move from where they were written.
        mass: attention its decoded tokens paid, by reference.
        looked: attention they paid in all, to memories and to the context, in the layers that have memories.
    """

    place: Place
    reads: bool = True
    tokens: list[int] = field(default_factory=list)
    planned: int = 0
    moved: int = 0
    mass: dict[str, float] = field(default_factory=dict)
    looked: int = 0


class Recall:
    """Context in which a model reads memories. Made by `Memory3.recall`; one generation at a time.

    Attributes:
        statistics: see `RecallStatistics`.
        source: what is searched and read: the bank as it was when the context was entered.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: ModelGeometry,
        tokenizer: Any,
        encoder: Encoder,
        bank: MemorySource,
        *,
        references_per_chunk: int,
        chunk_length: int,
        score_gap: float = 2.0,
        where: Mapping[str, Any] | None = None,
        prompt: Sequence[Sequence[int]] | None = None,
        answer_tokens: Sequence[int] | None = None,
        references: Sequence[Sequence[str]] | None = None,
        chunk_references: Sequence[Sequence[Sequence[str]]] | None = None,
        use_cache: bool = True,
    ) -> None:
        """See `Memory3.recall`."""
        if references_per_chunk < 0 or chunk_length < 1:
            raise ConfigError(
                f"recall of {references_per_chunk} references every {chunk_length} tokens: give at least 0 references and 1 token"
            )
        self.statistics = RecallStatistics()
        self._model = model
        self._shape = geometry
        self._exclusive = exclusive(geometry.base)
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._frame = encoder.frame
        self._bank = self.source = bank
        self._k = references_per_chunk
        self._chunk = chunk_length
        self._gap = score_gap
        self._where = where
        self._announced = None if prompt is None else [[int(t) for t in row] for row in prompt]
        self._answer_tokens = list(answer_tokens) if answer_tokens is not None else None
        self._pinned = None if references is None else [list(ids) for ids in references]
        self._by_chunk = None if chunk_references is None else [[list(ids) for ids in row] for row in chunk_references]
        self._use_cache = use_cache
        self._nothing = False
        self._scores: dict[str, float] = {}
        self._rows: list[_Row] = []
        self._plan: ChunkPlan | None = None
        self._cache: ref[Any] | None = None  # that the prompt was begun with, if it was
        self._length = 0  # tokens that are in the cache now
        self._decoded = 0  # tokens since the last recall
        self._shift: torch.Tensor | None = None  # [B, 1], how far tokens behind the memories move
        self._prompt_reading: Reading | None = None
        self._reading: Reading | None = None  # of decoded tokens: one chunk a row

    # ---- the context -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recall:
        with ExitStack() as stack:
            stack.enter_context(self._exclusive)
            self._enter(stack)
            self._exit = stack.pop_all()
        return self

    def _enter(self, stack: ExitStack) -> None:
        check_no_recall(self._shape.base)
        self.source = one_version(self._bank)
        if self._pinned is not None:
            self._nothing = not any(self._pinned)
        elif self._by_chunk is not None:
            self._nothing = not any(ids for row in self._by_chunk for ids in row)
        else:
            self._nothing = self._k == 0 or self.source.count(self._where) == 0
        stack.enter_context(attached(self._model))
        hook = self._shape.base.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        stack.callback(hook.remove)
        after = self._shape.base.register_forward_hook(lambda *_: self._exclusive.idle(), always_call=True)
        stack.callback(after.remove)
        self._exclusive.idle()

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def rows(self) -> int:
        """Rows of the batch that is generated; with beams, one for each."""
        return len(self._rows)

    def shares(self, row: int = 0) -> list[tuple[str, float, float]]:
        """What the last answer of a row was read from: (reference id, share of attention 0..1, retrieval score), largest first."""
        self._settle()
        if not 0 <= row < len(self._rows):
            return []
        mass = self._rows[row].mass
        total = sum(mass.values()) or 1.0
        return [(name, mass[name] / total, self._scores.get(name, 0.0)) for name in sorted(mass, key=lambda n: -mass[n])]

    def attention(self, row: int = 0) -> float:
        """Share of its attention that the last answer of a row paid to its references, 0 to 1, over the heads of the memory layers and the answer's tokens.

        In a batch, tokens count that a row was padded with after its end.
        """
        self._settle()
        if not 0 <= row < len(self._rows) or not self._rows[row].looked:
            return 0.0
        return sum(self._rows[row].mass.values()) / self._rows[row].looked

    # ---- every forward pass ------------------------------------------------------------------------------------------

    def _before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._exclusive.is_mine:
            raise RecallError(
                "this thread runs a model in which another thread is recalling: enter the recall in the thread that generates, or use "
                "Memory3.generate, which waits"
            )
        self._exclusive.busy()
        if "memory3" in kwargs or self._nothing:  # the encoder at work inside a recall (cold start), or nothing to read
            return None
        kwargs = {**dict(zip(_FORWARD, args, strict=False)), **kwargs}
        ids = kwargs.get("input_ids")
        if ids is None:
            raise RecallError("recall reads token ids, but this forward pass was given inputs_embeds alone: pass input_ids")
        rows, new = ids.shape
        past = self._past(kwargs.get("past_key_values"))
        mask = kwargs.get("attention_mask")
        if mask is None:
            # Without a mask, transformers takes the gap in our positions for two packed sequences and hides one from the other.
            mask = torch.ones(rows, past + new, dtype=torch.int64, device=ids.device)
        elif mask.ndim != 2 or mask.shape[1] != past + new:
            raise RecallError(
                f"recall needs the two-dimensional attention mask of all {past + new} tokens, not one of shape {tuple(mask.shape)}"
            )
        cache = kwargs.get("past_key_values")
        if past == 0:
            self._begin(ids, mask)
            self._cache, self._length = None if cache is None else ref(cache), 0
        elif len(self._rows) != rows or past != self._length or (self._cache is not None and self._cache() is not cache):
            raise RecallError(
                f"{past} tokens of {rows} rows are in the cache that recall has not seen: start the generation inside `with recall`, without "
                "past_key_values of another, and finish one prompt before the next"
            )
        self._length += new
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = (mask.cumsum(-1)[:, past:] - 1).clamp_min(0)
        if new == 1 and past > 0 and all(row.planned <= len(row.tokens) for row in self._rows):
            kwargs["memory3"] = self._decode(ids[:, 0].tolist(), kwargs.get("past_key_values"))
            assert self._shift is not None  # a prompt came before
            positions = positions + self._shift  # all decoded tokens lie behind the memories
        else:
            positions, kwargs["memory3"] = self._prompt(ids, mask[:, past:].bool(), positions.expand(rows, -1))
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
        rows = self._rows
        self._rows = [replace(rows[i], tokens=list(rows[i].tokens), mass=dict(rows[i].mass)) for i in order]
        if self._shift is not None:
            self._shift = self._shift[order]
        if self._reading is not None:
            batch = self._reading.batch
            # Beams of one prompt read the same until they have written a chunk each: then nothing has to be copied.
            if any(rows[i].moved != rows[n].moved or batch.references[i] != batch.references[n] for n, i in enumerate(order)):
                self._reading = Reading(select_chunks(batch, order))

    # ---- the prompt --------------------------------------------------------------------------------------------------

    def _begin(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        prompts, self._announced = self._announced, None
        announced = prompts is not None
        if prompts is None:
            prompts = [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]
        elif len(prompts) != len(ids):
            raise RecallError(f"{len(prompts)} prompts were announced, but {len(ids)} rows are generated")
        if self._pinned is not None and len(prompts) % max(len(self._pinned), 1):
            raise RecallError(f"references were given for {len(self._pinned)} prompts, but {len(prompts)} rows are generated")
        each = len(prompts) // max(len(self._pinned or ()), 1)  # beams of one prompt
        self._rows = []
        for n, prompt in enumerate(prompts):
            reads = not self._pinned or not each or bool(self._pinned[n // each])
            # Where nothing is to be read, the prompt stands as it is: not even the prefix is put in front.
            self._rows.append(_Row(self._frame.place(prompt) if reads else Place(0, 0), reads))
        self._plan = self._prompt_reading = self._reading = self._shift = None
        self._decoded = 0
        if announced:
            self._cut(prompts, [row.place.split for row in self._rows], self._answer_tokens)

    def _cut(self, texts: list[list[int]], starts: list[int], answers: Sequence[int] | None = None) -> None:
        """ChunkPlan the chunks of all rows' tokens from ``starts`` on; the last ``answers`` of them as decoding would read them."""
        chunks: list[Chunk] = []
        for n, (row, text, start) in enumerate(zip(self._rows, texts, starts, strict=True)):
            chunks += cut(n, row.place.split, start, len(text), self._chunk, answers[n] if answers else 0)
            row.planned = len(text)
        self._plan = ChunkPlan(texts, chunks, self._chunk)

    def _prompt(self, ids: torch.Tensor, real: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, Reading]:
        """Positions and reader of a pass over prompt tokens: a whole prompt, a part of it, or a later turn."""
        counts = torch.tensor([len(row.tokens) for row in self._rows], device=ids.device)[:, None]
        index = counts + real.cumsum(-1) - 1  # each token's number within its row
        for row, tokens, keep in zip(self._rows, ids, real, strict=True):
            row.tokens += tokens[keep].tolist()
        if any(row.planned < len(row.tokens) for row in self._rows):
            starts = [max(row.place.split, row.planned) for row in self._rows]
            self._cut([list(row.tokens) for row in self._rows], starts)
        if self._shift is None:
            self._place(real, index, positions)
        assert self._plan is not None
        assert self._shift is not None
        if self._plan.batch is None:
            self._plan.batch = self._recall_prompt(self._plan)
            self._decoded = 0
        splits = torch.tensor([row.place.split for row in self._rows], device=ids.device)[:, None]
        behind = real & (index >= splits)
        table = self._plan.table(index, behind)
        self._settle()
        columns = torch.arange(ids.shape[1], device=ids.device)
        reading = Reading(self._plan.batch, table, watched=torch.where(behind, columns, 0).amax(-1))
        if bool(behind.any(-1).all()) and all(row.planned == len(row.tokens) for row in self._rows):
            self._prompt_reading = reading  # its last tokens choose the first answer tokens
        return torch.where(behind, positions + self._shift, positions), reading

    def _place(self, real: torch.Tensor, index: torch.Tensor, positions: torch.Tensor) -> None:
        """Fix where memories lie: at the position that the first token behind them would have had."""
        for n, row in enumerate(self._rows):
            column = int(real[n].int().argmax())
            origin = int(positions[n, column] - index[n, column]) if bool(real[n, column]) else 0
            row.moved = origin + row.place.split - (len(self._frame.prefix) - row.place.missing)
        gap = self._encoder.config.reference_length
        moves = [[row.place.missing + gap if row.reads else 0] for row in self._rows]
        self._shift = torch.tensor(moves, device=positions.device)

    def _recall_prompt(self, plan: ChunkPlan) -> MemoryBatch:
        """Look up every chunk by its text, and let the tokens to be decoded inherit the last chunk of their row."""
        text = [self._frame.content(tokens) for tokens in plan.texts]
        queries = [
            "" if c.query is None else self._decode_text(plan.texts[c.row][c.query], text[c.row][c.query]) for c in plan.chunks
        ]
        named = self._named(plan)
        found = self._search(queries, [c.row for c in plan.chunks]) if named is None else named
        inherited = self._reading.batch.references if self._reading is not None else [[] for _ in self._rows]
        last = list(map(list, inherited))
        for i, chunk in enumerate(plan.chunks):
            if (
                named is None and not queries[i]
            ):  # an answer's beginning, or nothing but template: what came before is still the subject
                found[i] = last[chunk.row]
            last[chunk.row] = found[i]
        batch = self._load(found, [c.row for c in plan.chunks])
        final = {c.row: i for i, c in enumerate(plan.chunks)}
        everyone = range(len(self._rows))
        # A row may have no token behind its memories yet; then it has no chunk to inherit.
        whole = len(final) == len(self._rows)
        self._settle()
        self._reading = Reading(select_chunks(batch, [final[n] for n in everyone]) if whole else self._load(last, everyone))
        return batch

    def _named(self, plan: ChunkPlan) -> list[list[str]] | None:
        """What the caller said that each chunk reads."""
        if self._by_chunk is None:
            return None
        rows = [chunk.row for chunk in plan.chunks]
        counts, given = [rows.count(n) for n in range(len(self._rows))], [len(row) for row in self._by_chunk]
        if counts != given:
            raise RecallError(f"references were given for {given} chunks of the prompts, which have {counts}")
        return [ids for row in self._by_chunk for ids in row]  # chunks stand row by row, in order

    # ---- decoding ----------------------------------------------------------------------------------------------------

    def _decode(self, tokens: list[int], cache: Any) -> Reading | None:
        """One more token of every row."""
        if self._decoded >= self._chunk:
            self._next_chunk()
        if self._reading is not None:
            self._reading.follow(cache)
        self._plan = None  # the prompt has been read
        self._decoded += 1
        for row, token in zip(self._rows, tokens, strict=True):
            row.tokens.append(token)
            row.planned += 1
        return self._reading

    def _next_chunk(self) -> None:
        """Drop the current memories; the tokens decoded since the last recall are the query for the next."""
        assert self._reading is not None
        queries = []
        for row in self._rows:
            tokens = row.tokens[-self._decoded :]
            queries.append(self._decode_text(tokens, self._frame.content(tokens)))
        found = self._search(queries, range(len(self._rows)))
        for i, query in enumerate(queries):
            if not query:  # a row that has ended writes nothing but padding
                found[i] = list(self._reading.batch.references[i])
        self._settle()
        self._reading = None  # its memories make room for the next
        self._reading = Reading(self._load(found, range(len(self._rows))))
        self._decoded = 0

    def _decode_text(self, tokens: Sequence[int], text: Sequence[bool]) -> str:
        return self._tokenizer.decode([t for t, keep in zip(tokens, text, strict=True) if keep]).strip()

    # ---- the bank ----------------------------------------------------------------------------------------------------

    def _search(self, queries: Sequence[str], rows: Sequence[int]) -> list[list[str]]:
        """References for each query; none for an empty one."""
        self.statistics.queries += queries
        self.statistics.recalls += len(queries)
        if self._pinned is not None:
            each = len(self._rows) // len(self._pinned)  # beams of one prompt
            return [list(self._pinned[n // each]) for n in rows]
        wanted = [q for q in queries if q]
        hits = iter(self.source.search(wanted, self._k, where=self._where) if wanted else [])
        found: list[list[str]] = []
        for query in queries:
            mine = within(next(hits), self._gap) if query else []
            self._scores.update((hit.reference_id, float(hit.score)) for hit in mine)
            found.append([hit.reference_id for hit in mine])
        return found

    def _load(self, found: Sequence[Sequence[str]], rows: Sequence[int]) -> MemoryBatch:
        names = list(dict.fromkeys(name for ids in found for name in ids))
        memories = dict(zip(names, self.source.memories(names, use_cache=self._use_cache), strict=True)) if names else {}
        self.statistics.references += sum(len(ids) for ids in found)
        self.statistics.bytes_read += sum(memory.nbytes for memory in memories.values())
        mine = [self._rows[n] for n in rows]
        return self._encoder.lay_out(found, memories, [row.moved for row in mine], [row.place.missing for row in mine])

    # ---- who was looked at -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Book the attention paid since the last recall, that of the prompt's last token included."""
        if self._reading is None:
            return
        readings = [r for r in (self._prompt_reading, self._reading) if r is not None]
        self._prompt_reading = None
        for reading in readings:
            before = reading.looked
            mass = reading.settle(self._reading.batch).tolist()
            for row in self._rows:
                row.looked += reading.looked - before
            for row, names, values in zip(self._rows, self._reading.batch.references, mass, strict=True):
                for name, value in zip(names, values, strict=False):
                    row.mass[name] = row.mass.get(name, 0.0) + value
