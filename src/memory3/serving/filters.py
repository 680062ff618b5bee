"""Attributes of files, and the filters of OpenAI's searches as filters of a bank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from memory3.serving.errors import invalid

__all__ = ["plain_attributes", "where_of"]

_DEEPEST = 4


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as they are filtered by: 2020 and 2020.0, which JSON's writers do not tell apart, are one number.

    Raises:
        Refused: 400: a number is not finite.
    """
    return {key: _number(f"attributes.{key}", value) for key, value in attributes.items()}


def _number(param: str, value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise invalid(param[:200], f"{param[:200]}: give a finite number.")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def where_of(filters: Mapping[str, Any], place: str = "filters", depth: int = 1) -> dict[str, Any]:
    """A filter of OpenAI's as one of a bank: ``eq``, ``in``, and ``and`` of these on different keys.

    Args:
        filters: as the client gives it.
        place: name of the field, for errors.
        depth: of filters within filters.

    Raises:
        Refused: 400, naming the field: anything else.
    """
    kind = filters.get("type")
    known = {"type", "filters"} if kind in ("and", "or") else {"type", "key", "value"}
    for name in filters:
        if name not in known:
            raise invalid(f"{place}.{name}"[:200], f"{place}.{name[:80]} is not supported by this server: leave it out.")
    if kind == "and" and depth < _DEEPEST:
        parts = filters.get("filters")
        if not isinstance(parts, list) or not 0 < len(parts) <= 16 or not all(isinstance(part, dict) for part in parts):
            raise invalid(f"{place}.filters", f"{place}.filters: give a list of 1 to 16 filters.")
        where: dict[str, Any] = {}
        for number, part in enumerate(parts):
            for key, value in where_of(part, f"{place}.filters.{number}", depth + 1).items():
                if key in where:
                    raise invalid(f"{place}.filters.{number}.key", f"{place}: the key {key!r:.80} is there twice: use 'in'.")
                where[key] = value
        return where
    if kind not in ("eq", "in"):
        raise invalid(f"{place}.type", f"{place}.type: this server filters by 'eq', 'in', and 'and' of these.")
    named, value = filters.get("key"), filters.get("value")
    if not isinstance(named, str) or not 0 < len(named) <= 64:
        raise invalid(f"{place}.key", f"{place}.key: give the name of an attribute.")
    values: Any = value if kind == "in" else [value]
    is_list = isinstance(values, list) and 0 < len(values) <= 64
    if not is_list or not all(isinstance(each, str | bool | int | float) for each in values):
        raise invalid(f"{place}.value", f"{place}.value: give text, a number or a boolean; for 'in' a list of 1 to 64.")
    return {named: [_number(f"{place}.value", each) for each in values]}
