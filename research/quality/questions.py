"""Questions on a passage with their answers, as the model itself writes them: what selection and fitting may look at in place
of the passage once more. Kept in a file, since writing them takes longest of all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from memory3.evaluation.generation import generate_rows
from memory3.files import write_atomically
from memory3.llm import Memory3
from memory3.prompt import PromptRow
from memory3.types import Reference

__all__ = ["ASK", "written"]

#: What the model is told.
ASK = (
    "Write short questions about the facts in these passages. "
    "Give the answer in the same words as the passage after each question."
)
#: Tokens that it writes at most.
_NEW = 96


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
