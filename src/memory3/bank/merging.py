"""Merging small fragments of a table, a bounded number of bytes at a time.

A fragment is what one commit wrote: many small ones make every scan slow, and a deleted row takes space until its fragment is
written anew. Lance's own
compaction merges all fragments below a million rows into one, at every pass: of rows of 48 KB that is always the whole table
(lancedb#2325). Here rows of
fragments that are small, or of which much is deleted, are moved into new fragments of `rows_per_fragment` rows; full fragments
are never touched again.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory3.bank.allocator import freed_at_once
from memory3.bank.faults import writing
from memory3.bank.format.rows import row_bytes
from memory3.bank.snapshot import Snapshot

__all__ = ["FRAGMENT_BYTES", "is_merging_due", "merge", "rows_per_fragment", "rows_to_move"]

#: A full fragment: what one merge reads, and what one commit writes. A merge needs about five times as much RAM. Each further
#: merge in a process has left one or two MiB more, for a reason not found (`memory3 bench compaction`).
FRAGMENT_BYTES = 64 << 20
#: Fragments are merged once there are so many more than a merged table would have.
_MANY_FRAGMENTS = 256
#: A fragment of which a larger share is deleted is written anew.
_MOST_DELETED = 0.1
#: Rows are handed to Lance in batches of about this size.
_BATCH_BYTES = 4 << 20


def rows_per_fragment(snapshot: Snapshot) -> int:
    """Rows of a full fragment of this table."""
    return max(1, FRAGMENT_BYTES // row_bytes(snapshot.manifest))


def is_merging_due(snapshot: Snapshot) -> bool:
    """Whether more is deleted than not, or the fragments are many more than they need be."""
    fragments, _, rows = snapshot.fragments()
    merged = 2 * (rows // rows_per_fragment(snapshot) + 1)  # each at least half full
    return rows > 2 * snapshot.size or fragments > _MANY_FRAGMENTS + merged


def merge(snapshot: Snapshot) -> range:
    """Merge what is small. Needs the lock, and the newest snapshot.

    Each portion is one commit that replaces rows by themselves: interrupted, the table is whole, and what is left is merged
    the next time.

    Returns:
        The versions that were made, without the newest.
    """
    size, schema = rows_per_fragment(snapshot), snapshot.table.schema
    batch = max(1, _BATCH_BYTES // row_bytes(snapshot.manifest))
    listing = snapshot.scan(["reference_id"], "true")
    physical = snapshot.fragments()[2]
    moving = rows_to_move(listing["_rowid"].to_numpy(), _is_twin(listing["reference_id"]), size, physical)
    newest = snapshot.version
    with freed_at_once():
        for start in range(0, len(moving), size):
            newest = _move(_reopened(snapshot), moving[start : start + size].tolist(), schema, batch)
    return range(snapshot.version + 1, newest)


def _reopened(snapshot: Snapshot) -> Snapshot:
    """The table at its newest version. An open table caches the metadata of every version it has seen."""
    table = snapshot.backend.open_table(snapshot.name)
    return Snapshot(snapshot.backend, snapshot.name, table, snapshot.manifest)


def _move(snapshot: Snapshot, row_ids: list[int], schema: pa.Schema, batch: int) -> int:
    """Write rows anew, in one commit; the version it made."""
    (rows,) = snapshot.take(row_ids, schema.names, portion=len(row_ids))
    batches = rows.select(schema.names).cast(schema).to_batches(max_chunksize=batch)
    del rows
    data = pa.RecordBatchReader.from_batches(schema, (batches.pop(0) for _ in range(len(batches))))
    with writing(snapshot.path):
        snapshot.table.merge_insert("reference_id").when_matched_update_all().execute(data)
    return int(snapshot.table.version)


def rows_to_move(row_ids: np.ndarray, fixed: np.ndarray, size: int, physical: int) -> np.ndarray:
    """Which rows are to be written into new fragments of ``size`` rows, in the order they lie in.

    Args:
        row_ids: uint64 ``[n]``, of all rows: number of the fragment times 2^32, and place in it.
        fixed: bool ``[n]``: rows that cannot be moved. Their fragments stay.
        size: rows of a full fragment.
        physical: how many rows all fragments have at least, with those that are deleted.

    Returns:
        uint64 ``[m]``; empty where fewer fragments, or less space, would not come of it.
    """
    if not len(row_ids):
        return row_ids
    row_ids, order = np.sort(row_ids), np.argsort(row_ids, kind="stable")
    _, starts, counts = np.unique(row_ids >> np.uint64(32), return_index=True, return_counts=True)
    ends = (row_ids[starts + counts - 1] & np.uint64(0xFFFFFFFF)).astype(np.int64) + 1
    # Rows deleted at a fragment's end leave no trace among the others; where they are many, any fragment may have them.
    is_holed = (ends - counts) > _MOST_DELETED * ends
    if physical - ends.sum() > _MOST_DELETED * physical:
        is_holed[:] = True
    is_small = 2 * counts <= size
    is_fixed = np.logical_or.reduceat(fixed[order], starts)
    chosen = (is_small | is_holed) & ~is_fixed
    if not is_holed[chosen].any() and -(-counts[chosen].sum() // size) >= chosen.sum():
        return row_ids[:0]
    return row_ids[np.repeat(chosen, counts)]


def _is_twin(reference_ids: pa.ChunkedArray) -> np.ndarray:
    """Which rows have an id that another row has: damage, which merging by id would make worse."""
    ids = reference_ids.combine_chunks()
    counts = pc.value_counts(ids)
    twins = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return np.asarray(pc.is_in(ids, value_set=twins))
