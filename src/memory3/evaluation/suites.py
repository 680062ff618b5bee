"""The suites: which tasks, which modes, from which knowledge base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memory3.errors import ConfigError
from memory3.evaluation.qa import AbstainTask, QaTask
from memory3.evaluation.task import Task

__all__ = ["SUITES", "Suite", "load_suite"]


@dataclass(frozen=True)
class Suite:
    """A set of tasks run with the same modes.

    Attributes:
        about: one line for help texts.
        modes: unless others are asked for.
        load: tasks from a data folder and, where it applies, the split (``"dev"``, ``"test"``).
    """

    about: str
    modes: tuple[str, ...]
    load: Callable[[Path, str], list[Task]]


def _qa(data: Path, split: str) -> list[Task]:
    return [QaTask.load(data / "wiki_qa", split, knowledge="wiki_qa")]


def _abstain(data: Path, split: str) -> list[Task]:
    return [AbstainTask.load(data / "wiki_qa", split, knowledge="wiki_qa")]


SUITES: dict[str, Suite] = {
    "qa": Suite(
        "open-book questions: exact match, F1, answer NLL, retrieval recall",
        ("memory", "text", "none", "random", "other"),
        _qa,
    ),
    "abstain": Suite("does the model show that the answer is not in the bank?", ("memory", "absent"), _abstain),
}


def load_suite(name: str, data: Path, split: str, tasks: list[str] | None = None) -> list[Task]:
    """Tasks of a suite, or those of them that are named.

    Raises:
        ConfigError: no suite or task of this name.
        InputError: the data folder lacks a file.
    """
    if name not in SUITES:
        raise ConfigError(f"suite {name!r} is unknown: use one of {', '.join(SUITES)}")
    found = SUITES[name].load(data, split)
    if tasks:
        known = {task.name: task for task in found}
        missing = [task for task in tasks if task not in known]
        if missing:
            raise ConfigError(f"suite {name} has no task {', '.join(missing)}: it has {', '.join(known)}")
        return [known[task] for task in tasks]
    return found
