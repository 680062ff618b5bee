"""What the runner asks of a task: items, and how a batch of them is answered in one mode.

Items, metrics and the base class; no data, no runner.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from memory3.bank import Bank
from memory3.errors import InputError
from memory3.evaluation.modes import Mode
from memory3.files import json_lines, open_unzipped
from memory3.llm import Memory3

__all__ = ["Item", "Metric", "Task", "data_records"]


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique within its task.
        query: what references are looked up by, and what the guard protects.
        gold: ids of the documents that hold the answer, as far as known.
        data: the task's own.
    """

    id: str
    query: str
    gold: tuple[str, ...] = ()
    data: Any = None


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    Attributes:
        label: for tables.
        higher_is_better: or not.
        percent: shown as a percentage.
        aggregate: from the items' values to the figure; None: their mean.
    """

    label: str
    higher_is_better: bool = True
    percent: bool = True
    aggregate: Callable[[list[Any]], float] | None = None

    def of(self, values: Sequence[Any]) -> float:
        """The figure over items."""
        if not values:
            return float("nan")
        return float(np.mean(values)) if self.aggregate is None else float(self.aggregate(list(values)))


@dataclass
class Task(ABC):
    """Base of all tasks.

    Attributes:
        name: in results and reports; what `settings` hold decides what a result means.
        title: for people.
        knowledge: name of the knowledge base it is answered from (`memory3.evaluation.knowledge`).
        items: all there are, in the order of the data.
        metrics: by the names that `answer` uses.
        settings: what an outcome depends on besides model, bank and mode: JSON values.
        guard_of: direction of the contamination guard (`memory3.evaluation.guard`).
        notes: what a reader of its table must know.
    """

    name: str
    title: str
    knowledge: str
    items: list[Item]
    metrics: dict[str, Metric]
    settings: dict[str, Any] = field(default_factory=dict)
    guard_of: str = "reference"
    notes: str = ""

    @abstractmethod
    def answer(
        self, m3: Memory3, bank: Bank | None, mode: Mode, items: Sequence[Item], references: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Outcomes of a batch, in order: ``{"metrics": {name: value}, ...}`` as JSON values.

        Args:
            m3: who answers.
            bank: that is read; None: none.
            mode: how it is read.
            items: of the batch.
            references: ids of what each item reads.
        """

    def holders(self, bank: Bank, item: Item) -> list[str]:
        """Ids of the references that hold the answer; empty where nobody knows.

        Args:
            bank: that is asked for references.
            item: of this task.
        """
        return []

    def summary(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Figures over several modes that are no metric of one: JSON values, by name. ``rows`` are by mode."""
        return {}


def data_records(folder: Path, name: str) -> tuple[list[dict[str, Any]], str]:
    """Records of ``name.jsonl.gz``, ``name.jsonl`` or ``name.json`` (one list) in a data folder, and a hash of the file.

    Raises:
        InputError: there is no such file, or it is no JSON of that kind.
    """
    for path in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl", folder / f"{name}.json"):
        if not path.exists():
            continue
        whole = path.suffix == ".json"
        try:
            with open_unzipped(path) as file:
                text = file.read()
            records = json.loads(text) if whole else [record for _, record in json_lines(text)]
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not readable as JSON{'' if whole else ' lines'}: {error}") from None
        if not isinstance(records, list):
            raise InputError(f"{path}: holds a {type(records).__name__}, not a list of records")
        return records, xxhash.xxh3_64_hexdigest(text)
    raise InputError(
        f"{folder} has no {name}.jsonl.gz, {name}.jsonl or {name}.json: give --data DIR with the files that "
        "docs/evaluation.md lists"
    )
