"""Writing in steps: a plan of a bank's newest version, the commit of its shards, and which are still wanted. By the holder of
the lock, except for `plan_write`.
"""

from __future__ import annotations

from collections.abc import Iterable

from memory3.bank.protocol import MemoryWriter
from memory3.bank.reports import WriteReport
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.write.commit import Committer
from memory3.bank.write.deliver import Delivery, pending
from memory3.bank.write.options import WriteOptions
from memory3.bank.write.plan import WritePlan
from memory3.bank.write.prepare import prepare
from memory3.bank.write.shard import EncodedShard
from memory3.errors import BankChanged
from memory3.types import Document

__all__ = ["commit_shards", "plan_write", "wanted_shards"]


def plan_write(
    store: Store,
    m3: MemoryWriter,
    documents: Iterable[Document],
    options: WriteOptions,
    *,
    shard_references: int,
    wait_seconds: float,
) -> WritePlan:
    """What writing would do. Holds the lock while the table is read, and not while documents are.

    Args:
        store: the bank.
        m3: cuts documents into references; its model is not run.
        documents: in any order; read once.
        options: how they are to be written.
        shard_references: references of a shard, about.
        wait_seconds: how long to wait for another writer.
    """
    with store.lock(wait_seconds):
        now = store.snapshot()
        committer = Committer(store, now.name, now.table)
    return prepare(now, committer, m3, documents, options, shard_references)


def commit_shards(store: Store, plan: WritePlan, encoded: Iterable[EncodedShard]) -> WriteReport:
    """Put encoded shards of a plan into the bank, and say what this did.

    Args:
        store: the bank.
        plan: made for it.
        encoded: some or all, in any order.

    Raises:
        BankChanged: the bank was rebuilt, or a document was changed by others since the plan was made.
    """
    now = _planned(store, plan)
    delivery = Delivery(plan, Committer(store, now.name, now.table), now.codec)
    for shard in encoded:
        delivery.take(shard)
    return delivery.finish()


def wanted_shards(store: Store, plan: WritePlan) -> list[int]:
    """Numbers of the plan's shards that are not in the bank yet.

    Args:
        store: the bank.
        plan: made for it.

    Raises:
        BankChanged: the bank was rebuilt since.
    """
    now = _planned(store, plan)
    return pending(plan, Committer(store, now.name, now.table))


def _planned(store: Store, plan: WritePlan) -> Snapshot:
    """The newest version, of the table that the plan was made for."""
    now = store.snapshot()
    if now.id.table_id != plan.table_id:
        raise BankChanged(
            f"{store.path}: the plan was made for another bank, or this one was rebuilt or purged since: plan again"
        )
    return now
