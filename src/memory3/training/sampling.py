"""Draws groups from records, with a bank to retrieve from.

The references of a question are what retrieval finds for it, as at serving, so the other four are near misses; every further question that one of them answers
joins the group, so that a reference is encoded once for many questions. What is retrieved for a text or a prompt overlaps none of the group's by 90% or more
(`memory3.overlap`, PAPER.md eq. 6).

Nothing here knows a model's weights: groups are drawn before training, so a resumed run reads the same ones.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.overlap import exceeds
from memory3.training.groups import Group, TrainingRow, without_memories
from memory3.training.records import Prompt, Question, Records
from memory3.training.settings import KINDS, Settings
from memory3.types import Document, Reference

if TYPE_CHECKING:
    from memory3.bank import Bank

__all__ = ["LEAK", "GroupMaker", "documents_of"]

#: A text is not trained with a reference that overlaps it more (PAPER.md eq. 6).
LEAK = 0.9
#: Questions looked up at once.
_AT_ONCE = 32
#: Texts nearest to a text that are looked at for its references and its companions.
_NEAR = 12
#: A text shorter than this many tokens says too little.
_SHORTEST = 16
#: By so many first tokens a reference is called, to be recited.
_CUE = 8
#: Ids of the records' own documents begin with it; a bank's do not.
_OWN = "training-data/"


def documents_of(records: Records) -> Iterator[Document]:
    """Every distinct passage and text, under the id by which `GroupMaker` knows it. A text with questions is a text."""
    texts = dict.fromkeys(records.texts)
    passages = dict.fromkeys(question.passage for question in records.questions if question.passage not in texts)
    yield from (Document(f"{_OWN}passage{n}", text) for n, text in enumerate(passages))
    yield from (Document(f"{_OWN}text{n}", text) for n, text in enumerate(texts))


@dataclass
class _Bag:
    """Numbers 0..n-1 in random order, over and over; what has been used is passed over until the next round, what is gone for ever."""

    name: str
    size: int
    rng: random.Random
    used: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    queue: list[int] = field(default_factory=list)

    def take(self) -> int:
        while True:
            if not self.queue:
                self.queue = [n for n in range(self.size) if n not in self.gone]
                if not self.queue:
                    raise InputError(
                        f"all {self.size} {self.name}s are held back for looking at: give more data, or lower eval_groups"
                    )
                self.rng.shuffle(self.queue)
                self.used = set()
            number = self.queue.pop()
            if number not in self.used and number not in self.gone:
                self.used.add(number)
                return number


class GroupMaker:
    """Draws groups from records, with a bank of their passages and texts to retrieve from.

    Attributes:
        held_back: groups that are not trained on, by kind.
    """

    def __init__(self, m3: Memory3, bank: Bank | None, records: Records, settings: Settings) -> None:
        """``bank``: of `documents_of` the records, or another, which is only asked for texts. None: for mixtures that retrieve nothing."""
        self._m3, self._bank, self._settings = m3, bank, settings
        self._k = settings.memory.references_per_chunk
        self._rng = random.Random(settings.seed)
        documents = list(documents_of(records))
        number = {document.text: document.id for document in documents}
        self._references: dict[str, list[Reference]] = {document.id: list(m3.split(document)) for document in documents}
        self._texts = [d for d in documents if d.id.startswith(f"{_OWN}text") and len(self._tokens(d.id)) >= _SHORTEST]
        longest = settings.sequence_length
        self._prompts = [p for p in records.prompts if self._length(*p) <= longest]
        self._short = [p for p in records.prompts if self._length(*p) <= 2 * settings.text_length]
        self._preferences = [
            p
            for p in records.preferences
            if max(self._length(p.prompt, p.chosen), self._length(p.prompt, p.rejected)) <= longest
        ]
        # A question is usable where its answer can be told to stand in few enough references.
        self._questions: list[Question] = []
        self._needed: list[frozenset[str]] = []
        self._answered_by: dict[str, list[int]] = defaultdict(list)
        for question in records.questions:
            needed = self._needs(question, number[question.passage])
            if needed and len(m3.prompts.ids(question.answer)) <= settings.text_length:
                for name in needed:
                    self._answered_by[name].append(len(self._questions))
                self._questions.append(question)
                self._needed.append(needed)
        long = [r for some in self._references.values() for r in some if len(r.token_ids) >= _SHORTEST]
        self._recitable = list({r.token_ids: r for r in long}.values())  # the same words may stand in two documents
        number_of = {r.token_ids: n for n, r in enumerate(self._recitable)}
        self._place = {r.id: number_of[r.token_ids] for r in long}
        end = m3.tokenizer.eos_token_id
        self._stream = [
            token
            for document in self._texts
            for reference in self._references[document.id]
            for token in (
                *self._running(reference),
                *([end] if reference is self._references[document.id][-1] and end is not None else []),
            )
        ]
        # The last sequence is shorter than the others, and left out where it is shorter than a chunk.
        starts = range(0, len(self._stream), settings.sequence_length)
        self._starts = [start for start in starts if len(self._stream) - start >= settings.memory.chunk_length]
        self._bags = {
            name: _Bag(name, size, self._rng)
            for name, size in (
                ("question", len(self._questions)),
                ("closed", len(self._questions)),
                ("prompt", len(self._prompts)),
                ("short", len(self._short)),
                ("preference", len(self._preferences)),
                ("text", len(self._texts)),
                ("sequence", len(self._starts)),
                ("reference", len(self._recitable)),
            )
        }
        self._lookahead: list[tuple[int, list[str]]] = []
        self._fetched: dict[str, Reference] = {}
        self._check()
        self.held_back = self._hold_back()

    def groups(self, count: int, told: Callable[[int], None] = lambda done: None) -> Iterator[Group]:
        """``count`` passes of ``settings.groups`` groups of one kind each, one group after the other."""
        shares = self._settings.mixture.shares()
        for done in range(count):
            kind = self._rng.choices(KINDS, [shares[kind] for kind in KINDS])[0]
            for _ in range(self._settings.groups):
                yield self._group(kind)
            told(done + 1)

    def steps(self, processes: int) -> int:
        """Of the run: ``settings.steps``, or what ``settings.epochs`` rounds over its prompts and preferences take."""
        settings = self._settings
        kinds = [kind for kind in ("prompt", "preference") if getattr(settings.mixture, kind)]
        rows = sum(self._bags[kind].size - len(self._bags[kind].gone) for kind in kinds)
        if not (settings.epochs and rows):
            return settings.steps
        return math.ceil(settings.epochs * rows / (settings.groups * settings.passes * processes))

    def _length(self, prompt: Prompt, answer: str) -> int:
        """Tokens of a prompt with its answer, without references."""
        return len(self._m3.prompts.build(prompt)) + len(self._m3.prompts.ids(answer)) + 1

    def _check(self) -> None:
        shares = self._settings.mixture.shares()
        for kinds, there, what in (
            (("memory", "text"), self._questions, "questions on passages"),
            (("continue", "plain"), self._texts, f"texts of {_SHORTEST} tokens or more"),
            (("recite",), self._recitable, f"passages or texts of {_SHORTEST} tokens or more"),
            (("chunks",), self._starts, f"sequence of {self._settings.memory.chunk_length} tokens of text, one chunk"),
            (
                ("none",),
                self._questions or self._short,
                f"questions, or prompts of up to {2 * self._settings.text_length} tokens",
            ),
            (("prompt",), self._prompts, f"prompts that fit into {self._settings.sequence_length} tokens with their answers"),
            (
                ("preference",),
                self._preferences,
                f"prompts with two answers that fit into {self._settings.sequence_length} tokens",
            ),
        ):
            wanted = [kind for kind in kinds if shares[kind]]
            if wanted and not there:
                raise InputError(
                    f"the mixture wants {' and '.join(wanted)} passes, but the data has no {what}: add some, or set their shares to 0"
                )

    def _hold_back(self) -> dict[str, list[Group]]:
        """Groups for looking at: the same questions and texts with memories, as text and without. They are drawn first, and not trained on."""
        count = self._settings.eval_groups if self._settings.eval_every else 0
        mixture = self._settings.mixture
        held: dict[str, list[Group]] = defaultdict(list)
        for _ in range(count if self._questions and (mixture.memory or mixture.text) else 0):
            numbers, names = self._related()
            for kind in ("memory", "text", "none"):
                held[kind].append(self._asked(kind, numbers, names))
            self._retire(numbers)
        for _ in range(count if self._texts and mixture.continue_ else 0):
            group = self._continued()
            held["continue"].append(group)
            held["plain"].append(Group("plain", (), group.rows))
        for _ in range(count if self._recitable and mixture.recite else 0):
            held["recite"].append(self._recited())
        for _ in range(min(count, len(self._starts) - 1) if mixture.chunks or mixture.packed else 0):
            group = self._group("chunks" if mixture.chunks else "packed")
            held[group.kind].append(group)
            if mixture.chunks:
                held["packed"].append(without_memories(group))
        for _ in range(count if self._prompts and mixture.prompt else 0):
            drawn = self._retrieved("prompt")
            held["prompt"].append(self._answered("prompt", *drawn))
            held["none"].append(self._answered("none", *drawn[:2], []))
        for _ in range(count if self._preferences and mixture.preference else 0):
            held["preference"].append(self._group("preference"))
        for name in ("text", "sequence", "prompt", "preference", "reference"):
            self._bags[name].gone |= self._bags[name].used
        # What is asked or continued among the groups held back is not learned by heart either.
        kept = {name for kind in ("memory", "continue") for group in held[kind] for name, _ in group.references}
        kept |= {r.id for n in self._bags["text"].gone for r in self._references[self._texts[n].id]}
        self._bags["reference"].gone |= {self._place[name] for name in kept & self._place.keys()}
        seen = [self._prompts[number] for number in self._bags["prompt"].gone]
        self._bags["short"].gone = {number for number, prompt in enumerate(self._short) if prompt in seen}
        return dict(held)

    def _retire(self, numbers: Sequence[int]) -> None:
        """Take every question of these questions' passages out of training."""
        passages = {self._questions[n].passage for n in numbers}
        gone = {n for n, question in enumerate(self._questions) if question.passage in passages}
        for name, members in self._answered_by.items():
            self._answered_by[name] = [n for n in members if n not in gone]
        for name in ("question", "closed"):
            self._bags[name].gone |= gone

    def _group(self, kind: str) -> Group:
        if kind in ("memory", "text"):
            return self._asked(kind, *self._related())
        if kind == "continue":
            return self._continued()
        if kind == "recite":
            return self._recited()
        if kind == "plain":
            tokens = [self._tokens(self._texts[self._bags["text"].take()].id) for _ in range(self._settings.texts)]
            return Group(kind, (), tuple(self._text_row(t) for t in tokens))
        if kind == "chunks":
            return self._chunked()
        if kind in ("prompt", "preference"):
            return self._answered(kind, *self._retrieved(kind))
        return Group(kind, (), (self._text_row(self._sequence()),)) if kind == "packed" else self._unread()

    def _search(self, texts: Sequence[str], k: int) -> list[list[str]]:
        assert self._bank is not None, "mixtures that retrieve are given a bank"
        found = [[hit.reference_id for hit in hits] for hits in self._bank.search(list(texts), k)]
        foreign = dict.fromkeys(name for names in found for name in names if not name.startswith(_OWN))
        missing = [name for name in foreign if name not in self._fetched]
        self._fetched |= dict(zip(missing, self._bank.references(missing), strict=True)) if missing else {}
        return found

    def _sequence(self) -> list[int]:
        start = self._starts[self._bags["sequence"].take()]
        return self._stream[start : start + self._settings.sequence_length]

    # ---- questions ---------------------------------------------------------------------------------------------------

    def _needs(self, question: Question, document: str) -> frozenset[str]:
        """The references that answer a question: the first that holds the answer, or all of a short passage; none if that cannot be told."""
        references = self._references[document]
        holding = next((r.id for r in references if question.answer in r.text), None)
        if holding is not None:
            return frozenset([holding])
        return frozenset(r.id for r in references) if len(references) < self._k else frozenset()

    def _related(self) -> tuple[list[int], list[str]]:
        """Questions that the references found for the first of them answer, and those references as they were ranked: read in a row, order counts."""
        first, found = self._next_question()
        needed = self._needed[first]
        there = {*needed, *[name for name in found if name not in needed][: self._k - len(needed)]}
        names = [name for name in found if name in there] + sorted(needed.difference(found))
        riders = sorted({n for name in names for n in self._answered_by[name] if n != first and self._needed[n] <= there})
        self._rng.shuffle(riders)
        riders.sort(key=self._bags["question"].used.__contains__)  # those not yet asked in this round first
        numbers = [first, *riders][: self._settings.questions]
        self._bags["question"].used.update(numbers)
        return numbers, names

    def _next_question(self) -> tuple[int, list[str]]:
        bag = self._bags["question"]
        while True:
            if not self._lookahead:
                numbers = [bag.take() for _ in range(min(_AT_ONCE, len(self._questions) - len(bag.gone)))] or [bag.take()]
                bag.used.difference_update(numbers)  # not asked yet
                found = self._search([self._questions[n].question for n in numbers], self._k)
                self._lookahead = list(zip(numbers, found, strict=True))
            number, names = self._lookahead.pop(0)
            if number not in bag.gone and number not in bag.used:
                return number, names

    def _asked(self, kind: str, numbers: Sequence[int], names: Sequence[str]) -> Group:
        m3 = self._m3
        references = [self._reference(name) for name in names]
        rows = []
        # As text the passages stand in every row, so a few rows cost as much as many that read memories.
        for number in numbers[: None if kind != "text" else max(1, self._settings.questions // 6)]:
            question = self._questions[number]
            ids = m3.prompts.ids(question.question)
            prompt = m3.prompts.around(ids, kind, [r.token_ids for r in references])
            rows.append(self._answer_row(prompt, question.answer))
        read = tuple((r.id, r.token_ids) for r in references) if kind == "memory" else ()
        return Group(kind, read, tuple(sorted(rows, key=lambda row: len(row.tokens))))

    def _unread(self) -> Group:
        """Half prompts of the records, half questions, where there are both."""
        rows = []
        sources = [name for name, there in (("short", self._short), ("closed", self._questions)) if there]
        for _, source in zip(range(max(1, self._settings.questions // 2)), itertools.cycle(sources), strict=False):
            number = self._bags[source].take()
            prompt, answer = (
                self._short[number]
                if source == "short"
                else (self._questions[number].question, self._questions[number].answer)
            )
            rows.append(self._answer_row(self._m3.prompts.build(prompt), answer))
        return Group("none", (), tuple(sorted(rows, key=lambda row: len(row.tokens))))

    def _answer_row(self, prompt: Sequence[int], answer: str) -> TrainingRow:
        ids = self._m3.prompts.answer_ids(answer)
        return TrainingRow((*prompt, *ids), len(ids), len(ids))

    # ---- prompts -----------------------------------------------------------------------------------------------------

    def _retrieved(self, kind: str) -> tuple[Prompt, list[str], list[Reference]]:
        """A prompt, its answer or two, and what is retrieved for it."""
        bag, m3 = self._bags[kind], self._m3
        for _ in range(bag.size):
            number = bag.take()
            if kind == "prompt":
                prompt, *answers = self._prompts[number]
            else:
                pair = self._preferences[number]
                prompt, answers = pair.prompt, [pair.chosen, pair.rejected]
            if not self._k:
                return prompt, answers, []
            rows = [(*m3.prompts.build(prompt), *m3.prompts.ids(answer)) for answer in answers]
            references = self._not_leaking(self._search([m3.prompts.query(prompt)], _NEAR + self._k)[0], rows)
            if references:
                return prompt, answers, references
        raise InputError(
            f"nothing was found for any {kind} that does not overlap it by {LEAK:.0%}: give a bank, or texts to retrieve from"
        )

    def _answered(self, kind: str, prompt: Prompt, answers: Sequence[str], references: Sequence[Reference]) -> Group:
        start = self._m3.prompts.build(prompt, "memory" if references else "none")
        rows = tuple(self._answer_row(start, answer) for answer in answers)
        return Group(kind, tuple((r.id, r.token_ids) for r in references), rows)

    def _not_leaking(self, found: Sequence[str], rows: Sequence[Sequence[int]], but: Sequence[str] = ()) -> list[Reference]:
        """The first k that overlap none of the rows and are not cut from the documents ``but``."""
        return [
            reference
            for reference in map(self._reference, found)
            if reference.document_id not in but and not any(exceeds(row, reference.token_ids, LEAK) for row in rows)
        ][: self._k]

    # ---- texts -------------------------------------------------------------------------------------------------------

    def _continued(self) -> Group:
        """A text and its nearest companions, read with memories of what is nearest after them and overlaps none of them."""
        first = self._texts[self._bags["text"].take()]
        found = self._search([first.text], _NEAR + self._k)[0]
        near = dict.fromkeys(name.rpartition("#")[0] for name in found)
        bag, number = self._bags["text"], {document.id: n for n, document in enumerate(self._texts)}
        others = [name for name in near if name != first.id and name in number and number[name] not in bag.gone]
        own = [first.id, *others][: self._settings.texts]
        if len(near) <= self._k + len(own):  # few documents: references come first
            own = own[:1]
        bag.used.update(number[name] for name in own)
        tokens = [self._tokens(name) for name in own]
        references = self._not_leaking(found, tokens, own)
        rows = sorted((self._text_row(t) for t in tokens), key=lambda row: len(row.tokens))
        return Group("continue", tuple((r.id, r.token_ids) for r in references), tuple(rows))

    def _recited(self) -> Group:
        """A reference, and those nearest to it, said again from their memories: what a memory does not hold cannot be said."""
        bag = self._bags["reference"]
        first = self._recitable[bag.take()]
        found = [name for name in self._search([first.read_text], self._k)[0] if name != first.id]
        names = [first.id, *found][: self._k]
        others = dict.fromkeys(self._place[name] for name in names[1:] if name in self._place)
        free = (n for n in others if n not in bag.gone and n not in bag.used)
        own = [first, *(self._recitable[n] for n in free)][: self._settings.texts]
        bag.used.update(self._place[reference.id] for reference in own)
        rows = sorted((TrainingRow(r.token_ids, len(r.token_ids) - _CUE) for r in own), key=lambda row: len(row.tokens))
        references = [self._reference(name) for name in names]
        return Group("recite", tuple((r.id, r.token_ids) for r in references), tuple(rows))

    def _chunked(self) -> Group:
        """A sequence cut into chunks (PAPER.md section 5). Chunk n reads the references that chunks n - k + 1 to n found, one each."""
        tokens = self._sequence()
        size = self._settings.memory.chunk_length
        texts = [
            self._m3.tokenizer.decode(tokens[at : at + size], skip_special_tokens=True) for at in range(0, len(tokens), size)
        ]
        found = iter(self._search([text for text in texts if text.strip()], _NEAR))
        own: list[str | None] = []
        for text in texts:
            hits = next(found) if text.strip() else []
            own.append(next((name for name in hits if not exceeds(tokens, self._reference(name).token_ids, LEAK)), None))
        reads = []
        for n in range(len(texts)):
            newest = reversed(own[max(0, n - self._k + 1) : n + 1])
            reads.append(tuple(dict.fromkeys(name for name in newest if name is not None)))
        names = dict.fromkeys(name for ids in reads for name in ids)
        references = tuple((name, self._reference(name).token_ids) for name in names)
        row = TrainingRow(tuple(tokens), len(tokens) - 1, 0, tuple(reads) if references else ())
        return Group("chunks", references, (row,))

    def _tokens(self, document: str) -> list[int]:
        every = itertools.chain.from_iterable(map(self._running, self._references[document]))
        return list(itertools.islice(every, self._settings.text_length))

    def _running(self, reference: Reference) -> Sequence[int]:
        """The tokens of a reference in its document, where a table's header stands once."""
        return self._m3.prompts.ids(reference.text) if reference.header else reference.token_ids

    @staticmethod
    def _text_row(tokens: Sequence[int]) -> TrainingRow:
        return TrainingRow(tuple(tokens), len(tokens) - 1)

    def _reference(self, name: str) -> Reference:
        if not name.startswith(_OWN):
            return self._fetched[name]
        document, _, ordinal = name.rpartition("#")
        return self._references[document][int(ordinal)]
