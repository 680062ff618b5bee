"""Removing rows from a table: whole documents, and what shorter versions of documents left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memory3.bank.faults import reading, writing
from memory3.bank.format.rows import LIVE, TEXT_COLUMNS, are_tombstones
from memory3.bank.store import Store
from memory3.bank.where import is_in

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["delete_documents", "delete_tombstones", "present"]

_AT_ONCE = 500


def present(store: Store, table: Table, document_ids: Sequence[str]) -> list[str]:
    """Those of the documents of which the table has a row, damaged or not.

    Args:
        store: the bank.
        table: where to look.
        document_ids: in any order.
    """
    found: set[str] = set()
    for start in range(0, len(document_ids), _AT_ONCE):
        condition = is_in("document_id", document_ids[start : start + _AT_ONCE])
        with reading(store.path):
            rows = table.search().where(condition).select(["document_id"]).limit(None).to_arrow()
        found.update(rows["document_id"].to_pylist())
    return sorted(found)


def delete_documents(store: Store, table: Table, document_ids: Sequence[str]) -> None:
    """Remove documents; each goes whole, in one commit.

    Args:
        store: the bank; its lock is held.
        table: the table in force.
        document_ids: those that are not there are passed over.
    """
    for start in range(0, len(document_ids), _AT_ONCE):
        with writing(store.path):
            table.delete(is_in("document_id", document_ids[start : start + _AT_ONCE]))


def delete_tombstones(store: Store, table: Table) -> None:
    """Remove what a shorter version of a document left over, perhaps of a write that was killed.

    A row that is no part of its document because it is damaged stays: `verify` names it.

    Args:
        store: the bank; its lock is held.
        table: the table in force.
    """
    with reading(store.path):
        rows = table.search().where(f"NOT ({LIVE})").select(list(TEXT_COLUMNS)).limit(None).to_arrow()
    ids = [id_ for id_, sound in zip(rows["reference_id"].to_pylist(), are_tombstones(rows), strict=True) if sound]
    for start in range(0, len(ids), _AT_ONCE):
        with writing(store.path):
            table.delete(f"NOT ({LIVE}) AND {is_in('reference_id', ids[start : start + _AT_ONCE])}")
