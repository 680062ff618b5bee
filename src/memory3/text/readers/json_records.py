"""JSON: one record a line (``.jsonl``, read as a stream), or one list of records (``.json``, read whole)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from memory3.text.readers.encoding import LooksBinary, decode, marked_encoding
from memory3.text.readers.records import from_record
from memory3.text.readers.source import Found, SourceFile, megabytes

__all__ = ["LINE_SUFFIXES", "LIST_SUFFIXES", "read_lines", "read_list"]

LINE_SUFFIXES = (".jsonl", ".ndjson")
LIST_SUFFIXES = (".json",)


def read_lines(file: SourceFile) -> Iterator[Found]:
    """A text per line. Empty lines are passed over; the row is the number of the line."""
    limit = file.options.max_bytes
    with file.open() as stream:
        number = 0
        while line := stream.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise file.error(f"line {number} is over the limit of {megabytes(limit)}: raise max_bytes")
            if number == 1 and marked_encoding(line) not in (None, "utf-8-sig"):
                raise file.error(
                    "JSON lines must be UTF-8, this is UTF-16 or UTF-32: save it as UTF-8, or name it with --encoding"
                )
            if line.strip():
                record = _parse(file, line, f"line {number}", number)
                yield from from_record(file, number, record, "line")


def read_list(file: SourceFile) -> Iterator[Found]:
    """A text per record of a list, or the text of a single object."""
    content = file.read()
    if not content.strip():
        return
    records = _parse(file, content, "the file")
    for row, record in enumerate(records if isinstance(records, list) else [records], start=1):
        yield from from_record(file, row, record)


def _parse(file: SourceFile, content: bytes, place: str, row: int | None = None) -> Any:
    try:
        text, warning = decode(content, guess=False)
        record = json.loads(text)
    except LooksBinary:
        raise file.error(
            f"{place} is not UTF-8, as JSON must be: convert it, for example with `iconv -t utf-8`, or name its encoding with --encoding"
        ) from None
    except (ValueError, RecursionError) as error:
        raise file.error(f"{place} is not valid JSON: {error}") from None
    if warning:
        file.report(warning, row)
    return record
