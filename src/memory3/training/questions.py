"""`QuestionGroups`: questions on passages, with the references that retrieval finds for them.

The references of a question are what is found for it, as at serving, so the other four are near misses. Every further question
that one of them answers joins the group, so that a reference is encoded once for many questions.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from memory3.llm import Memory3
from memory3.training.bags import Bag
from memory3.training.corpus import Corpus
from memory3.training.groups import Group, TrainingRow, answer_row, by_length
from memory3.training.records import Question
from memory3.training.settings import Settings

__all__ = ["QuestionGroups"]

#: Questions looked up at once.
_AT_ONCE = 32


class QuestionGroups:
    """Samples questions.

    Attributes:
        questions: those that are usable: few enough references answer them.
        bag: numbers of questions that are asked with references.
        closed: numbers of questions that are asked without.
    """

    def __init__(
        self, m3: Memory3, corpus: Corpus, questions: Sequence[Question], settings: Settings, rng: random.Random
    ) -> None:
        """Choose the usable questions.

        Args:
            m3: whose prompts they become.
            corpus: that holds their passages.
            questions: of the records.
            settings: of the run.
            rng: decides their order.
        """
        self._m3, self._corpus, self._rng, self._most = m3, corpus, rng, settings.questions
        self.questions: list[Question] = []
        self._needed: list[frozenset[str]] = []
        self._answered_by: dict[str, list[int]] = defaultdict(list)
        for question in questions:
            needed = self._needs(question)
            if needed and len(m3.prompts.ids(question.answer)) <= settings.text_length:
                for name in needed:
                    self._answered_by[name].append(len(self.questions))
                self.questions.append(question)
                self._needed.append(needed)
        self.bag = Bag("question", len(self.questions), rng)
        self.closed = Bag("closed", len(self.questions), rng)
        self._lookahead: list[tuple[int, list[str]]] = []

    def related(self) -> tuple[list[int], list[str]]:
        """Questions that the references found for the first of them answer, and the ids of those references.

        They are in the order they were ranked in: read in a row, order counts.
        """
        first, found = self._next()
        needed, k = self._needed[first], self._corpus.k
        there = {*needed, *[name for name in found if name not in needed][: k - len(needed)]}
        names = [name for name in found if name in there] + sorted(needed.difference(found))
        riders = sorted({n for name in names for n in self._answered_by[name] if n != first and self._needed[n] <= there})
        self._rng.shuffle(riders)
        riders.sort(key=self.bag.used.__contains__)  # those not yet asked in this round first
        numbers = [first, *riders][: self._most]
        self.bag.used.update(numbers)
        return numbers, names

    def group(self, kind: str, numbers: Sequence[int], names: Sequence[str]) -> Group:
        """Questions with references as memories, as text, or without.

        Args:
            kind: ``"memory"``, ``"text"`` or ``"none"``.
            numbers: of the questions.
            names: ids of the references.
        """
        references = [self._corpus.reference(name) for name in names]
        passages = [reference.token_ids for reference in references]
        # As text the passages stand in every row, so a few rows cost as much as many that read memories.
        rows = [self._row(n, kind, passages) for n in numbers[: None if kind != "text" else max(1, self._most // 6)]]
        read = tuple((r.id, r.token_ids) for r in references) if kind == "memory" else ()
        return Group(kind, read, by_length(rows))

    def unread(self) -> TrainingRow:
        """The next question without references."""
        return self._row(self.closed.take(), "none", ())

    def retire(self, numbers: Sequence[int]) -> None:
        """Take every question of these questions' passages out of training."""
        passages = {self.questions[n].passage for n in numbers}
        gone = {n for n, question in enumerate(self.questions) if question.passage in passages}
        for name, members in self._answered_by.items():
            self._answered_by[name] = [n for n in members if n not in gone]
        for bag in (self.bag, self.closed):
            bag.gone |= gone

    def _needs(self, question: Question) -> frozenset[str]:
        """The references that answer a question; none if that cannot be told.

        They are the first that holds the answer, or all of a short passage.
        """
        references = self._corpus.references[self._corpus.ids[question.passage]]
        holding = next((r.id for r in references if question.answer in r.text), None)
        if holding is not None:
            return frozenset([holding])
        return frozenset(r.id for r in references) if len(references) < self._corpus.k else frozenset()

    def _next(self) -> tuple[int, list[str]]:
        bag = self.bag
        while True:
            if not self._lookahead:
                numbers = [bag.take() for _ in range(min(_AT_ONCE, bag.left))] or [bag.take()]
                bag.used.difference_update(numbers)  # not asked yet
                found = self._corpus.search([self.questions[n].question for n in numbers], self._corpus.k)
                self._lookahead = list(zip(numbers, found, strict=True))
            number, names = self._lookahead.pop(0)
            if number not in bag.gone and number not in bag.used:
                return number, names

    def _row(self, number: int, mode: str, passages: Sequence[Sequence[int]]) -> TrainingRow:
        question, prompts = self.questions[number], self._m3.prompts
        prompt = prompts.around(prompts.ids(question.question), mode, passages)
        return answer_row(prompt, prompts.answer_ids(question.answer))
