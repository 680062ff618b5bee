"""JSON: one record a line (``.jsonl``, read as a stream), or one list of records (``.json``, read whole)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from memory3.text.readers.encoding import LooksBinary, decode, marked_encoding
from memory3.text.readers.records import from_record
from memory3.text.readers.source import FoundFile, SourceFile, megabytes

__all__ = ["LINE_SUFFIXES", "LIST_SUFFIXES", "read_lines", "read_list"]

LINE_SUFFIXES = (".jsonl", ".ndjson")
LIST_SUFFIXES = (".json",)


def read_lines(file: SourceFile) -> Iterator[FoundFile]:
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


def read_list(file: SourceFile) -> Iterator[FoundFile]:
    """A text per record of a list, or the text of a single object."""
    content = file.read()
    if not content.strip():
        return
    records = _parse(file, content, "the file")
    for row, record in enumerate(records if isinstance(records, list) else [records], start=1):
        yield from from_record(file, row, record)


def _parse(file: SourceFile, content: bytes, place: str, row: int | None = None) -> Any:
    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            file.report_once(f"the field {name[:100]!r} is there twice in one object, where the last is read", row)
        return record

    try:
        text, warning = decode(content, guess=False)
        record = json.loads(text, object_pairs_hook=fields)
    except LooksBinary:
        raise file.error(
            f"{place} is not UTF-8, as JSON must be: convert it, for example with `iconv -t utf-8`, or name its "
            "encoding with --encoding"
        ) from None
    except json.JSONDecodeError as error:
        lines = ". If it holds a record a line, name it .jsonl" if row is None and error.msg == "Extra data" else ""
        raise file.error(f"{place} is not valid JSON: {error}{lines}") from None
    except RecursionError:
        raise file.error(f"{place} is not valid JSON that can be read: it is nested too deep") from None
    except ValueError:  # Python reads no integers of more digits
        digits = sys.get_int_max_str_digits()
        raise file.error(
            f"{place} is not valid JSON that can be read: it has a number of more than {digits:,} digits"
        ) from None
    if warning:
        file.report(warning, row)
    return record
