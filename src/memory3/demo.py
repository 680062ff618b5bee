"""What `memory3 demo` shows: a bank of Python's language reference, and questions that it answers. Knows no terminal.

The text is one that every Python install carries (`pydoc_data.topics`), so the demo needs no download but the models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from memory3.bank import Bank
from memory3.llm import MODES, Answer, Memory3
from memory3.models.catalogue import cache_dir
from memory3.types import Document

__all__ = [
    "MAX_NEW_TOKENS",
    "PART",
    "PART_NAME",
    "QUESTIONS",
    "DemoAnswer",
    "ask_all",
    "bank_folder",
    "documents",
]

PART_NAME = "the data model and most statements"
#: The topics of that part: chapters 3, 7 and 8 of the language reference but for `import`, some more than 400 references.
PART = (
    "types",
    "specialnames",
    "assert",
    "assignment",
    "augassign",
    "break",
    "continue",
    "del",
    "global",
    "nonlocal",
    "pass",
    "raise",
    "return",
    "compound",
)
#: Chosen by their outcome: of 30 questions that this part answers, three of the 15 that memory mode got right (text of
#: the same references: 18, closed book: 1; graded by one person). They show how it works; how often it is right is for
#: ``memory3 bench answers`` to say.
QUESTIONS = (
    "In which version of Python was hash randomization enabled by default?",
    "Which PEP is the proposal that added class decorators?",
    "Which PEP has the specification for the nonlocal statement?",
)
#: Enough for a phrase, and little enough for nine answers in some seconds.
MAX_NEW_TOKENS = 20


@dataclass(frozen=True)
class DemoAnswer:
    """One question answered in one mode."""

    question: str
    mode: str
    answer: Answer


def documents(*, everything: bool = False) -> list[Document]:
    """One document per topic: those of `PART`, or all."""
    names = sorted(topics) if everything else [name for name in PART if name in topics]
    return [Document(name, topics[name], f"pydoc_data.topics/{name}") for name in names]


def bank_folder(m3: Memory3, *, everything: bool = False) -> Path:
    """Where the demo keeps its bank: one for each model with its settings, so that a change of either does not get in the way.

    Args:
        m3: the model with its settings.
        everything: all topics, or the few of the short demo.
    """
    return cache_dir() / "demo" / f"{'all' if everything else 'part'}-{m3.fingerprint[:16]}"


def ask_all(m3: Memory3, bank: Bank) -> Iterator[DemoAnswer]:
    """Each question in each mode.

    Args:
        m3: answers.
        bank: where it looks.
    """
    for question in QUESTIONS:
        for mode in MODES:
            answer = m3.generate(question, bank=bank, mode=mode, max_new_tokens=MAX_NEW_TOKENS)
            yield DemoAnswer(question, mode, answer)
