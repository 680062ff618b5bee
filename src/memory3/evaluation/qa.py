"""Open-book question answering: a question, short answers, a knowledge base that holds them.

The data folder has ``kb.jsonl[.gz]`` (id, text) and ``<split>.jsonl[.gz]`` (question, answers[], references[] as ids of the
knowledge base).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.errors import InputError
from memory3.evaluation.causes import causes
from memory3.evaluation.generation import Generated, generate_rows
from memory3.evaluation.intervals import aggregate_interval
from memory3.evaluation.metrics import auroc, contains, exact_match, f1
from memory3.evaluation.modes import Mode
from memory3.evaluation.task import Item, Metric, Task, data_records
from memory3.llm import Memory3

__all__ = ["AbstainTask", "QaTask"]

_METRICS = {
    "exact": Metric("Exact match"),
    "contains": Metric("Contains an answer"),
    "f1": Metric("F1"),
    "nll": Metric("Answer NLL", higher_is_better=False, percent=False),
}


def _items(folder: Path, split: str) -> tuple[list[Item], str]:
    records, digest = data_records(folder, split)
    items = []
    for number, record in enumerate(records, 1):
        try:
            question, answers = str(record["question"]), [str(a) for a in record["answers"]]
            if question.strip() and any(a.strip() for a in answers):
                gold = tuple(str(name) for name in record.get("references", ()))
                items.append(Item(str(record.get("id", number)), question, gold, [a for a in answers if a.strip()]))
        except (KeyError, TypeError):
            raise InputError(f"{folder}/{split}: record {number} has no question and answers[]") from None
    return items, digest


@dataclass
class QaTask(Task):
    """Questions answered in a few words, graded against the reference answers.

    Attributes:
        max_new_tokens: of an answer.
    """

    max_new_tokens: int = 32
    _found: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, split: str, *, knowledge: str, max_new_tokens: int = 32) -> QaTask:
        """The task of a data folder.

        Args:
            folder: data folder, as the module describes it.
            split: name of the file of questions.
            knowledge: name of the knowledge base that is read.
            max_new_tokens: length of an answer at most.

        Raises:
            InputError: the folder lacks the file, or a record is not as it must be.
        """
        items, digest = _items(folder, split)
        settings = {"data": digest, "max_new_tokens": max_new_tokens, "style": "chat", "version": 1}
        title = f"{folder.name}/{split}: questions answered in up to {max_new_tokens} tokens"
        return cls(f"{folder.name}/{split}", title, knowledge, items, dict(_METRICS), settings, max_new_tokens=max_new_tokens)

    def answer(
        self, m3: Memory3, bank: Bank | None, mode: Mode, items: Sequence[Item], references: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Greedy answers, and the negative log-likelihood per token of the first reference answer.

        Args:
            m3: answers.
            bank: where memories and texts are; None: mode none alone.
            mode: what is read.
            items: what is asked.
            references: for each item the ids of what it reads.

        Returns:
            a row of JSON values per item, ``metrics`` among them.
        """
        answers = self._generate(m3, bank, mode, items, references)
        return [self._graded(item, answer) for item, answer in zip(items, answers, strict=True)]

    def _generate(
        self, m3: Memory3, bank: Bank | None, mode: Mode, items: Sequence[Item], references: Sequence[Sequence[str]]
    ) -> list[Generated]:
        wanted = [m3.prompts.ids(item.data[0]) for item in items]
        after = max(self.max_new_tokens, *map(len, wanted)) if wanted else 0
        rows = [
            m3.prompts.row(m3.prompts.ids(item.query), mode.read, names, bank, after=after)
            for item, names in zip(items, references, strict=True)
        ]
        return generate_rows(m3, bank, rows, max_new_tokens=self.max_new_tokens, wanted=wanted)

    @staticmethod
    def _graded(item: Item, answer: Generated) -> dict[str, Any]:
        assert answer.wanted is not None
        row: dict[str, Any] = {
            "metrics": {
                "exact": exact_match(answer.text, item.data),
                "contains": contains(answer.text, item.data),
                "f1": f1(answer.text, item.data),
                "nll": answer.wanted.nll,
            },
            "answer": answer.text,
        }
        return row if answer.attention is None else {**row, "attention": answer.attention}

    def holders(self, bank: Bank, item: Item) -> list[str]:
        """References of the right documents that have one of the answers in them.

        Args:
            bank: that is asked for references.
            item: of this task.
        """
        if item.id not in self._found:
            sizes = self._sizes(bank)
            mine = [f"{doc}#{n}" for doc in item.gold for n in range(sizes.get(doc, 0))]
            self._found[item.id] = [r.id for r in bank.references(mine) if any(a in r.text for a in item.data)]
        return self._found[item.id]

    def summary(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Why answers are wrong, where the right references were read alone, too."""
        found = causes(rows, self._found)
        return {"causes": found} if found else {}

    def _sizes(self, bank: Bank) -> dict[str, int]:
        if not hasattr(self, "_counts"):
            self._counts = {entry.id: entry.references for entry in bank.documents()}
        return self._counts


#: Scores that are to be high when the bank holds the answer, and what they are.
SCORES = {
    "attention": "share of attention on memories",
    "gain": "NLL of the answer without memories minus with them",
    "likelihood": "likelihood of the answer with memories (-NLL)",
    "cosine": "cosine of the best reference (the retriever alone)",
}


@dataclass
class AbstainTask(QaTask):
    """Does the model show that the bank does not hold the answer?

    Every question is asked twice: from the bank (mode memory), and from the bank without the documents that hold its answer
    (mode absent). Each score is to be higher the first time; its AUROC is the probability that it is.
    """

    @classmethod
    def load(cls, folder: Path, split: str, *, knowledge: str, max_new_tokens: int = 32) -> AbstainTask:
        """The task of a data folder; questions whose documents are unknown are left out.

        Args:
            folder: data folder, as the module describes it.
            split: name of the file of questions.
            knowledge: name of the knowledge base that is read.
            max_new_tokens: length of an answer at most.

        Raises:
            InputError: the folder lacks the file, or a record is not as it must be.
        """
        task = super().load(folder, split, knowledge=knowledge, max_new_tokens=max_new_tokens)
        assert isinstance(task, AbstainTask)
        task.name, task.title = f"{task.name}, abstain", f"{folder.name}/{split}: is the answer in the bank?"
        task.items = [item for item in task.items if item.gold]
        task.metrics |= {
            name: Metric(label, percent=name in ("attention",)) for name, label in SCORES.items() if name != "cosine"
        }
        return task

    def answer(
        self, m3: Memory3, bank: Bank | None, mode: Mode, items: Sequence[Item], references: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Greedy answers, and with them how likely the model finds them and how much it looked at what it read (`SCORES`).

        Args:
            m3: answers.
            bank: where memories and texts are; None: mode none alone.
            mode: what is read.
            items: what is asked.
            references: for each item the ids of what it reads.

        Returns:
            a row of JSON values per item, ``metrics`` among them.
        """
        answers = self._generate(m3, bank, mode, items, references)
        said = [answer.token_ids or [m3.prompts.pad_id] for answer in answers]
        likely = {}
        for read in ("memory", "none"):
            rows = [
                m3.prompts.row(m3.prompts.ids(item.query), read, names, bank, after=len(ids))
                for item, names, ids in zip(items, references, said, strict=True)
            ]
            likely[read] = [-found.nll for (found,) in m3.scorer.score(rows, [[ids] for ids in said], bank)]
        out = []
        for item, answer, with_memory, without in zip(items, answers, likely["memory"], likely["none"], strict=True):
            row = self._graded(item, answer)
            row["metrics"] |= {"attention": answer.attention or 0.0, "gain": with_memory - without, "likelihood": with_memory}
            out.append(row)
        return out

    def summary(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """AUROC of every score, over the questions that were asked both ways."""
        asked = next((rows[name] for name in rows if name.startswith("memory")), None)
        absent = next((rows[name] for name in rows if name.startswith("absent")), None)
        if not asked or not absent:
            return {}
        table = {}
        twin = {row["item"]: row for row in absent}
        pairs = [(row, twin[row["item"]]) for row in asked if row["item"] in twin]
        for name, label in SCORES.items():
            if name == "cosine":
                values = [(max(a["scores"], default=-1.0), max(b["scores"], default=-1.0)) for a, b in pairs]
            else:
                values = [(a["metrics"][name], b["metrics"][name]) for a, b in pairs]

            def area(some: list[Any]) -> float:
                return auroc([a for a, _ in some], [b for _, b in some])

            table[name] = {
                "label": label,
                "auroc": area(values),
                "interval": aggregate_interval(values, area),
                "count": len(pairs),
            }
        return {"auroc": table}
