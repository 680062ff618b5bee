"""The 200 questions of `parity`: drawn from question sets that are for development, the same at every call."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memory3.demo import QUESTIONS
from memory3.types import Document

__all__ = ["COUNT", "Case", "cases", "paragraphs"]

COUNT = 200
#: Without memories; the rest reads.
_PLAIN = 50
#: So many answers have at least as many tokens: they are renewed twice, and once. Others end where they end, or at `_SHORT`.
_LONG = ((42, 132), (42, 70))
_SHORT = 40
_PARAGRAPHS = 60
_SYSTEM = (
    "You answer in short sentences.",
    "You are a patient teacher who explains where a fact comes from, step by step, and says so when you do not know.",
)


@dataclass(frozen=True)
class Case:
    """A question.

    Attributes:
        prompt: text, or the messages of a chat.
        bank: name of the bank that is read; "": none.
        reading: what is read there, as `Memory3.generate` takes it.
        least, most: tokens of the answer.
        repeats: whether its prompt was asked before.
    """

    prompt: Any
    bank: str
    reading: Mapping[str, Any] = field(default_factory=dict)
    least: int = 0
    most: int = _SHORT
    repeats: bool = False

    @property
    def key(self) -> str:
        """The same for cases with the same answer."""
        return json.dumps([self.prompt, self.bank, dict(self.reading), self.least, self.most], sort_keys=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _chosen(data: Path) -> tuple[list[str], list[str]]:
    """Questions of some paragraphs, and the ids of these."""
    draw = random.Random(25)
    asked = _lines(data / "wiki_qa" / "dev.jsonl.gz")
    names = draw.sample(sorted({one["references"][0] for one in asked}), _PARAGRAPHS)
    questions = list(dict.fromkeys(one["question"].strip() for one in asked if one["references"][0] in set(names)))
    draw.shuffle(questions)
    return questions, names


def paragraphs(data: Path) -> list[Document]:
    """What the bank ``wiki`` is written of.

    Args:
        data: folder with ``wiki_qa``.
    """
    names = set(_chosen(data)[1])
    return [Document(one["id"], one["text"]) for one in _lines(data / "wiki_qa" / "kb.jsonl.gz") if one["id"] in names]


def cases(data: Path) -> list[Case]:
    """All questions in the order in which they arrive.

    Args:
        data: folder with ``wiki_qa``.
    """
    questions, names = _chosen(data)
    draw = random.Random(26)
    fresh = iter(questions)
    found = [Case(question, "demo") for question in QUESTIONS]
    while len(found) < COUNT:
        kind = draw.random()
        if kind < 0.12:  # a prompt of several chunks
            prompt: Any = "Answer these questions one by one. " + " ".join(next(fresh) for _ in range(draw.randint(5, 8)))
        else:
            prompt = next(fresh)
        if kind > 0.6:
            front = [{"role": "system", "content": draw.choice(_SYSTEM)}] if kind > 0.8 else []
            prompt = [*front, {"role": "user", "content": prompt}]
        ways: list[dict[str, Any]] = [{}, {}, {}, {"k": 2}, {"k": 5, "gap": 0.1}]
        ways.append({"references": [f"{name}#0" for name in draw.sample(names, 3)]})
        found.append(Case(prompt, "wiki", draw.choice(ways)))
        while len(found) < COUNT and draw.random() < 0.2:  # asked again soon, as it was or reading something else
            again = replace(found[-1], repeats=True)
            found.append(again if draw.random() < 0.5 else replace(again, reading=draw.choice(ways)))
    for number in draw.sample(range(len(QUESTIONS), COUNT), _PLAIN):
        found[number] = replace(found[number], bank="", reading={})
    order = draw.sample(range(len(QUESTIONS), COUNT), sum(count for count, _ in _LONG))
    for count, tokens in _LONG:
        for number in order[:count]:
            found[number] = replace(found[number], least=tokens, most=tokens)
        order = order[count:]
    return found
