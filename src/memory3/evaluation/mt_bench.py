"""MT-Bench: 80 conversations of two turns, answered by the model and graded by a judge (`memory3.evaluation.judge`)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.errors import InputError
from memory3.evaluation.generation import generate_rows
from memory3.evaluation.judge import Judge
from memory3.evaluation.modes import Mode
from memory3.evaluation.task import Item, Metric, Task, data_records
from memory3.llm import Memory3

__all__ = ["MtBenchTask"]


@dataclass
class MtBenchTask(Task):
    """Both turns of a conversation read the references that its first turn finds.

    Attributes:
        judge: who grades.
        max_new_tokens: of each answer.
    """

    judge: Judge | None = None
    max_new_tokens: int = 512

    @classmethod
    def load(cls, data: Path, judge: Judge, *, knowledge: str, max_new_tokens: int = 512) -> MtBenchTask:
        """From ``bench/mt_bench.jsonl`` of a data folder.

        Args:
            data: the data folder.
            judge: grades the answers.
            knowledge: name of the knowledge base that is read.
            max_new_tokens: length of an answer at most.

        Raises:
            InputError: the file is missing, or a record is not as it must be.
        """
        records, digest = data_records(data / "bench", "mt_bench")
        try:
            items = [Item(str(r["question_id"]), str(r["turns"][0]), (), r) for r in records if len(r["turns"]) > 0]
        except (KeyError, TypeError):
            raise InputError(f"{data}/bench/mt_bench: a record has no question_id and turns[]") from None
        metrics = {
            "score": Metric("Score (1 to 10)", percent=False),
            "first": Metric("First turn", percent=False),
            "second": Metric("Second turn", percent=False),
        }
        settings = {"data": digest, "judge": judge.model, "max_new_tokens": max_new_tokens, "version": 1}
        title = f"MT-Bench, answers of up to {max_new_tokens} tokens, graded by {judge.model}"
        return cls("mt_bench", title, knowledge, items, metrics, settings, judge=judge, max_new_tokens=max_new_tokens)

    def answer(
        self, m3: Memory3, bank: Bank | None, mode: Mode, items: Sequence[Item], references: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """The conversations, their grades, and what the judge said.

        Args:
            m3: answers.
            bank: where memories and texts are; None: mode none alone.
            mode: what is read.
            items: what is asked.
            references: for each item the ids of what it reads.

        Returns:
            a row of JSON values per item, ``metrics`` among them.
        """
        assert self.judge is not None
        judge = self.judge
        conversations: list[list[dict[str, str]]] = [[] for _ in items]
        grades: list[list[tuple[float | None, str]]] = [[] for _ in items]
        for turn in range(max(len(item.data["turns"]) for item in items)):
            mine = [n for n, item in enumerate(items) if len(item.data["turns"]) > turn]
            for n in mine:
                conversations[n].append({"role": "user", "content": str(items[n].data["turns"][turn])})
            rows = [
                m3.prompts.row(m3.prompts.chat(conversations[n]), mode.read, references[n], bank, style="plain") for n in mine
            ]
            for n, said in zip(mine, generate_rows(m3, bank, rows, max_new_tokens=self.max_new_tokens), strict=True):
                conversations[n].append({"role": "assistant", "content": said.text})
            asked = [(conversations[n], _reference(items[n], turn)) for n in mine]
            with ThreadPoolExecutor(4) as pool:  # a judge elsewhere; waiting for it costs nothing here
                for n, found in zip(mine, pool.map(lambda pair: judge.grade(*pair), asked), strict=True):
                    grades[n].append(found)
        return [_outcome(conversation, found) for conversation, found in zip(conversations, grades, strict=True)]


def _reference(item: Item, turn: int) -> str:
    """A correct answer to the turn, where the record has one."""
    known = item.data.get("reference") or []
    return str(known[turn]) if turn < len(known) else ""


def _outcome(conversation: list[dict[str, str]], grades: Sequence[tuple[float | None, str]]) -> dict[str, Any]:
    given = [grade for grade, _ in grades]
    rated = [grade for grade in given if grade is not None]
    metrics = {name: grade for name, grade in zip(("first", "second"), given, strict=False) if grade is not None}
    if rated:
        metrics["score"] = sum(rated) / len(rated)
    return {"metrics": metrics, "conversation": conversation, "judgements": [said for _, said in grades]}
