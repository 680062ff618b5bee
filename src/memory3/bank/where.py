"""Metadata filters. Values never reach SQL as anything but quoted JSON text, so hostile ones match nothing but themselves.

A row carries its metadata twice: as one JSON object to give back, and as a list of tags to filter on, one
``["key", value]`` in JSON per entry.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from memory3.errors import InputError
from memory3.files import parse_json
from memory3.types import plain

__all__ = ["Scalar", "Where", "alternatives", "is_in", "literal", "tag", "tags", "untagged", "where_sql"]

Scalar = str | int | float | bool
#: A key and the value it must have, or a list of values of which it must have one. All keys must match.
Where = Mapping[str, Scalar | Sequence[Scalar]]


def tag(key: str, value: object) -> str:
    """One metadata entry as text. Equal numbers give equal text (2020 and 2020.0); ``True`` is not 1 and ``"1"`` is not 1."""
    if not isinstance(key, str):
        raise InputError(f"metadata key {key!r} must be text")
    if not isinstance(value, str | int | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"metadata {key!r}: {value!r:.200} must be text, a finite number, true or false")
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return json.dumps([plain(key), value])
    except ValueError:  # Python writes no longer ones, nor reads them
        raise InputError(f"metadata {key!r}: a whole number of more than {sys.get_int_max_str_digits():,} digits") from None


def tags(metadata: Mapping[str, Scalar]) -> list[str]:
    """All entries as text, sorted."""
    return sorted(tag(key, value) for key, value in metadata.items())


def alternatives(where: Where) -> list[list[str]]:
    """The filter as tags: a row matches if it carries at least one tag of each list."""
    if not isinstance(where, Mapping):
        raise InputError(f"a filter gives names of metadata their values, as in {{'year': 2020}}: {where!r:.80} does not")
    out = []
    for key, wanted in where.items():
        values = wanted if isinstance(wanted, list | tuple) else [wanted]
        out.append([tag(key, value) for value in values])
    return out


def where_sql(where: Where) -> str:
    """The filter as a Lance condition; empty for an empty filter."""
    conditions = []
    for group in alternatives(where):
        any_of = " OR ".join(f"array_has(tags, {literal(item)})" for item in group)
        conditions.append(f"({any_of or 'false'})")
    return " AND ".join(conditions)


def untagged(found: Iterable[str]) -> dict[str, list[Scalar]]:
    """By key, the values that tags stand for, sorted as text."""
    values: dict[str, list[Scalar]] = {}
    for text in sorted(set(found)):
        with suppress(
            ValueError, TypeError
        ):  # of a damaged row; an object says where the document came from (`rows.origin_in`)
            key, value = parse_json(text)
            values.setdefault(key, []).append(value)
    return values


def is_in(column: str, values: Iterable[str]) -> str:
    """``column IN (...)`` for a non-empty list of texts."""
    return f"{column} IN ({', '.join(literal(value) for value in values)})"


def literal(text: str) -> str:
    """``text`` as an SQL string: only the quote is special to Lance's parser. InputError: it is no text, or no valid Unicode."""
    try:
        text.encode("utf-8")
    except (AttributeError, UnicodeEncodeError):
        raise InputError(f"{text!r:.80} is no name of a reference or a document: it is not valid text") from None
    return "'" + text.replace("'", "''") + "'"
