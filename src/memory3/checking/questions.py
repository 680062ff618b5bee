"""Questions that documents answer by themselves: a reference, and one of its sentences with something left out."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from memory3.bank import Bank
from memory3.calibration.sample import sample
from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.training.cloze import cloze_questions
from memory3.types import Document, Reference

__all__ = ["LEAST", "Item", "items_of", "of_bank", "sampled"]

#: Fewer questions say too little of anything.
LEAST = 12
#: References that are looked at for each question that is wanted: not every one has a sentence that can be asked about.
_FOR_EACH = 32


@dataclass(frozen=True)
class Item:
    """A question, its answer, and the reference that holds it."""

    reference: Reference
    question: str
    answer: str


def sampled(m3: Memory3, documents: Iterable[Document], number: int, *, seed: int = 0) -> list[Reference]:
    """References to look for questions in, drawn uniformly.

    Args:
        m3: splits documents into references.
        documents: read once.
        number: of questions that are wanted.
        seed: of the draw.
    """
    drawn = sample(m3, documents, _FOR_EACH * number, seed=seed)
    random.Random(seed).shuffle(drawn)
    return drawn


def of_bank(bank: Bank, number: int, *, seed: int = 0) -> list[Reference]:
    """The same of a bank's references.

    Args:
        bank: whose texts are read.
        number: of questions that are wanted.
        seed: of the draw.
    """
    ids = [f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references)]
    return bank.references(random.Random(seed).sample(ids, min(len(ids), _FOR_EACH * number)))


def items_of(references: Iterable[Reference], number: int, *, seed: int = 0) -> list[Item]:
    """At most ``number`` questions, one of each reference, so that they are independent of one another.

    Args:
        references: in the order in which they are asked about.
        number: of questions.
        seed: of what is left out.

    Raises:
        InputError: the references have too few sentences that can be asked about.
    """
    found: list[Item] = []
    seen: set[str] = set()
    for n, reference in enumerate(references):
        if reference.text in seen:  # a copy would ask the same
            continue
        seen.add(reference.text)
        asked = next(cloze_questions([reference.text], 1, seed=seed + n), None)
        if asked is not None:
            found.append(Item(reference, asked.question, asked.answer))
        if len(found) == number:
            break
    if len(found) < LEAST:
        raise InputError(
            f"these documents give {len(found)} questions, {LEAST} are needed: give more of them, with sentences that have "
            "names, numbers or dates in them"
        )
    return found
