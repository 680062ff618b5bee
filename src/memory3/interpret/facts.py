"""Facts and the patterns that say them, as ParaRel has them (Y. Elazar et al., arXiv 2102.01017): one JSON record a line.

    {"relation": "P36", "pattern": "The capital of [X] is [Y]."}
    {"relation": "P36", "subject": "France", "answer": "Paris"}

ParaRel's own names are read too: ``file`` (whose name without its ending is the relation), ``sub_label``, ``obj_label``. A
file comes from anywhere: its size, its records and its texts are bounded.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from memory3.errors import InputError
from memory3.files import open_unzipped, parse_json

__all__ = ["Fact", "Relation", "lines_of", "read_facts"]

#: Bytes of a file, unzipped; characters of a name or pattern; lines.
_MOST_BYTES, _MOST_TEXT, _MOST_LINES = 64 << 20, 500, 1_000_000


@dataclass(frozen=True)
class Fact:
    """That a subject has an answer in a relation.

    Attributes:
        subject: what the pattern's ``[X]`` is.
        answer: what its ``[Y]`` is.
    """

    subject: str
    answer: str


@dataclass(frozen=True)
class Relation:
    """Facts of one kind.

    Attributes:
        name: such as ``"P36"``.
        patterns: texts with ``[X]`` and ``[Y]``, as they were found.
        facts: each once.
    """

    name: str
    patterns: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def asked(self) -> tuple[str, ...]:
        """Patterns that a model can be asked with: they end in the answer, and the subject is in front of it."""
        return tuple(p for p in self.patterns if re.fullmatch(r".*\[X\].*\s\[Y\]\s*[.]?\s*", p))

    @staticmethod
    def prompt(pattern: str, fact: Fact) -> str:
        """What stands in front of the answer, without a space at its end.

        Args:
            pattern: one of `asked`.
            fact: of the relation.
        """
        return _filled(pattern[: pattern.index("[Y]")], fact).rstrip()

    @staticmethod
    def text(pattern: str, fact: Fact) -> str:
        """The fact as a sentence.

        Args:
            pattern: any.
            fact: of the relation.
        """
        said = re.sub(r"\s+([.,])", r"\1", _filled(pattern, fact).strip())
        return said if said.endswith(".") else f"{said}."


def _filled(pattern: str, fact: Fact) -> str:
    # One pass: a subject that is called "[Y]" stays what it is.
    return re.sub(r"\[[XY]\]", lambda found: fact.subject if found[0] == "[X]" else fact.answer, pattern)


def lines_of(path: Path, most: int = _MOST_BYTES) -> list[tuple[int, Mapping[str, Any]]]:
    """The records of a file of JSON lines, ``.gz`` too, each with the number of its line.

    Args:
        path: of the file.
        most: bytes it may have, unzipped.

    Raises:
        InputError: it cannot be read, is too large, or a line is no JSON object; the message has the line.
    """
    try:
        with open_unzipped(path) as file:
            data = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): give a file of JSON lines"
        ) from error
    lines = data.split(b"\n")
    if len(data) > most or len(lines) > _MOST_LINES:
        raise InputError(f"{path} has more than {most >> 20} MB or {_MOST_LINES:,} lines: give a part of it")
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line.decode("utf-8-sig"))
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error}): give one record a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is no JSON object: give records with names and values")
        found.append((number, record))
    return found


def text_of(record: Mapping[str, Any], names: tuple[str, ...], where: str, most: int = _MOST_TEXT) -> str:
    """A text of a record, white space at its ends left out.

    Args:
        record: of a file.
        names: under which it may stand; the first that is there counts.
        where: file and line, for the message.
        most: characters it may have.

    Raises:
        InputError: none of the names, or no text, or a longer one.
    """
    value = next((record[name] for name in names if name in record), None)
    if not isinstance(value, str) or not value.strip() or len(value) > most:
        raise InputError(f"{where}: {names[0]} is {value!r:.60}, give a text of 1 to {most:,} characters")
    return value.strip()


def read_facts(path: Path) -> dict[str, Relation]:
    """The relations of a file, by name; those without facts or patterns too.

    Args:
        path: of the file.

    Raises:
        InputError: the file is none of facts; the message has the line and the remedy.
    """
    patterns: dict[str, dict[str, None]] = {}
    facts: dict[str, dict[Fact, None]] = {}
    for number, record in lines_of(path):
        where = f"{path}, line {number}"
        name = text_of(record, ("relation", "file"), where)
        name = name if "relation" in record else PurePosixPath(name).stem
        if "pattern" in record:
            pattern = text_of(record, ("pattern",), where)
            if pattern.count("[X]") != 1 or pattern.count("[Y]") != 1:
                raise InputError(f"{where}: pattern is {pattern!r:.80}, which must have [X] and [Y] once each")
            patterns.setdefault(name, {})[pattern] = None
        else:
            subject = text_of(record, ("subject", "sub_label"), where)
            facts.setdefault(name, {})[Fact(subject, text_of(record, ("answer", "obj_label"), where))] = None
    if not facts or not patterns:
        raise InputError(
            f"{path} has no {'patterns' if facts else 'facts'}: it needs records with a pattern and records with a subject"
        )
    names = sorted({*facts, *patterns})
    return {name: Relation(name, tuple(patterns.get(name, ())), tuple(facts.get(name, ()))) for name in names}
