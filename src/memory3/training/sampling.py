"""`GroupMaker`: samples groups from records, with a bank to retrieve from.

What is retrieved for a text or a prompt overlaps none of the group's by 90% or more (`memory3.overlap`; arXiv 2407.01178,
section 5). Nothing here knows a model's weights: groups are sampled before training, so a resumed run reads the same ones.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.training.answers import AnswerGroups
from memory3.training.corpus import LEAK, SHORTEST, Corpus, documents_of
from memory3.training.groups import Group, by_length, without_memories
from memory3.training.questions import QuestionGroups
from memory3.training.records import Records
from memory3.training.settings import KINDS, Settings
from memory3.training.texts import TextGroups

if TYPE_CHECKING:
    from memory3.bank import Bank

__all__ = ["LEAK", "GroupMaker", "documents_of"]


class GroupMaker:
    """Samples groups from records, with a bank of their passages and texts to retrieve from.

    Attributes:
        held_back: groups that are not trained on, by kind.
    """

    def __init__(self, m3: Memory3, bank: Bank | None, records: Records, settings: Settings) -> None:
        """Set aside what is held back.

        Args:
            m3: whose prompts and references they are made of.
            bank: of `documents_of` the records, or another, which is only asked for texts. None: for mixtures that retrieve
                nothing.
            records: what there is to train on.
            settings: of the run.

        Raises:
            InputError: the mixture wants what the records do not have.
        """
        self._settings, self._rng = settings, random.Random(settings.seed)
        corpus = Corpus(m3, bank, records, settings)
        self._questions = QuestionGroups(m3, corpus, records.questions, settings, self._rng)
        self._answers = AnswerGroups(m3, corpus, records, settings, self._rng)
        self._texts = TextGroups(m3, corpus, settings, self._rng)
        self._check(corpus)
        self.held_back = self._hold_back()

    def groups(self, count: int, told: Callable[[int], None] = lambda done: None) -> Iterator[Group]:
        """``count`` passes of ``settings.groups`` groups of one kind each, one group after the other.

        Args:
            count: passes.
            told: how many are done.
        """
        shares = self._settings.mixture.shares()
        for done in range(count):
            kind = self._rng.choices(KINDS, [shares[kind] for kind in KINDS])[0]
            for _ in range(self._settings.groups):
                yield self._group(kind)
            told(done + 1)

    def steps(self, processes: int) -> int:
        """Of the run: ``settings.steps``, or what ``settings.epochs`` rounds over its prompts and preferences take.

        Args:
            processes: that train together.
        """
        settings = self._settings
        kinds = [kind for kind in ("prompt", "preference") if getattr(settings.mixture, kind)]
        rows = sum(self._answers.bags[kind].left for kind in kinds)
        if not (settings.epochs and rows):
            return settings.steps
        return math.ceil(settings.epochs * rows / (settings.groups * settings.passes * processes))

    def _group(self, kind: str) -> Group:
        match kind:
            case "memory" | "text":
                return self._questions.group(kind, *self._questions.related())
            case "prompt" | "preference":
                return self._answers.group(kind, *self._answers.retrieved(kind))
            case "continue":
                return self._texts.continued()
            case "recite":
                return self._texts.recited()
            case "plain":
                return self._texts.plain()
            case "chunks":
                return self._texts.chunked()
            case "packed":
                return self._texts.packed()
        return self._unread()

    def _unread(self) -> Group:
        """Half prompts of the records, half questions, where there are both."""
        makers = [
            maker
            for maker, there in (
                (self._answers.unread, self._answers.short),
                (self._questions.unread, self._questions.questions),
            )
            if there
        ]
        count = max(1, self._settings.questions // 2)
        return Group("none", (), by_length(make() for make in itertools.islice(itertools.cycle(makers), count)))

    def _check(self, corpus: Corpus) -> None:
        """Raise InputError where the mixture wants what the records do not have."""
        settings = self._settings
        short, whole = 2 * settings.text_length, settings.sequence_length
        shares = settings.mixture.shares()
        for kinds, there, what in (
            (("memory", "text"), self._questions.questions, "questions on passages"),
            (("continue", "plain"), corpus.texts, f"texts of {SHORTEST} tokens or more"),
            (("recite",), self._texts.recitable, f"passages or texts of {SHORTEST} tokens or more"),
            (("chunks",), self._texts.starts, f"sequence of {settings.memory.chunk_length} tokens of text, one chunk"),
            (
                ("none",),
                self._questions.questions or self._answers.short,
                f"questions, or prompts of up to {short} tokens",
            ),
            (("prompt",), self._answers.prompts, f"prompts that fit into {whole} tokens with their answers"),
            (("preference",), self._answers.preferences, f"prompts with two answers that fit into {whole} tokens"),
        ):
            wanted = [kind for kind in kinds if shares[kind]]
            if wanted and not there:
                raise InputError(
                    f"the mixture wants {' and '.join(wanted)} passes, but the data has no {what}: add some, or set their "
                    "shares to 0"
                )

    def _hold_back(self) -> dict[str, list[Group]]:
        """Groups for looking at: the same questions and texts with memories, as text and without.

        They are sampled first, and not trained on.
        """
        count = self._settings.eval_groups if self._settings.eval_every else 0
        mixture, questions, answers, texts = self._settings.mixture, self._questions, self._answers, self._texts
        held: dict[str, list[Group]] = defaultdict(list)
        for _ in range(count if questions.questions and (mixture.memory or mixture.text) else 0):
            numbers, names = questions.related()
            for kind in ("memory", "text", "none"):
                held[kind].append(questions.group(kind, numbers, names))
            questions.retire(numbers)
        for _ in range(count if texts.bags["text"].size and mixture.continue_ else 0):
            group = texts.continued()
            held["continue"].append(group)
            held["plain"].append(Group("plain", (), group.rows))
        for _ in range(count if texts.recitable and mixture.recite else 0):
            held["recite"].append(texts.recited())
        for _ in range(min(count, len(texts.starts) - 1) if mixture.chunks or mixture.packed else 0):
            group = self._group("chunks" if mixture.chunks else "packed")
            held[group.kind].append(group)
            if mixture.chunks:
                held["packed"].append(without_memories(group))
        for _ in range(count if answers.prompts and mixture.prompt else 0):
            prompt, said, references = answers.retrieved("prompt")
            held["prompt"].append(answers.group("prompt", prompt, said, references))
            held["none"].append(answers.group("none", prompt, said, []))
        for _ in range(count if answers.preferences and mixture.preference else 0):
            held["preference"].append(self._group("preference"))
        texts.hold_back({name for kind in ("memory", "continue") for group in held[kind] for name, _ in group.references})
        answers.hold_back()
        return dict(held)
