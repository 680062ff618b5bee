"""Counts and sizes of a bank."""

from __future__ import annotations

from memory3.bank.format.rows import FIRST_ROWS
from memory3.bank.reports import BankInfo
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.tiers import TierStatistics

__all__ = ["bank_info"]


def bank_info(store: Store, snapshot: Snapshot, tiers: TierStatistics) -> BankInfo:
    """What `memory3 info` shows.

    Args:
        store: the bank on its backend.
        snapshot: the version that is described.
        tiers: of the memories read so far.
    """
    size = snapshot.size
    unindexed = snapshot.unindexed()
    on_disk = store.backend.total_bytes()
    return BankInfo(
        references=size,
        documents=len(snapshot.scan(["document_id"], FIRST_ROWS)),
        lazy=snapshot.lazy,
        bytes=on_disk,
        record_bytes=snapshot.record_bytes,
        bytes_per_reference=on_disk / max(size, 1),
        index="exact" if snapshot.is_resident else "ivf" if "embedding" in unindexed else "scan",
        unindexed=unindexed.get("embedding", 0 if snapshot.is_resident else size),
        fragments=snapshot.fragments()[0],
        version=snapshot.version,
        tiers=tiers,
    )
