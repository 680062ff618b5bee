"""DocumentUsage logs: how often each document was recalled, from CSV or JSON lines. Knows nothing of costs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memory3.errors import InputError, ReadError

__all__ = ["DocumentUsage", "read_usage"]

#: Names under which the columns are looked for, in this order.
DOCUMENT_FIELDS = ("document_id", "document", "doc_id", "id")
COUNT_FIELDS = ("count", "uses", "recalls")
#: Optional: how many references a document has; otherwise one.
REFERENCES_FIELD = "references"


@dataclass(frozen=True)
class DocumentUsage:
    """How a document is used.

    Attributes:
        document_id: its id.
        count: times one of its references was recalled.
        references: how many it has; each is written once, whatever the count.
    """

    document_id: str
    count: int
    references: int = 1


def read_usage(path: str | Path) -> list[DocumentUsage]:
    """A usage log, most used document first; lines of the same document are added up.

    CSV (``.csv``, ``.tsv``) has a header line naming the columns, or two columns without one; JSON lines (``.jsonl``) an
    object per line. The document is called ``document_id``, ``document``, ``doc_id`` or ``id``, its count ``count``, ``uses``
    or ``recalls``; ``references`` is optional.

    Raises:
        InputError: another kind of file, or one without any line.
        ReadError: a line cannot be used; the message says which and why.
    """
    path = Path(path)
    readers = {".csv": _csv_lines, ".tsv": _csv_lines, ".jsonl": _json_lines, ".ndjson": _json_lines}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: a usage log is CSV or JSON lines: give a file named *{', *'.join(readers)}")
    found: dict[str, DocumentUsage] = {}
    try:
        for line, fields in readers[path.suffix.lower()](path):
            usage = _usage(path, line, fields)
            before = found.get(usage.document_id)
            count = usage.count + (before.count if before else 0)
            found[usage.document_id] = DocumentUsage(
                usage.document_id, count, max(usage.references, before.references if before else 1)
            )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReadError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise InputError(f"{path}: holds no usage: give lines of document id and count")
    return sorted(found.values(), key=lambda usage: (-usage.count, usage.document_id))


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header: list[str] | None = None
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if any(name in header for name in COUNT_FIELDS):
                    continue
                header = [DOCUMENT_FIELDS[0], COUNT_FIELDS[0], REFERENCES_FIELD]
            if len(cells) > len(header) or len(cells) < 2:
                raise ReadError(path, f"line {lines.line_num} has {len(cells)} columns, not {len(header)}")
            yield lines.line_num, dict(zip(header, cells, strict=False))


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ReadError(path, f"line {line} is no JSON: {error}") from error
            if not isinstance(fields, dict):
                raise ReadError(path, f"line {line} is no JSON object")
            yield line, fields


def _usage(path: Path, line: int, fields: Mapping[str, object]) -> DocumentUsage:
    document = next((str(fields[name]) for name in DOCUMENT_FIELDS if fields.get(name) not in (None, "")), "")
    if not document:
        raise ReadError(path, f"line {line} names no document: it needs one of {', '.join(DOCUMENT_FIELDS)}")
    name = next((name for name in COUNT_FIELDS if name in fields), COUNT_FIELDS[0])
    count = _whole(path, line, name, fields.get(name), 0)
    references = fields.get(REFERENCES_FIELD)
    return DocumentUsage(
        document, count, 1 if references in (None, "") else _whole(path, line, REFERENCES_FIELD, references, 1)
    )


def _whole(path: Path, line: int, name: str, value: object, least: int) -> int:
    try:
        number = float(str(value))
        if number != int(number) or number < least or isinstance(value, bool):
            raise ValueError
    except (ValueError, OverflowError):
        raise ReadError(path, f"line {line}: {name} is {value!r}: give a whole number from {least}") from None
    return int(number)
