"""Records, whatever file they come from: which field is the text, which the id, and what becomes metadata."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from memory3.errors import setting
from memory3.text.readers.source import FoundFile, SourceFile, megabytes

__all__ = ["ID_FIELDS", "TEXT_FIELDS", "from_record"]

#: Names under which a text is looked for, in this order.
TEXT_FIELDS = ("text", "content", "contents", "body", "passage", "document", "article", "page_content")
#: Names under which an id is looked for, in this order.
ID_FIELDS = ("id", "_id", "doc_id", "docid", "document_id")

#: Longer strings stay out of metadata, which is stored anew with every reference of the document.
_LONGEST_METADATA = 1000
#: Names of fields in a message.
_MOST_LISTED = 30


def from_record(file: SourceFile, row: int, record: object, place: str = "row") -> Iterator[FoundFile]:
    """The text of a record, or nothing where it is empty. A bare string is a record of a text alone.

    Args:
        file: where the record comes from.
        row: its number, from 1.
        record: a mapping of fields, or a string.
        place: what ``row`` counts, for messages.
    """
    if isinstance(record, str):
        record = {file.options.text_field or TEXT_FIELDS[0]: record}
    if not isinstance(record, Mapping):
        raise file.error(f"{place} {row} is neither an object with fields nor a string, but {_json_type(record)}")
    text_field = _text_field(file, row, record, place)
    text = record[text_field]
    if text is None or not text.strip():
        file.report("has no text", row)
        return
    limit = file.options.max_bytes
    if 4 * len(text) > limit and len(text.encode("utf-8", "replace")) > limit:
        raise file.error(f"{place} {row} holds a text over the limit of {megabytes(limit)}: split it or raise max_bytes")
    id_field, id_ = _id(file, row, record, place)
    metadata = {}
    for name, value in record.items():
        if name in (text_field, id_field) or value is None:
            continue
        if kind := _no_metadata(value):
            file.report_once(f"the field {_shown(name)} is left out of the metadata where it is {kind}", row)
        else:
            metadata[str(name)] = value
    yield FoundFile(text, metadata, row, id_)


def _text_field(file: SourceFile, row: int, record: Mapping[str, object], place: str) -> str:
    """Name of a field whose value is a string or None."""
    wanted = file.options.text_field
    names = (wanted,) if wanted else TEXT_FIELDS
    present = [name for name in names if name in record]
    for name in present:
        if isinstance(record[name], str):
            return name
    for name in present:
        if record[name] is None:
            return name
    if present:
        raise file.error(f"{place} {row}: the field {present[0]!r} is no text but {_json_type(record[present[0]])}")
    missing = f"no field {wanted!r}" if wanted else f"none of the fields {', '.join(TEXT_FIELDS)} with a text"
    raise file.error(
        f"{place} {row} has {missing}. Its fields are {_listed(record)}: name the text's with "
        f"{setting('text_field', python='--text-field (text_field in Python)')}"
    )


def _id(file: SourceFile, row: int, record: Mapping[str, object], place: str) -> tuple[str | None, str | None]:
    """The id field and the id, both None where records are to be numbered."""
    wanted = file.options.id_field
    for name in ID_FIELDS if wanted is None else (wanted,) if wanted else ():
        value = record.get(name)
        is_id = isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip()
        if is_id and not (isinstance(value, float) and not math.isfinite(value)):  # pandas writes a missing id as NaN
            return name, str(value)
    if wanted:
        fields = "" if wanted in record else f". Its fields are {_listed(record)}"
        raise file.error(
            f"{place} {row} has no id in the field {wanted!r}{fields}: name another with --id-field, or '' to number "
            "the records"
        )
    return None, None


def _no_metadata(value: object) -> str | None:
    """What a value is that cannot be metadata; None for one that can."""
    if isinstance(value, str):
        return f"longer than {_LONGEST_METADATA:,} characters" if len(value) > _LONGEST_METADATA else None
    if isinstance(value, float):
        return None if math.isfinite(value) else "not a finite number"
    return None if isinstance(value, (bool, int)) else _json_type(value)


def _shown(name: object) -> str:
    return repr(str(name)[:100])


def _listed(record: Mapping[str, object]) -> str:
    more = f" and {len(record) - _MOST_LISTED:,} more" if len(record) > _MOST_LISTED else ""
    return (", ".join(map(_shown, itertools.islice(record, _MOST_LISTED))) or "none") + more


def _json_type(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    return {type(None): "null", bool: "true or false", list: "a list", str: "a text"}.get(type(value), "a number")
