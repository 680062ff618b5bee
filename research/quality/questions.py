"""Questions on a passage with their answers, as the model itself writes them: what selection and fitting may look at in place
of the passage once more. Kept in a file, since writing them takes longest of all. And questions by rule, which cost nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from memory3.evaluation.generation import generate_rows
from memory3.files import write_atomically
from memory3.llm import Memory3
from memory3.prompt import PromptRow
from memory3.training.cloze import cloze_questions
from memory3.types import Reference

__all__ = ["ASK", "cloze", "written"]

#: What the model is told.
ASK = (
    "Write short questions about the facts in these passages. "
    "Give the answer in the same words as the passage after each question."
)
#: Tokens that it writes at most.
_NEW = 96
#: Sentences with a gap of a passage at most; what they are longer than a reference would stand where no token stood before.
_CLOZE = 4


def cloze(m3: Memory3, references: Sequence[Reference]) -> tuple[list[list[int]], list[list[int]]]:
    """Sentences of each passage with a gap, one behind the other, each as a turn of the user with its answer; and which of the
    tokens are watched: those that choose a token of an answer, since the others copy the passage.

    A passage without a sentence that has a name or number in it is repeated.
    """
    asked, watched = [], []
    for reference in references:
        tokens: list[int] = []
        seen: list[int] = []
        for question in cloze_questions([reference.text], _CLOZE):
            tokens += m3.frame.after(m3.prompts.ids(question.question))
            answer = m3.prompts.ids(question.answer)
            seen += range(len(tokens) - 1, len(tokens) + len(answer))
            tokens += answer
        asked.append(tokens or list(reference.token_ids))
        watched.append(seen or list(range(len(reference.token_ids))))
    return asked, watched


def written(m3: Memory3, references: Sequence[Reference], path: Path, batch: int) -> dict[str, list[int]]:
    """Token ids of what the model wrote on each reference, by its id.

    Args:
        m3: who writes, with the reference as text.
        references: of the passages.
        path: the file.
        batch: passages that are written on together.
    """
    known: dict[str, list[int]] = json.loads(path.read_text()) if path.exists() else {}
    todo = sorted((r for r in references if r.id not in known), key=lambda r: len(r.token_ids))
    ask = m3.prompts.ids(ASK)
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        rows = [PromptRow(m3.frame.with_text([reference.token_ids], ask)) for reference in part]
        for reference, made in zip(part, generate_rows(m3, None, rows, max_new_tokens=_NEW), strict=True):
            known[reference.id] = made.token_ids
        write_atomically(path, json.dumps(known))
    return known
