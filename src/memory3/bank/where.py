"""Metadata filters. Values never reach SQL as anything but quoted JSON text, so hostile ones match nothing but themselves.

A row carries its metadata twice: as one JSON object to give back, and as a list of tags to filter on
(`memory3.bank.format.tags`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from memory3.bank.format.tags import Scalar, tag
from memory3.errors import InputError

__all__ = ["Where", "alternatives", "is_in", "literal", "where_sql"]

#: A key and the value it must have, or a list of values of which it must have one. All keys must match.
Where = Mapping[str, Scalar | Sequence[Scalar]]


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


def is_in(column: str, values: Iterable[str]) -> str:
    """``column IN (...)`` for a non-empty list of texts.

    Args:
        column: name of a column of text.
        values: at least one.
    """
    return f"{column} IN ({', '.join(literal(value) for value in values)})"


def literal(text: str) -> str:
    """``text`` as an SQL string: only the quote is special to Lance's parser.

    InputError: it is no text, or no valid Unicode.
    """
    try:
        text.encode("utf-8")
    except (AttributeError, UnicodeEncodeError):
        raise InputError(f"{text!r:.80} is no name of a reference or a document: it is not valid text") from None
    return "'" + text.replace("'", "''") + "'"
