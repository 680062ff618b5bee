"""Cold rows: references without a memory yet. Encoded when first read, and stored for the next reader if the lock is free."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from memory3.bank.faults import writing
from memory3.bank.lookup import read_memories, read_references
from memory3.bank.rows import LIVE, TEXT_COLUMNS, with_checksums
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.where import is_in
from memory3.bank.writer import MemoryWriter
from memory3.errors import BankError
from memory3.values import Memory

__all__ = ["warm_up"]


def warm_up(store: Store, snapshot: Snapshot, m3: MemoryWriter, reference_ids: Sequence[str]) -> dict[str, Memory]:
    """Memories of rows that are cold in ``snapshot``: read if someone has stored them since, else encoded and stored."""
    newest = store.snapshot()
    known = newest.row_ids(reference_ids)
    found = read_memories(newest, [id_ for id_ in reference_ids if id_ in known])
    references = list(read_references(snapshot, [id_ for id_ in reference_ids if id_ not in found]).values())
    references.sort(key=lambda reference: len(reference.token_ids))
    made: dict[str, Memory] = {}
    for start in range(0, len(references), m3.batch_size):
        some = references[start : start + m3.batch_size]
        made.update(zip((reference.id for reference in some), m3.encode(some), strict=True))
    _store(store, snapshot, {id_: snapshot.codec.encode(memory) for id_, memory in made.items()})
    return found | made


def _store(store: Store, snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Fill in records, unless the bank is being written or cannot be: then the next reader encodes them again."""
    if not records:
        return
    try:
        with store.lock():
            newest = store.snapshot()
            before, now = (_cold_texts(version, list(records)) for version in (snapshot, newest))
            rows = now.filter(pc.is_in(now["checksum"], before["checksum"]))
            if not len(rows):
                return
            filled = [records[id_] for id_ in rows["reference_id"].to_pylist()]
            columns = {name: rows[name].combine_chunks() for name in TEXT_COLUMNS}
            columns["codes"] = pa.array(filled, newest.table.schema.field("codes").type)
            columns["codes_checksum"] = pa.array([xxh3_64_intdigest(record) for record in filled], pa.uint64())
            batch = with_checksums(columns, newest.table.schema)
            with writing(store.path):
                newest.table.merge_insert("reference_id").when_matched_update_all().execute(batch)
    except BankError:
        return


def _cold_texts(snapshot: Snapshot, reference_ids: Sequence[str]) -> pa.Table:
    condition = f"{LIVE} AND codes_checksum IS NULL AND {is_in('reference_id', reference_ids)}"
    return snapshot.scan(TEXT_COLUMNS, condition)
