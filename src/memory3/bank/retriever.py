"""Vector search: exact in RAM while the bank is small, Lance's IVF index above, and the exact twin to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from memory3.bank.faults import reading
from memory3.bank.format.rows import LIVE
from memory3.bank.indexes import nprobes
from memory3.bank.reports import Hit
from memory3.bank.snapshot import Snapshot
from memory3.bank.where import Where, where_sql

__all__ = ["search", "search_exactly", "search_table"]


def search(snapshot: Snapshot, vectors: np.ndarray, k: int, where: Where | None = None) -> list[list[Hit]]:
    """The ``k`` references nearest by cosine to each of ``vectors`` ``[q, dimension]``, best first.

    Args:
        snapshot: of the bank.
        vectors: float32 ``[q, dimension]``, of length 1.
        k: hits per query at most.
        where: metadata that references must have; None: any.

    Returns:
        for each query its hits, best first.
    """
    k = min(k, snapshot.size)
    if k <= 0 or len(vectors) == 0:
        return [[] for _ in vectors]
    if snapshot.is_resident:
        return search_exactly(snapshot, vectors, k, where)
    return search_table(snapshot, vectors, k, where)


def search_exactly(snapshot: Snapshot, vectors: np.ndarray, k: int, where: Where | None = None) -> list[list[Hit]]:
    """The nearest references by the cosine with every row, in RAM. Equal scores: the row stored first.

    Args:
        snapshot: of the bank.
        vectors: float32 ``[q, dimension]``, of length 1.
        k: hits per query at most.
        where: metadata that references must have; None: any.
    """
    resident = snapshot.resident
    places = np.arange(len(resident.reference_ids))
    if where:
        places = np.flatnonzero(resident.matching(where))
    k = min(k, len(places))
    if k <= 0:
        return [[] for _ in vectors]
    embeddings = resident.embeddings[places] if where else resident.embeddings
    hits = []
    for vector in vectors:
        # One by one: the last bits of a product of all depend on how many there are, and then a request would read something
        # else beside others than alone where two references are as near.
        row = embeddings @ vector
        # All that equal the last one: which of them a partition leaves inside is its own affair. What is no number
        # sorts behind all numbers, and is left over for when there are fewer than k of these.
        below = -row
        best = np.flatnonzero(~(below > np.partition(below, k - 1)[k - 1]))
        best = best[np.lexsort((best, below[best]))][:k]
        hits.append(
            [
                Hit(resident.reference_ids[p], resident.document_ids[p], float(s))
                for p, s in zip(places[best], row[best], strict=True)
            ]
        )
    return hits


def search_table(snapshot: Snapshot, vectors: np.ndarray, k: int, where: Where | None = None) -> list[list[Hit]]:
    """By Lance: through the index where there is one, rows that it does not cover yet by scanning.

    Args:
        snapshot: of the bank.
        vectors: float32 ``[q, dimension]``, of length 1.
        k: hits per query at most.
        where: metadata that references must have; None: any.
    """
    from lancedb.query import LanceVectorQueryBuilder

    condition = f"{LIVE} AND {where_sql(where)}" if where else LIVE
    with reading(snapshot.path):
        query = snapshot.table.search(list(vectors), "embedding")
        assert isinstance(query, LanceVectorQueryBuilder)
        query = query.distance_type("cosine").where(condition, prefilter=True).limit(k)
        query = query.minimum_nprobes(nprobes(snapshot.size)).maximum_nprobes(0)  # more only while fewer than k are found
        rows = query.select(["reference_id", "document_id", "_distance"]).to_arrow()
    return _grouped(rows, len(vectors))


def _grouped(rows: pa.Table, queries: int) -> list[list[Hit]]:
    hits: list[list[Hit]] = [[] for _ in range(queries)]
    numbers: Sequence[int] = rows["query_index"].to_pylist() if "query_index" in rows.column_names else [0] * len(rows)
    columns = (rows[name].to_pylist() for name in ("reference_id", "document_id", "_distance"))
    for number, reference_id, document_id, distance in zip(numbers, *columns, strict=True):
        hits[number].append(Hit(reference_id, document_id, 1.0 - distance))
    for found in hits:
        found.sort(key=lambda hit: -hit.score)
    return hits
