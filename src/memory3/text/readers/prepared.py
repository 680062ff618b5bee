"""Folders that ``memory3 prepare`` made: their documents, with the ids, sources and metadata that they had before.

Such a folder holds ``part-*.jsonl.gz``, a report, and a hidden folder in which the work was done. A part has a document a
line: ``id``, ``text``, ``source``, ``origin`` (`memory3.types.Document`), and ``metadata`` as an object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memory3.errors import InputError
from memory3.files import parse_json
from memory3.text.readers.source import FoundFile, SourceFile, megabytes

__all__ = ["REPORT", "SETTINGS", "WORK", "is_part", "is_prepared", "part_name", "read"]

#: The hidden folder, what in it says how a folder was made, and what is written last.
WORK, SETTINGS, REPORT = ".prepare", "settings.json", "report.json"
_PART = re.compile(r"part-[0-9]{5}\.jsonl\.gz")


def part_name(number: int) -> str:
    """Of the documents of one task."""
    return f"part-{number:05d}.jsonl.gz"


def is_prepared(folder: Path) -> bool:
    """Whether a folder was made by ``memory3 prepare``.

    Raises:
        InputError: it is not finished, so that documents would be missing.
    """
    try:
        found = (folder / WORK / SETTINGS).is_file()
        if found and not (folder / REPORT).is_file():
            raise InputError(f"{folder} is of a `memory3 prepare` that has not come to its end: run that command again")
    except OSError:
        return False
    return found


def is_part(path: Path) -> bool:
    """Whether a file holds documents of a folder made by ``memory3 prepare``. Raises as `is_prepared`."""
    return _PART.fullmatch(path.name) is not None and is_prepared(path.parent)


def read(file: SourceFile) -> Iterator[FoundFile]:
    """A text per line. What is no document is a `ReadError`."""
    limit = 8 * file.options.max_bytes  # a character of four bytes is written as twelve
    with file.open() as stream:
        number = 0
        while line := stream.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise file.error(f"line {number} is over the limit of {megabytes(limit)}: raise max_bytes")
            try:
                record = _document(parse_json(line))
            except ValueError as error:
                raise file.error(f"line {number} is no document of memory3 prepare: {error}") from None
            metadata = {name: value for name, value in record["metadata"].items() if isinstance(value, str | int | float)}
            yield FoundFile(record["text"], metadata, number, record["id"], record["source"], record["origin"])


def _document(record: Any) -> Mapping[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("metadata"), dict):
        raise ValueError("it has no metadata")
    for name in ("id", "text", "source", "origin"):
        if not isinstance(record.get(name), str):
            raise ValueError(f"its {name} is no text")
    return record
