"""The memory of one request: its clock, what its tokens read, where that lies, and how much it was looked at.

Knows no engine, no model and no bank: whoever runs forward passes asks it before each of them, and tells it what was
found and what was looked at.

    request.feed(tokens)            the request's tokens of the next pass
    request.lookups                 what has to be found first
    request.receive(hits)           what was found
    request.chunks, .reading        which tokens read which references

The clock. The prompt behind the place of the memories is cut into chunks of 64 tokens (`memory3.recall.chunks`); each
reads the references nearest to its text. The first 64 decoded tokens inherit what the last prompt chunk reads; then every
64 decoded tokens are the query for the next 64.

Positions. Memories lie behind the prefix that they were encoded behind; what follows them in the prompt moves back to
make room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memory3.errors import ConfigError, RecallError
from memory3.models.frame import Frame, Place
from memory3.recall.chunks import Chunk, cut
from memory3.recall.retrieval import Retrieval, SearchHit, within

__all__ = ["ReadChunk", "RecallStatistics", "RequestMemory"]

#: So many tokens before a request looks for memories again, what it will read can be guessed.
AHEAD = 8


@dataclass
class RecallStatistics:
    """What recall did.

    Attributes:
        recalls: chunks that looked for memories.
        references: memories read by them.
        bytes_read: size of those memories as they are stored, each counted once per recall.
        queries: text each chunk was looked up by, in order.
    """

    recalls: int = 0
    references: int = 0
    bytes_read: int = 0
    queries: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReadChunk:
    """Tokens of a request and what they read.

    Attributes:
        start, end: which, as counted within the request without padding.
        references: ids, most similar first.
    """

    start: int
    end: int
    references: tuple[str, ...]


@dataclass
class _Wanted:
    """A chunk whose references are not known yet. ``query``: the text it is looked up by; "": it reads what the chunk
    before it reads.
    """

    start: int
    end: int
    query: str


class RequestMemory:
    """What one request reads, from its first token to its last.

    Attributes:
        retrieval: what it looks up.
        place: where memories stand in its prompt; known once tokens were fed.
        tokens: its real tokens so far, prompt and decoded.
        reading: what decoded tokens read now: ids, most similar first.
        renewals: how often `reading` has been decided, by the prompt or while decoding.
        is_decoding: whether the tokens fed last were one decoded token.
        moved: by how many positions its memories move from where they were written; set by `lie_at`.
        is_placed: whether `moved` is known for good; set by whoever knows the position of the first token.
        scores: cosine of the search that found a reference, by id.
        hits: all that the search for the prompt's last chunk found, best first, whatever the gap leaves of it; empty where
            nothing was looked up.
        mass: attention its decoded tokens paid, by reference.
        paid: the same for each token of the answer, where whoever runs the passes tells it token by token.
        looked: attention they paid in all, to memories and to the context, in the layers that have memories.
        statistics: see `RecallStatistics`.
    """

    def __init__(
        self,
        frame: Frame,
        retrieval: Retrieval,
        *,
        chunk_length: int,
        room: int,
        text_of: Callable[[Sequence[int]], str],
        prompt: Sequence[int] | None = None,
        answer_tokens: int = 0,
    ) -> None:
        """A request that has not begun.

        Args:
            frame: the pieces of its prompt.
            retrieval: what it looks up.
            chunk_length: tokens between two recalls (the paper: 64).
            room: positions that memories take (the paper: 128).
            text_of: the text of tokens.
            prompt: all tokens of the prompt, when they will be fed in several passes: a chunk is looked up by all of its text.
            answer_tokens: how many of the last tokens of ``prompt`` are an answer to be scored: they read what they would
                if they were being decoded.
        """
        if chunk_length < 1:
            raise ConfigError(f"recall every {chunk_length} tokens: give at least 1")
        self.retrieval = retrieval
        self.place = Place(0, 0)
        self.tokens: list[int] = []
        self.reading: tuple[str, ...] = ()
        self.renewals = 0
        self.is_decoding = False
        self.moved = 0
        self.is_placed = False
        self.scores: dict[str, float] = {}
        self.hits: tuple[SearchHit, ...] = ()
        self.mass: dict[str, float] = {}
        self.paid: list[Mapping[str, float]] = []
        self.looked = 0
        self.statistics = RecallStatistics()
        self._frame = frame
        self._chunk_length = chunk_length
        self._room = room
        self._text_of = text_of
        self._announced = None if prompt is None else list(prompt)
        self._answer_tokens = answer_tokens
        self._begun = False
        self._has_decoded = False  # whether the token fed last was a decoded one
        self._prompt_chunks: list[ReadChunk] = []
        self._planned = 0  # how many tokens the chunks cut so far reach to
        self._decoded = 0  # tokens decoded since the last recall
        self._wanted: list[_Wanted] = []

    # ---- before a forward pass ---------------------------------------------------------------------------------------

    @property
    def reads(self) -> bool:
        """Whether it may read anything. Where not, its prompt stands as it is: not even the prefix is put in front."""
        return self.retrieval.references is None or bool(self.retrieval.references)

    @property
    def shift(self) -> int:
        """By how many positions the tokens behind the memories move."""
        return self.place.room(self._room) if self.reads else 0

    @property
    def chunks(self) -> list[ReadChunk]:
        """What the tokens fed last read: of a stretch of prompt each part, or the one token that was decoded."""
        if not self._has_decoded:
            return self._prompt_chunks
        return [ReadChunk(len(self.tokens) - 1, len(self.tokens), self.reading)]

    @property
    def is_prompt_read(self) -> bool:
        """Whether all of the prompt was fed, so that the next token is a decoded one."""
        return self._planned == len(self.tokens) > self.place.split

    def feed(self, tokens: Sequence[int]) -> None:
        """Take the request's real tokens of the next pass; none, where the pass holds only padding of its row.

        `lookups` must be answered by `receive` before anything else.
        """
        assert not self._wanted, "what was looked up has not been received"
        fed_before = len(self.tokens)
        if not self._begun:
            self._begin(tokens)
        self.is_decoding = fed_before > 0 and len(tokens) == 1 and self._planned == fed_before
        if tokens:
            self._has_decoded = self.is_decoding
        if self.is_decoding:
            if self._decoded >= self._chunk_length:
                self._renew()
            self._decoded += 1
            self._planned += 1
        self.tokens += tokens
        if self._planned < len(self.tokens):
            self._plan(self.tokens, max(self.place.split, self._planned))

    @property
    def is_waiting(self) -> bool:
        """Whether `receive` has to be called before the next pass."""
        return bool(self._wanted)

    @property
    def lookups(self) -> list[str]:
        """Texts to be searched for, each by `retrieval`, before the pass; none where the caller has said what is read."""
        said = self.retrieval.references is not None or (self.retrieval.chunk_references is not None and not self.is_decoding)
        return [] if said else [wanted.query for wanted in self._wanted if wanted.query]

    def would_read(self, hits: Sequence[Sequence[SearchHit]]) -> list[str]:
        """Ids of all references that `receive` may have it read, for whoever fetches them first.

        Args:
            hits: as for `receive`.
        """
        if self.retrieval.references is not None:
            return list(dict.fromkeys(self.retrieval.references))
        if self.retrieval.chunk_references is not None and not self.is_decoding:
            return list(dict.fromkeys(name for names in self.retrieval.chunk_references for name in names))
        found = dict.fromkeys(hit.reference_id for each in hits for hit in within(each, self.retrieval.gap))
        return list(found or self.reading)  # where nothing is looked up, it goes on with what it reads

    def receive(self, hits: Sequence[Sequence[SearchHit]]) -> bool:
        """Take what was found for each of `lookups`, most similar first. Returns whether what is read has changed.

        Raises:
            RecallError: chunks whose references the caller gave, but for another number of chunks.
        """
        if not self._wanted:
            return False
        found = iter(hits)
        named = None if self.is_decoding else self._named(len(self._wanted))
        pinned = self.retrieval.references
        chunks, last = [], self.reading
        for number, wanted in enumerate(self._wanted):
            if named is not None:
                last = named[number]
            elif wanted.query:  # else an answer's beginning, or nothing but template: what came before is still the subject
                last = self._nearest(next(found)) if pinned is None else pinned
            chunks.append(ReadChunk(wanted.start, wanted.end, last))
        if self.reads:
            if named is None:  # else nothing was looked for
                self.statistics.recalls += len(chunks)
                self.statistics.queries += [wanted.query for wanted in self._wanted]
            self.statistics.references += sum(len(chunk.references) for chunk in chunks)
        self._wanted = []
        self.reading = last
        self.renewals += 1
        self._decoded = int(self.is_decoding)  # the decoded token that was fed is the first to read it
        if not self.is_decoding:
            self._prompt_chunks = chunks
        return True

    def lie_at(self, origin: int) -> None:
        """Fix where memories lie: where the first token behind them would have been, ``origin`` being the position of the
        request's first token.
        """
        self.moved = self.place.moved(len(self._frame.prefix), origin)

    # ---- after a forward pass ----------------------------------------------------------------------------------------

    def pay(self, mass: Mapping[str, float], looked: int) -> None:
        """Count the attention that decoded tokens paid: by reference, and in all.

        Args:
            mass: attention by reference.
            looked: attention that could have been paid, one for every query of every head and layer.
        """
        self.looked += looked
        for name, value in mass.items():
            self.mass[name] = self.mass.get(name, 0.0) + value

    def pay_each(self, mass: Sequence[Mapping[str, float]], looked: int) -> None:
        """Count the attention that decoded tokens paid, token by token; `paid` keeps it.

        Args:
            mass: for each token its attention by reference.
            looked: as in `pay`, of all of them.
        """
        self.paid += mass
        for one in mass:
            self.pay(one, 0)
        self.looked += looked

    def shares(self) -> list[tuple[str, float, float]]:
        """What its answer was read from: (reference id, share of attention 0..1, retrieval score), largest first."""
        return self._shares(self.mass)

    def shares_of(self, first: int, last: int) -> list[tuple[str, float, float]]:
        """The same of the answer's tokens from ``first`` to before ``last``, as far as they were told token by token."""
        mass: dict[str, float] = {}
        for one in self.paid[first:last]:
            for name, value in one.items():
                mass[name] = mass.get(name, 0.0) + value
        return self._shares(mass)

    def _shares(self, mass: Mapping[str, float]) -> list[tuple[str, float, float]]:
        total = sum(mass.values()) or 1.0
        names = sorted(mass, key=lambda name: -mass[name])
        return [(name, mass[name] / total, self.scores.get(name, 0.0)) for name in names]

    def attention(self) -> float:
        """Share of its attention that its answer paid to references, 0 to 1."""
        return sum(self.mass.values()) / self.looked if self.looked else 0.0

    def fork(self) -> RequestMemory:
        """Another request that has read the same so far, as a beam that branches off."""
        other = RequestMemory.__new__(RequestMemory)
        vars(other).update(vars(self))
        other.tokens, other.scores, other.mass = list(self.tokens), dict(self.scores), dict(self.mass)
        other.paid = list(self.paid)
        other._wanted = list(self._wanted)
        other.statistics = replace(self.statistics, queries=list(self.statistics.queries))
        return other

    # ---- what comes ------------------------------------------------------------------------------------------------

    @property
    def until_renewal(self) -> int:
        """How many tokens it decodes until it looks something up again; -1: it never does."""
        if self.retrieval.references is not None or not self.is_decoding:
            return -1
        return self._chunk_length - self._decoded

    @property
    def is_near_renewal(self) -> bool:
        """Whether it will look something up `AHEAD` tokens from now."""
        return self.until_renewal == AHEAD

    def next_query(self) -> str:
        """By what it would look something up if it did so now."""
        tokens = self.tokens[-self._decoded :]
        return self._words(tokens, self._frame.content(tokens))

    # ---- the clock ---------------------------------------------------------------------------------------------------

    def _begin(self, tokens: Sequence[int]) -> None:
        if self._announced is None and not tokens:
            return
        self._begun = True
        prompt = list(tokens) if self._announced is None else self._announced
        self.place = self._frame.place(prompt) if self.reads else Place(0, 0)
        if self._announced is not None:
            self._plan(prompt, self.place.split, self._answer_tokens)

    def _plan(self, text: Sequence[int], start: int, answer: int = 0) -> None:
        """Cut the tokens of ``text`` from ``start`` on; the last ``answer`` of them as decoding would read them."""
        is_text = self._frame.content(text)
        for chunk in cut(self.place.split, start, len(text), self._chunk_length, answer):
            self._wanted.append(_Wanted(chunk.start, chunk.end, self._query(chunk, text, is_text)))
        self._planned = len(text)
        if not self._wanted:  # the prompt ends in front of the memories: nothing is to be looked up yet
            self._prompt_chunks = []

    def _query(self, chunk: Chunk, text: Sequence[int], is_text: Sequence[bool]) -> str:
        if chunk.query is None:
            return ""
        return self._words(text[chunk.query], is_text[chunk.query])

    def _renew(self) -> None:
        """What was decoded since the last recall is the query for the next tokens."""
        at = len(self.tokens)
        # A request that has ended writes nothing but padding: then it goes on reading what it read.
        self._wanted.append(_Wanted(at, at + 1, self.next_query()))

    def _words(self, tokens: Sequence[int], is_text: Sequence[bool]) -> str:
        return self._text_of([t for t, keep in zip(tokens, is_text, strict=True) if keep]).strip()

    # ---- what was found ----------------------------------------------------------------------------------------------

    def _named(self, count: int) -> tuple[tuple[str, ...], ...] | None:
        """What the caller said that each chunk reads."""
        named = self.retrieval.chunk_references
        if named is not None and len(named) != count:
            raise RecallError(f"references were given for {len(named)} chunks of a prompt that has {count}")
        return named

    def _nearest(self, hits: Sequence[SearchHit]) -> tuple[str, ...]:
        near = within(hits, self.retrieval.gap)
        if not self.is_decoding:
            self.hits = tuple(hits)
        self.scores.update((hit.reference_id, float(hit.score)) for hit in near)
        return tuple(hit.reference_id for hit in near)
