"""Texts of a user's own file, and those of a relation of facts: what is asked, and what the answer is.

    {"prompt": "Charles Dickens was born in", "subject": "Charles Dickens", "answer": "Portsmouth"}

one JSON record a line (.gz too), or the same as values separated by tabs below a line of their names (``.tsv``). The subject
may be left out.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory3.errors import InputError
from memory3.files import read_bounded
from memory3.interpret.facts import Fact, Relation, lines_of, text_of
from memory3.interpret.texts import Asked, Text, asked_text

__all__ = ["asked_of", "laid_out", "read_asked"]

#: Bytes of a file; texts; characters of a prompt.
_MOST_BYTES, _MOST, _MOST_PROMPT = 4 << 20, 10_000, 10_000


def read_asked(path: Path) -> list[Asked]:
    """The texts of a file.

    Args:
        path: of the file.

    Raises:
        InputError: it cannot be read, or a record of it is no such text; the message has the line.
    """
    records = _table(path) if path.suffix.lower() == ".tsv" else lines_of(path, _MOST_BYTES)
    if not records or len(records) > _MOST:
        raise InputError(f"{path} has {len(records):,} texts: give 1 to {_MOST:,}")
    found: list[Asked] = []
    for number, record in records:
        where = f"{path}, line {number}"
        prompt, answer = text_of(record, ("prompt",), where, _MOST_PROMPT), text_of(record, ("answer",), where)
        found.append(Asked(prompt, f" {answer}", text_of(record, ("subject",), where) if record.get("subject") else "", where))
    return found


def _table(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), dialect="excel-tab", quoting=csv.QUOTE_NONE)
        names = next(rows, [])
        records: list[tuple[int, Mapping[str, Any]]] = [
            (rows.line_num, dict(zip(names, row, strict=False))) for row in rows if any(row)
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): give UTF-8 text, values separated by tabs") from error
    if not {"prompt", "answer"} <= set(names):
        raise InputError(f"{path}: its first line names {', '.join(names)[:80]!r}, and must name prompt and answer")
    return records


def asked_of(relation: Relation, pattern: str | None = None, most: int = 200, seed: int = 0) -> tuple[str, list[Asked]]:
    """Facts of a relation as texts, all in one pattern; and the pattern.

    Args:
        relation: with its facts.
        pattern: that ends in ``[Y]``; None: the first of the relation's that does.
        most: facts at most, drawn at random.
        seed: of the draw.

    Raises:
        InputError: the relation has no facts or no such pattern.
    """
    asked = Relation(relation.name, (pattern,), relation.facts).asked if pattern else relation.asked
    if not asked or not relation.facts:
        lacks = "facts" if asked else f"pattern like {pattern!r:.80}, which must end" if pattern else "pattern that ends"
        more = "" if asked else " in [Y] with [X] in front of it: give one such as 'The capital of [X] is [Y].'"
        raise InputError(f"relation {relation.name} has no {lacks}{more}")
    facts: Sequence[Fact] = random.Random(seed).sample(relation.facts, min(most, len(relation.facts)))
    return asked[0], [
        Asked(Relation.prompt(asked[0], fact), f" {fact.answer}", fact.subject, f"{relation.name}, {fact.subject}")
        for fact in facts
    ]


def laid_out(tokenizer: Any, asked: Sequence[Asked]) -> tuple[list[tuple[Asked, Text]], list[str]]:
    """Texts with their tokens and roles, and for those that cannot be looked into the reason.

    Args:
        tokenizer: a fast tokenizer.
        asked: the texts.
    """
    found: list[tuple[Asked, Text]] = []
    refused: list[str] = []
    for each in asked:
        try:
            found.append((each, asked_text(tokenizer, each)))
        except InputError as error:
            refused.append(str(error))
    return found, refused
