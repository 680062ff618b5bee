"""From the records of our data files to documents of tasks. Called by lm-evaluation-harness through the task files beside."""

from __future__ import annotations

import re
from typing import Any

from memory3.errors import InputError

__all__ = ["anatomy", "halluqa", "halueval_dialogue", "halueval_qa", "housing", "pubmedqa"]


def anatomy(dataset: Any) -> Any:
    """Exercises with four options and a letter for answer: 0 to 3."""
    kept = dataset.filter(lambda doc: len(doc["options"]) == 4 and doc["answer"].strip().upper() in set("ABCD"))
    return kept.map(
        lambda doc: {"answer": "ABCD".index(doc["answer"].strip().upper())}, features=_with(kept.features, "answer", "int64")
    )


def housing(dataset: Any) -> Any:
    """Questions whose answer is yes or no: 0, 1. Looked up with the name of the state."""
    kept = dataset.filter(lambda doc: doc["answer"] in ("Yes", "No") and len(doc["references"]) > 0)
    return kept.map(
        lambda doc: {"answer": int(doc["answer"] == "No"), "looked_up": f"{doc['state']}: {doc['question']}"},
        features=_with(_with(kept.features, "answer", "int64"), "looked_up", "string"),
    )


def pubmedqa(dataset: Any) -> Any:
    """The test split; yes, no, maybe: 0 to 2."""
    kept = dataset.filter(lambda doc: doc["split"] == "test")
    return kept.map(
        lambda doc: {"answer": ["yes", "no", "maybe"].index(doc["answer"])}, features=_with(kept.features, "answer", "int64")
    )


def halueval_qa(dataset: Any) -> Any:
    """Every other record shows the hallucinated answer: 0 (yes, it is wrong), else 1."""

    def show(doc: dict[str, Any], number: int) -> dict[str, Any]:
        wrong = number % 2 == 0
        return {"shown": doc["hallucinated_answer"] if wrong else doc["right_answer"], "answer": 0 if wrong else 1}

    return dataset.map(show, with_indices=True)


def halueval_dialogue(dataset: Any) -> Any:
    """Items of HaluEval's dialogues: every other one shows the hallucinated response, the others the right one."""

    def show(doc: dict[str, Any], number: int) -> dict[str, Any]:
        wrong = number % 2 == 0
        return {"shown": doc["hallucinated_response"] if wrong else doc["right_response"], "answer": 0 if wrong else 1}

    return dataset.map(show, with_indices=True)


def halluqa(dataset: Any) -> Any:
    """HalluQA's multiple choice to question, choices and the number of the right one.

    ``Question: Q A:... B:...``, and the answer ``Answer: B``.
    """

    def split(doc: dict[str, Any]) -> dict[str, Any]:
        head, *choices = re.split(r"\s+[A-E]:", doc["question"].strip())
        right = "ABCDE"[: len(choices)].find(doc["answer"].removeprefix("Answer:").strip()[:1] or "?")
        if right < 0:
            raise InputError(
                f"HalluQA: the answer {doc['answer']!r} is none of the {len(choices)} of {doc['question']!r}: "
                "is the file whole?"
            )
        return {"asked": head.removeprefix("Question:").strip(), "choices": choices, "right": right}

    return dataset.map(split)


def _with(features: Any, column: str, kind: str) -> Any:
    """The features of a dataset with one column of another type."""
    from datasets import Features, Value

    return Features({**features, column: Value(kind)})
