"""What a document that is written anew keeps: the embedding and the memory of every reference whose tokens are as they were.

So metadata that changed, or text that was added at the end, cost no encoding of the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from memory3.bank.faults import reading
from memory3.bank.format.rows import (
    LIVE,
    TEXT_COLUMNS,
    BankRow,
    are_damaged,
    codes_of,
    embeddings_of,
    references_of,
    row_batch,
)
from memory3.bank.where import is_in
from memory3.types import Reference

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["Kept", "completed", "kept_rows"]


class Kept(NamedTuple):
    """Embedding ``[dimension]`` and record of a row; no record where it is lazy."""

    embedding: np.ndarray
    record: bytes | memoryview | None


def kept_rows(path: str, table: Table, references: Collection[Reference], *, lazy: bool) -> dict[str, Kept]:
    """By reference id, what the table has for the same tokens and text, undamaged.

    Rows without a memory only where that is wanted (``lazy``).

    Args:
        path: of the bank, for messages.
        table: where to look.
        references: as they are wanted.
        lazy: whether rows without a memory will do.
    """
    wanted = {r.id: r for r in references}
    if not wanted:
        return {}
    with reading(path):
        query = table.search().where(f"{LIVE} AND {is_in('reference_id', wanted)}").select([*TEXT_COLUMNS, "codes"])
        rows = query.limit(None).to_arrow()
    rows = rows.filter(pa.array([not damaged for damaged in are_damaged(rows)], pa.bool_())).combine_chunks()
    kept = {}
    for stored, embedding, record in zip(references_of(rows), embeddings_of(rows), codes_of(rows), strict=True):
        made = wanted[stored.id]
        if (stored.token_ids, stored.text) == (made.token_ids, made.text) and (lazy or record is not None):
            kept[stored.id] = Kept(embedding, None if record is None else bytes(record))
    return kept


def completed(rows: Sequence[BankRow], encoded: pa.RecordBatch, kept: Mapping[str, Kept], schema: pa.Schema) -> pa.RecordBatch:
    """All ``rows`` in their order: those that were ``encoded``, in the same order, and those that are ``kept``.

    Args:
        rows: all of a document or group.
        encoded: rows that were made anew, as an Arrow batch.
        kept: embeddings and records by reference id.
        schema: what `row_schema` gave.
    """
    if not kept:
        return encoded
    table = pa.Table.from_batches([encoded])
    new = zip(embeddings_of(table), codes_of(table), strict=True)
    made = [kept[row.reference.id] if row.reference.id in kept else Kept(*next(new)) for row in rows]
    records = [None if each.record is None else bytes(each.record) for each in made]
    return row_batch(rows, np.stack([each.embedding for each in made]), records, schema)
