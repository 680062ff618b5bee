"""Lance's indexes for banks that are too large to search in RAM, and their parameters."""

from __future__ import annotations

import math

from memory3.bank.faults import writing
from memory3.bank.snapshot import Snapshot

__all__ = ["ensure_indexes", "nprobes", "partitions"]


def ensure_indexes(snapshot: Snapshot, *, all_rows: bool = False) -> None:
    """Index what is not indexed, and anew what has grown by a quarter since, or at all with ``all_rows``.

    Rows that an index lacks are scanned till then.

    The vector index keeps whole embeddings (IVF_FLAT): they are small beside the memories, and cosines stay exact.

    Args:
        snapshot: the newest of the bank.
        all_rows: index every row, however few are new.
    """
    if snapshot.is_resident:
        return
    from lancedb.index import BTree, IvfFlat, LabelList

    wanted: dict[str, IvfFlat | BTree | LabelList] = {
        "embedding": IvfFlat(distance_type="cosine", num_partitions=partitions(snapshot.size)),
        "reference_id": BTree(),
        "document_id": BTree(),
        "tags": LabelList(),
    }
    unindexed = snapshot.unindexed()
    allowed = 0 if all_rows else snapshot.size // 5
    with writing(snapshot.path):
        for column, index in wanted.items():
            if unindexed.get(column, snapshot.size) > allowed:
                snapshot.table.create_index(column, config=index, replace=True)


def partitions(rows: int) -> int:
    """Cells of the vector index: as many as rows in a cell."""
    return max(1, math.isqrt(rows))


def nprobes(rows: int) -> int:
    """Cells searched. In 100,000 vectors a quarter of the cells held 97% of the true nearest five, found in 10 ms."""
    return max(32, min(partitions(rows) // 3, 128))
