"""Metadata as tags: one JSON text ``["key", value]`` per entry, which a row carries to be filtered by."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress

from memory3.errors import InputError
from memory3.files import parse_json
from memory3.types import plain

__all__ = ["Scalar", "tag", "tags", "untagged"]

Scalar = str | int | float | bool


def tag(key: str, value: object) -> str:
    """One metadata entry as text. Equal numbers give equal text (2020 and 2020.0); ``True`` is not 1 and ``"1"`` is not 1.

    Args:
        key: of the metadata.
        value: text, a finite number, true or false.

    Raises:
        InputError: the key is no text, or the value is of another kind.
    """
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
