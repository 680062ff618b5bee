"""Which version of which table: what readers, caches and writers compare before they trust what they hold. Knows no disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from uuid import uuid4

from xxhash import xxh3_128_hexdigest

from memory3.bank.format.manifest import METADATA_KEY, TABLE_ID_KEY

__all__ = ["VersionId", "new_table_id", "table_id", "version_text"]


class VersionId(NamedTuple):
    """Which version of which table: equal only where every row is equal.

    Attributes:
        table_id: of the table; another table that takes its place, under whatever name, has another.
        name: of the table in the bank.
        version: Lance's.
        mark: of what lists the version's content (`Backend.version_mark`). An older copy of the bank, put back and written to,
            comes to the same number with another.
    """

    table_id: str
    name: str
    version: int
    mark: str


def new_table_id() -> str:
    """32 hex digits that no other table has."""
    return uuid4().hex


def table_id(metadata: Mapping[bytes, bytes]) -> str:
    """The id in a table's schema metadata. Tables of older releases have none: their manifest stands for it."""
    return metadata.get(TABLE_ID_KEY, b"").decode("ascii", "replace") or xxh3_128_hexdigest(metadata[METADATA_KEY])


def version_text(version: VersionId) -> str:
    """A version as servers and devices say it: 32 hex digits, equal only where every row is equal."""
    return xxh3_128_hexdigest("\0".join(map(str, version)).encode())
