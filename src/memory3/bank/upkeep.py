"""Keeping a bank fast and small: compaction, removal of old versions, indexes. By the holder of the lock."""

from __future__ import annotations

import shutil

from memory3.bank.faults import writing
from memory3.bank.indexes import ensure_indexes
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import GRACE, Store

__all__ = ["compact", "tidy"]

#: More fragments than this are merged as soon as they hold more rows than the largest: so a row is rewritten about
#: log2(rows) times in a bank's life.
_MANY_FRAGMENTS = 256
#: So many small ones, as cold rows leave that are stored a few at a time, are merged in any case.
_TOO_MANY_FRAGMENTS = 1024
_SMALL_BYTES = 8 << 20


def tidy(store: Store) -> None:
    """After a write: what is due. Most often nothing."""
    store.remove_superseded()
    snapshot = store.snapshot()
    if _is_compaction_due(snapshot) and shutil.disk_usage(store.path).free > 2 * snapshot.bytes:
        _optimize(store, snapshot)
    ensure_indexes(store.snapshot())


def compact(store: Store) -> None:
    """Merge fragments, drop deleted rows, remove what interrupted work left and versions older than readers may need."""
    store.remove_superseded()
    store.remove_unfinished()
    _optimize(store, store.snapshot())
    ensure_indexes(store.snapshot())


def _optimize(store: Store, snapshot: Snapshot) -> None:
    with writing(store.path):
        # Unverified files are those of no version, left by killed writers. The lock says that no writer is alive.
        snapshot.table.optimize(cleanup_older_than=GRACE, delete_unverified=True)


def _is_compaction_due(snapshot: Snapshot) -> bool:
    fragments, largest, rows = snapshot.fragments()
    replaced = rows > 2 * snapshot.size
    scattered = fragments > _MANY_FRAGMENTS and rows > 2 * largest
    crumbled = fragments > _TOO_MANY_FRAGMENTS and (rows - largest) * snapshot.record_bytes < fragments * _SMALL_BYTES
    return replaced or scattered or crumbled
