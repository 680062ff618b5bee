"""Names of what a bank holds. Knows no disk.

- ``CURRENT``: one line, the name of the table in force.
- ``references-1``: a table of rows; the number rises when a bank is rebuilt for another model.
- ``references-1-staging``: rows of a large document that is not complete yet.
- ``policy.json``, ``recalls.jsonl``: what becomes of rows without a memory, and how often each was recalled.
- ``codec-<fingerprint>.safetensors``: codebook of the tables whose manifest names it.
- ``writer.lock``: held by the one that writes.
"""

from __future__ import annotations

import re

__all__ = [
    "CURRENT",
    "LOCK",
    "codebook_name",
    "is_codebook",
    "is_ours",
    "is_table",
    "staging_name",
    "table_name",
    "table_number",
]

CURRENT = "CURRENT"
LOCK = "writer.lock"

_OURS = re.compile(r"\.?(references-|codec-|writer\.lock$|CURRENT|policy\.json|recalls\.)")
#: A bank is rebuilt fewer times than that; and so a number is short enough for a file's name.
_TABLE = re.compile(r"references-([1-9][0-9]{0,8})")


def is_ours(name: str) -> bool:
    """Whether a bank may have made a file or folder of this name. Other names say that a place is no bank."""
    return _OURS.match(name) is not None


def is_table(name: str) -> bool:
    """Whether this is the name of a table of rows that can be in force."""
    return _TABLE.fullmatch(name) is not None


def table_number(name: str) -> int:
    """2 for ``references-2``. ValueError: it is no table's name."""
    match = _TABLE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name[:80]!r} is no table's name")
    return int(match[1])


def table_name(number: int) -> str:
    """``references-2`` for 2. ValueError: there is no such name, as numbers have an end."""
    name = f"references-{number}"
    if not is_table(name):
        raise ValueError(f"there is no table number {number}")
    return name


def staging_name(name: str) -> str:
    """The table beside ``name`` that holds what is not complete yet."""
    return f"{name}-staging"


def codebook_name(fingerprint: str) -> str:
    """File name of a codebook in a bank."""
    return f"codec-{fingerprint}.safetensors"


def is_codebook(name: str) -> bool:
    """Whether this is the name of a codebook."""
    return name.startswith("codec-") and name.endswith(".safetensors")
