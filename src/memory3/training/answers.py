"""`AnswerGroups`: prompts of the records with their answers, and what is retrieved for them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.training.bags import Bag
from memory3.training.corpus import LEAK, NEAR, Corpus
from memory3.training.groups import Group, TrainingRow, answer_row
from memory3.training.records import Prompt, Records
from memory3.training.settings import Settings
from memory3.types import Reference

__all__ = ["AnswerGroups"]


class AnswerGroups:
    """Samples prompts, and prompts with two answers.

    Attributes:
        prompts: prompt and answer, those that fit into ``sequence_length``.
        short: those that fit into twice ``text_length``, to be answered without references.
        preferences: prompts with two answers, that fit into ``sequence_length``.
        bags: numbers of each, by ``"prompt"``, ``"short"`` and ``"preference"``.
    """

    def __init__(self, m3: Memory3, corpus: Corpus, records: Records, settings: Settings, rng: random.Random) -> None:
        """Choose what fits.

        Args:
            m3: whose prompts they become.
            corpus: what is retrieved comes from.
            records: what there is to train on.
            settings: of the run.
            rng: decides their order.
        """
        self._m3, self._corpus = m3, corpus
        longest = settings.sequence_length
        self.prompts = [p for p in records.prompts if self._length(*p) <= longest]
        self.short = [p for p in records.prompts if self._length(*p) <= 2 * settings.text_length]
        self.preferences = [
            p
            for p in records.preferences
            if max(self._length(p.prompt, p.chosen), self._length(p.prompt, p.rejected)) <= longest
        ]
        sizes = {"prompt": len(self.prompts), "short": len(self.short), "preference": len(self.preferences)}
        self.bags = {name: Bag(name, size, rng) for name, size in sizes.items()}

    def retrieved(self, kind: str) -> tuple[Prompt, list[str], list[Reference]]:
        """A prompt, its answer or two, and the references retrieved for it.

        Args:
            kind: ``"prompt"`` or ``"preference"``.

        Raises:
            InputError: for none of them anything is found that does not give it away.
        """
        bag, prompts, k = self.bags[kind], self._m3.prompts, self._corpus.k
        for _ in range(bag.size):
            number = bag.take()
            if kind == "prompt":
                prompt, *answers = self.prompts[number]
            else:
                pair = self.preferences[number]
                prompt, answers = pair.prompt, [pair.chosen, pair.rejected]
            if not k:
                return prompt, answers, []
            rows = [(*prompts.build(prompt), *prompts.ids(answer)) for answer in answers]
            references = self._corpus.not_leaking(self._corpus.search([prompts.query(prompt)], NEAR + k)[0], rows)
            if references:
                return prompt, answers, references
        raise InputError(
            f"nothing was found for any {kind} that does not overlap it by {LEAK:.0%}: give a bank, or texts to retrieve from"
        )

    def group(self, kind: str, prompt: Prompt, answers: Sequence[str], references: Sequence[Reference]) -> Group:
        """A prompt behind the memories of references, with a row for each answer.

        Args:
            kind: name of the mixture.
            prompt: a question or chat.
            answers: one row each.
            references: read by all rows; none: they read nothing.
        """
        rows = tuple(self._row(prompt, answer, "memory" if references else "none") for answer in answers)
        return Group(kind, tuple((r.id, r.token_ids) for r in references), rows)

    def unread(self) -> TrainingRow:
        """The next short prompt without references."""
        return self._row(*self.short[self.bags["short"].take()], "none")

    def hold_back(self) -> None:
        """What has been sampled is not trained on; a short prompt neither."""
        for name in ("prompt", "preference"):
            self.bags[name].hold_back()
        seen = [self.prompts[number] for number in self.bags["prompt"].gone]
        self.bags["short"].gone = {number for number, prompt in enumerate(self.short) if prompt in seen}

    def _row(self, prompt: Prompt, answer: str, mode: str) -> TrainingRow:
        return answer_row(self._m3.prompts.build(prompt, mode), self._m3.prompts.answer_ids(answer))

    def _length(self, prompt: Prompt, answer: str) -> int:
        """Tokens of a prompt with its answer, without references."""
        return len(self._m3.prompts.build(prompt)) + len(self._m3.prompts.ids(answer)) + 1
