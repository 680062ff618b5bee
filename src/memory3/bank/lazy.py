"""Lazy encoding: a lazy reference is text alone, and its memory is made when it is recalled.

The memory is stored for the next reader, if the retention policy wants it and nobody else is writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from memory3.bank.faults import writing
from memory3.bank.format.rows import LIVE, TEXT_COLUMNS, are_damaged, with_checksums
from memory3.bank.lookup import read_records, read_references
from memory3.bank.protocol import MemoryWriter
from memory3.bank.record import MemoryRecord
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.where import is_in
from memory3.errors import BankError
from memory3.types import Reference

__all__ = ["drop_memories", "encode_lazy", "lazy_among"]

#: Rows that are rewritten at once.
_AT_ONCE = 500


def encode_lazy(
    store: Store,
    snapshot: Snapshot,
    m3: MemoryWriter,
    reference_ids: Sequence[str],
    chosen: Callable[[Iterable[str]], list[str]],
) -> tuple[dict[str, MemoryRecord], int]:
    """Records of references that are lazy in ``snapshot``: read if someone has stored them since, else encoded.

    A memory is that of the tokens that ``snapshot`` has, by the model whose table it is. Others may have replaced either
    since. Those ``chosen`` are stored.

    Args:
        store: where they are stored.
        snapshot: in which they are lazy.
        m3: encodes them.
        reference_ids: of lazy references.
        chosen: of those encoded, the ids to store.

    Returns:
        The records, stored or not, so that an answer does not depend on who asked first; and how many were stored.
    """
    wanted = read_references(snapshot, reference_ids)
    found = _stored_since(store.snapshot(), snapshot, wanted)
    references = [reference for id_, reference in wanted.items() if id_ not in found]
    references.sort(key=lambda reference: len(reference.token_ids))
    packed: dict[str, bytes] = {}
    for start in range(0, len(references), m3.batch_size):
        some = references[start : start + m3.batch_size]
        records = snapshot.codec.encode_many(m3.encode(some), device=m3.token_vectors.device)
        packed.update(zip((reference.id for reference in some), records, strict=True))
    stored = _store(store, snapshot, {id_: packed[id_] for id_ in chosen(packed)})
    codec = snapshot.manifest.codec
    return found | {id_: MemoryRecord.of(wanted[id_], data, codec, stored=False) for id_, data in packed.items()}, stored


def drop_memories(store: Store, snapshot: Snapshot, reference_ids: Sequence[str]) -> None:
    """Make references lazy again: texts and embeddings stay. Needs the lock, and the newest snapshot.

    Args:
        store: the bank; its lock is held.
        snapshot: the newest.
        reference_ids: whose memories go.
    """
    for start in range(0, len(reference_ids), _AT_ONCE):
        condition = f"{LIVE} AND {is_in('reference_id', reference_ids[start : start + _AT_ONCE])}"
        rows = snapshot.scan(TEXT_COLUMNS, condition)
        sound = [not damaged for damaged in are_damaged(rows)]  # a new checksum would hide what is not
        _fill(store, snapshot, rows.filter(pa.array(sound, pa.bool_())), [None] * sum(sound))


def lazy_among(snapshot: Snapshot, reference_ids: Sequence[str]) -> list[str]:
    """Those of the ids whose memory is not stored, in order.

    Args:
        snapshot: the bank as it is.
        reference_ids: which.
    """
    found: set[str] = set()
    for start in range(0, len(reference_ids), _AT_ONCE):
        found.update(_lazy_texts(snapshot, reference_ids[start : start + _AT_ONCE])["reference_id"].to_pylist())
    return [id_ for id_ in reference_ids if id_ in found]


def _stored_since(newest: Snapshot, snapshot: Snapshot, wanted: Mapping[str, Reference]) -> dict[str, MemoryRecord]:
    """Records that ``newest`` has of references that are lazy in ``snapshot``; only where table and tokens are the same."""
    if newest.id.table_id != snapshot.id.table_id or newest.id == snapshot.id:
        return {}
    records = read_records(newest, list(newest.row_ids(list(wanted))))
    return {id_: record for id_, record in records.items() if record.token_ids == wanted[id_].token_ids}


def _store(store: Store, snapshot: Snapshot, records: dict[str, bytes]) -> int:
    """Store records whose rows are still as in ``snapshot``.

    Where another process writes, or writing fails, nothing is stored and the next reader encodes again.
    """
    if not records:
        return 0
    try:
        with store.lock():
            newest = store.snapshot()
            if newest.id.table_id != snapshot.id.table_id:
                return 0  # rebuilt or replaced since: a bank of other memories
            before, now = (_lazy_texts(version, list(records)) for version in (snapshot, newest))
            rows = now.filter(pc.is_in(now["checksum"], before["checksum"]))
            if len(rows):
                _fill(store, newest, rows, [records[id_] for id_ in rows["reference_id"].to_pylist()])
            return len(rows)
    except BankError:
        return 0


def _fill(store: Store, snapshot: Snapshot, rows: pa.Table, records: Sequence[bytes | None]) -> None:
    """Give rows these records, in one commit."""
    schema = snapshot.table.schema
    columns = {name: rows[name].combine_chunks() for name in TEXT_COLUMNS}
    columns["codes"] = pa.array(records, schema.field("codes").type)
    checksums = [None if record is None else xxh3_64_intdigest(record) for record in records]
    columns["codes_checksum"] = pa.array(checksums, pa.uint64())
    batch = with_checksums(columns, schema)
    with writing(store.path):
        snapshot.table.merge_insert("reference_id").when_matched_update_all().execute(batch)


def _lazy_texts(snapshot: Snapshot, reference_ids: Sequence[str]) -> pa.Table:
    condition = f"{LIVE} AND codes_checksum IS NULL AND {is_in('reference_id', reference_ids)}"
    return snapshot.scan(TEXT_COLUMNS, condition)
