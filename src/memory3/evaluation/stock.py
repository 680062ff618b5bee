"""Benchmarks of lm-evaluation-harness by their own task definitions, from files where the hub cannot be reached.

A stock task brings prompts, choices and scoring; here are the files of a data folder that hold the same questions, and how
their records become what the task expects. So figures are the field's, whatever the source of the questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory3.errors import InputError, MissingDependency
from memory3.evaluation.task import data_records

__all__ = ["OWN", "STOCK", "Source", "harness_task", "hub_tasks", "own_task"]

Records = list[dict[str, Any]]

#: Our task files.
TASKS = Path(__file__).parent / "tasks"

_INSTRUCTION = re.compile(
    r"^Please choose .*?: (?P<question>.*)\n\n(?P<options>(?:Answer|Solution|Option)1:.*?)\s*Answer format:.*$", re.DOTALL
)


def _parts(record: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """Question, options and number of the right one, from a record of the LLM-Adapters collection."""
    found = _INSTRUCTION.match(record["instruction"])
    number = re.search(r"(\d+)$", str(record["answer"]))
    if not found or not number:
        raise InputError(f"record is no multiple-choice instruction: {record['instruction'][:80]!r}")
    options = re.split(r"\s*(?:Answer|Solution|Option)\d:\s*", found["options"])[1:]
    return found["question"], [option.strip() for option in options], int(number[1]) - 1


def _lettered(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def convert(record: Mapping[str, Any]) -> dict[str, Any]:
        question, options, right = _parts(record)
        letters = "ABCDE"[: len(options)]
        return {name: question, "choices": {"text": options, "label": list(letters)}, "answerKey": letters[right]}

    return convert


def _piqa(record: Mapping[str, Any]) -> dict[str, Any]:
    goal, (first, second), right = _parts(record)
    return {"goal": goal, "sol1": first, "sol2": second, "label": right}


def _siqa(record: Mapping[str, Any]) -> dict[str, Any]:
    text, (a, b, c), right = _parts(record)
    context, _, question = text.rpartition(". ")
    context = f"{context}." if context else ""
    return {"context": context, "question": question, "answerA": a, "answerB": b, "answerC": c, "label": str(right + 1)}


def _winogrande(record: Mapping[str, Any]) -> dict[str, Any]:
    sentence, (first, second), right = _parts(record)
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(right + 1)}


def _truthfulqa(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question": record["question"],
        **{
            name: {"choices": list(record[name]), "labels": list(record[name].values())}
            for name in ("mc1_targets", "mc2_targets")
        },
    }


def _boolq(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"passage": record["passage"], "question": record["question"], "label": int(record["answer"])}


def _same(record: Mapping[str, Any]) -> dict[str, Any]:
    return dict(record)


@dataclass(frozen=True)
class Source:
    """Where a stock task's questions are, without a hub.

    Attributes:
        folder: of the task in lm_eval's ``tasks``.
        files: data files by split of the task.
        convert: from a record to a document of the task.
        query: field of the document that references are looked up by; empty: the task's own context, for what has no question.
        shots: of the leaderboards, where few-shot examples are at hand.
    """

    folder: str
    files: Mapping[str, str]
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]
    query: str
    shots: int = 0


#: By the name of the task in lm_eval.
STOCK: dict[str, Source] = {
    "arc_challenge": Source(
        "arc",
        {"test": "bench/arc-challenge_test", "train": "bench/arc-challenge_train"},
        _lettered("question"),
        "question",
        25,
    ),
    "arc_easy": Source(
        "arc", {"test": "bench/arc-easy_test", "train": "bench/arc-easy_train"}, _lettered("question"), "question"
    ),
    "openbookqa": Source(
        "openbookqa",
        {"test": "bench/openbookqa_test", "train": "bench/openbookqa_train"},
        _lettered("question_stem"),
        "question_stem",
    ),
    "gsm8k": Source("gsm8k", {"test": "bench/gsm8k_test", "train": "bench/gsm8k_train"}, _same, "question", 5),
    "winogrande": Source("winogrande", {"validation": "bench/winogrande_test"}, _winogrande, "sentence"),
    "piqa": Source("piqa", {"validation": "bench/piqa_test"}, _piqa, "goal"),
    "social_iqa": Source("siqa", {"validation": "bench/social_i_qa_test"}, _siqa, "question"),
    "boolq": Source("super_glue", {"validation": "bench/boolq_dev"}, _boolq, "question"),
    "lambada_openai": Source("lambada", {"test": "bench/lambada_test"}, _same, ""),
    "truthfulqa_mc1": Source("truthfulqa", {"validation": "bench/truthfulqa_mc"}, _truthfulqa, "question"),
    "truthfulqa_mc2": Source("truthfulqa", {"validation": "bench/truthfulqa_mc"}, _truthfulqa, "question"),
}


@dataclass(frozen=True)
class Own:
    """A task file of ours: its data file, and the field that references are looked up by."""

    file: str
    query: str
    gold: Callable[[Mapping[str, Any]], tuple[str, ...]] = field(default=lambda doc: ())


OWN: dict[str, Own] = {
    "anatomy_exercises": Own("pro/anatomy_exercises", "question"),
    "housing_law": Own("pro/housing_qa", "looked_up", lambda doc: tuple(doc["references"])),
    "pubmedqa_open": Own(
        "pro/pubmedqa", "question", lambda doc: tuple(f"{doc['id']}-{n}" for n in range(len(doc["contexts"])))
    ),
    "halueval_qa": Own("bench/halueval_qa", "question"),
    "halluqa": Own("bench/HalluQA_mc", "asked"),
}


def harness_task(name: str, data: Path) -> tuple[Any, str]:
    """A stock task over local files, and a hash of those.

    Args:
        name: of `STOCK`.
        data: the data folder.

    Raises:
        MissingDependency: lm_eval is not installed.
        InputError: the data folder lacks a file.
    """
    source = STOCK[name]
    _, folder = _lm_eval()
    records, digests = {}, []
    for split, file in source.files.items():
        found, digest = data_records(data / Path(file).parent, Path(file).name)
        records[split] = [source.convert(record) for record in found]
        digests.append(digest)
    return _build(name, folder / "tasks" / source.folder, records), "-".join(digests)


def own_task(name: str, data: Path) -> tuple[Any, str]:
    """One of our own tasks, and a hash of its file.

    Args:
        name: of `OWN`.
        data: the data folder.

    Raises:
        MissingDependency: lm_eval is not installed.
        InputError: the data folder lacks the file.
    """
    _lm_eval()
    found, digest = data_records(data / Path(OWN[name].file).parent, Path(OWN[name].file).name)
    return _build(name, TASKS, {"test": found}), digest


def hub_tasks(name: str) -> list[Any]:
    """A task, or all tasks of a group, with questions from the model hub.

    Raises:
        InputError: they could not be fetched.
    """
    _lm_eval()
    from lm_eval.tasks import TaskManager

    try:
        return list(TaskManager(include_path=str(TASKS)).load([name])["tasks"].values())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"task {name}: its questions could not be fetched from the hub: {error}. Leave out --hub") from error


def _lm_eval() -> tuple[Any, Path]:
    try:
        import lm_eval
    except ImportError:
        raise MissingDependency("lm_eval", "eval", "a suite of benchmarks") from None
    return lm_eval, Path(str(lm_eval.__file__)).parent


def _build(name: str, folder: Path, records: Mapping[str, Records]) -> Any:
    import logging

    import datasets
    from lm_eval.tasks import TaskManager

    # It warns of every custom data set, and draws a bar for every small one.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()

    def dataset(**_: Any) -> dict[str, Any]:
        return {split: datasets.Dataset.from_list(list(rows)) for split, rows in records.items()}

    manager = TaskManager(include_defaults=False, include_path=str(folder))
    changes = {"task": name, "custom_dataset": dataset, "dataset_kwargs": None}
    if "train" not in records:
        changes |= {"training_split": None, "fewshot_split": None}
    # As the member of a group, since a configuration by itself would stand alone, while a member's is laid over the task of
    # its name.
    (task,) = manager.load([{"group": f"{name} from files", "task": [changes]}])["tasks"].values()
    return task
