"""Cold rows: references without a memory. Encoded when read, and stored for the next reader if they are wanted and the lock is free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from memory3.bank.faults import writing
from memory3.bank.format.rows import LIVE, TEXT_COLUMNS, are_damaged, with_checksums
from memory3.bank.lookup import read_references, read_rows
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.where import is_in
from memory3.bank.writer import MemoryWriter
from memory3.errors import BankError
from memory3.types import Memory, Reference

__all__ = ["cool_down", "warm_up"]

#: Rows that are rewritten at once.
_AT_ONCE = 500


def warm_up(
    store: Store,
    snapshot: Snapshot,
    m3: MemoryWriter,
    reference_ids: Sequence[str],
    chosen: Callable[[Iterable[str]], list[str]],
) -> tuple[dict[str, Memory], int]:
    """Memories of rows that are cold in ``snapshot``: read if someone has stored them since, else encoded; those ``chosen`` are stored.

    A memory is that of the tokens that ``snapshot`` has, by the model whose table it is: others may have replaced either since.

    Returns:
        The memories as the codec gives them back, stored or not, so that an answer does not depend on who asked first; and how many were stored.
    """
    wanted = read_references(snapshot, reference_ids)
    found = _stored_since(store.snapshot(), snapshot, wanted)
    references = [reference for id_, reference in wanted.items() if id_ not in found]
    references.sort(key=lambda reference: len(reference.token_ids))
    made: dict[str, Memory] = {}
    for start in range(0, len(references), m3.batch_size):
        some = references[start : start + m3.batch_size]
        made.update(zip((reference.id for reference in some), m3.encode(some), strict=True))
    records = {id_: snapshot.codec.encode(memory) for id_, memory in made.items()}
    stored = _store(store, snapshot, {id_: records[id_] for id_ in chosen(made)})
    return found | dict(zip(records, snapshot.codec.decode([bytearray(r) for r in records.values()]), strict=True)), stored


def cool_down(store: Store, snapshot: Snapshot, reference_ids: Sequence[str]) -> None:
    """Make rows cold again: their memories are gone, texts and embeddings stay. Needs the lock, and the newest snapshot."""
    for start in range(0, len(reference_ids), _AT_ONCE):
        condition = f"{LIVE} AND {is_in('reference_id', reference_ids[start : start + _AT_ONCE])}"
        rows = snapshot.scan(TEXT_COLUMNS, condition)
        rows = rows.filter(
            pa.array([not damaged for damaged in are_damaged(rows)], pa.bool_())
        )  # a new checksum would hide it
        _fill(store, snapshot, rows, [None] * len(rows))


def _stored_since(newest: Snapshot, snapshot: Snapshot, wanted: Mapping[str, Reference]) -> dict[str, Memory]:
    """Memories that ``newest`` has of references that are cold in ``snapshot``; only where table and tokens are the same."""
    if newest.id.table_id != snapshot.id.table_id or newest.id == snapshot.id:
        return {}
    rows = read_rows(newest, list(newest.row_ids(list(wanted))))
    return {
        id_: memory
        for id_, (reference, memory) in rows.items()
        if memory is not None and reference.token_ids == wanted[id_].token_ids
    }


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
            before, now = (_cold_texts(version, list(records)) for version in (snapshot, newest))
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


def _cold_texts(snapshot: Snapshot, reference_ids: Sequence[str]) -> pa.Table:
    condition = f"{LIVE} AND codes_checksum IS NULL AND {is_in('reference_id', reference_ids)}"
    return snapshot.scan(TEXT_COLUMNS, condition)
