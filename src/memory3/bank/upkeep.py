"""Keeping a bank fast and small: compaction, removal of old versions, indexes. By the holder of the lock."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa

from memory3.bank.allocator import freed_at_once
from memory3.bank.faults import writing
from memory3.bank.indexes import ensure_indexes
from memory3.bank.merging import is_merging_due, merge, rows_per_fragment
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import GRACE, Store
from memory3.errors import BankError

__all__ = ["compact", "purge", "tidy"]

#: Files of old versions, past the time that readers may need them, are removed once they have more bytes than the bank itself
#: and this.
_WASTE_BYTES = 4 << 20


def tidy(store: Store) -> None:
    """After a write: what is due. Most often nothing."""
    store.remove_superseded()
    snapshot = store.snapshot()
    if is_merging_due(snapshot) and store.backend.free_bytes() > 2 * snapshot.bytes:
        _prune(store, snapshot.name, merge(snapshot))
    elif _is_waste_due(store, snapshot):
        _prune(store, snapshot.name)
    ensure_indexes(store.snapshot())


def compact(store: Store) -> None:
    """Merge fragments, drop deleted rows, remove what interrupted work left and versions older than readers may need."""
    store.remove_superseded()
    store.remove_unfinished()
    snapshot = store.snapshot()
    _prune(store, snapshot.name, merge(snapshot))
    ensure_indexes(store.snapshot(), all_rows=True)


def purge(store: Store) -> None:
    """Leave nothing of what was deleted or replaced: live rows move into a new table, all else is removed. Needs the lock.

    Lance alone leaves a deleted row in its file until a good part of the file is deleted. Interrupted before the switch, the
    bank is as it was; after it, old files are left until the next purge.
    """
    store.remove_unfinished()
    old = store.snapshot()
    name = store.next_name()
    table = store.add_table(name, old.manifest)
    listing = old.scan(["reference_id"])["_rowid"].to_pylist()
    schema, size = table.schema, rows_per_fragment(old)
    try:
        with freed_at_once():
            for rows in old.take(listing, schema.names, portion=size):
                with writing(store.path):
                    table.add(pa.RecordBatchReader.from_batches(schema, rows.select(schema.names).cast(schema).to_batches()))
    except BankError:
        store.remove_table(name)
        raise
    store.switch(name)
    store.remove_superseded(timedelta(0))
    ensure_indexes(store.snapshot())


def _prune(store: Store, name: str, passed: range = range(0)) -> None:
    # Files of no version were left by killed writers: the lock says that no writer is alive.
    with writing(store.path):
        store.backend.prune(name, GRACE, passed)


def _is_waste_due(store: Store, snapshot: Snapshot) -> bool:
    """Do old versions hold more than the newest? A document written again and again leaves nothing to merge, but its files."""
    old = store.backend.table_bytes(snapshot.name, GRACE)
    return old > 2 * snapshot.bytes + _WASTE_BYTES
