"""Keeping a bank fast and small: compaction, removal of old versions, indexes. By the holder of the lock."""

from __future__ import annotations

import shutil
import time
from datetime import timedelta

import pyarrow as pa

from memory3.bank.faults import writing
from memory3.bank.indexes import ensure_indexes
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import GRACE, Store
from memory3.errors import BankError

__all__ = ["compact", "purge", "tidy"]

#: More fragments than this are merged as soon as they hold more rows than the largest: so a row is rewritten about
#: log2(rows) times in a bank's life.
_MANY_FRAGMENTS = 256
#: So many small ones, as cold rows leave that are stored a few at a time, are merged in any case.
_TOO_MANY_FRAGMENTS = 1024
_SMALL_BYTES = 8 << 20
#: Files of old versions, past the time that readers may need them, are removed once they have more bytes than the bank itself and this.
_WASTE_BYTES = 4 << 20


def tidy(store: Store) -> None:
    """After a write: what is due. Most often nothing."""
    store.remove_superseded()
    snapshot = store.snapshot()
    due = _is_compaction_due(snapshot) or _is_waste_due(store, snapshot)
    if due and shutil.disk_usage(store.path).free > 2 * snapshot.bytes:
        _optimize(store, snapshot)
    ensure_indexes(store.snapshot())


def compact(store: Store) -> None:
    """Merge fragments, drop deleted rows, remove what interrupted work left and versions older than readers may need."""
    store.remove_superseded()
    store.remove_unfinished()
    _optimize(store, store.snapshot())
    ensure_indexes(store.snapshot())


def purge(store: Store) -> None:
    """Leave nothing of what was deleted or replaced, at once: the live rows move into a new table, and all else is removed. Needs the lock.

    Lance alone leaves a deleted row in its file until a good part of the file is deleted. Interrupted before the switch, the bank is as it was; after it, old files are left until the next purge.
    """
    store.remove_unfinished()
    old = store.snapshot()
    name = store.next_name()
    table = store.add_table(name, old.manifest)
    listing = old.scan(["reference_id"])["_rowid"].to_pylist()
    schema = table.schema
    portions = (rows.select(schema.names).cast(schema) for rows in old.take(listing, schema.names))
    batches = (batch for rows in portions for batch in rows.to_batches())
    try:
        with writing(store.path):
            if listing:
                table.add(pa.RecordBatchReader.from_batches(schema, batches))
    except BankError:
        store.remove_table(name)
        raise
    store.switch(name)
    store.remove_superseded(timedelta(0))
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


def _is_waste_due(store: Store, snapshot: Snapshot) -> bool:
    """Do old versions alone hold more than the newest? A document written again and again leaves no fragment to merge, and all its files."""
    old = store.data_bytes(snapshot.name, time.time() - GRACE.total_seconds())
    return old > 2 * snapshot.bytes + _WASTE_BYTES
