"""Which memories a bank retains: its policy, kept in ``policy.json``, applied to references as they are recalled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from memory3.bank.faults import disk_fault, writing
from memory3.bank.format.rows import LIVE
from memory3.bank.lazy import drop_memories
from memory3.bank.recalls import RecallLog
from memory3.bank.store import Store
from memory3.bank.upkeep import tidy
from memory3.errors import BankCorrupt, BankError, ConfigError
from memory3.files import UnsafeFile, parse_json
from memory3.retention import Retention, RetentionPolicy

__all__ = ["BankRetention", "read_policy", "save_policy"]

FILE = "policy.json"


def read_policy(store: Store) -> RetentionPolicy:
    """The bank's policy; one that never had one writes at once."""
    path = store.backend.address(FILE)
    try:
        return RetentionPolicy(**parse_json(store.backend.read(FILE)))
    except (FileNotFoundError, NotADirectoryError):
        return RetentionPolicy()
    except (UnsafeFile, ValueError, TypeError, ConfigError) as error:
        raise BankCorrupt(
            f"{path} is no write policy ({error}): remove it, and open the bank with the policy wanted"
        ) from error
    except OSError as error:
        raise disk_fault(store.path, error) from error


def save_policy(store: Store, policy: RetentionPolicy) -> None:
    """Remember a policy; in force for whoever opens the bank from now on.

    Args:
        store: the bank.
        policy: what to keep, as `memory3 write --auto` sets it.
    """
    with writing(store.path):
        store.backend.write(FILE, json.dumps(dataclasses.asdict(policy)) + "\n")


class BankRetention:
    """A policy at work in one process.

    Attributes:
        policy: see `memory3.retention`.
        dropped: memories that this process dropped; their space is given back by compaction.
    """

    def __init__(self, store: Store, policy: RetentionPolicy, record_bytes: int, recalls: RecallLog) -> None:
        self.policy = policy
        self.dropped = 0
        self._store = store
        self._retention = Retention(policy, record_bytes)
        self._recalls = recalls
        #: Memories there were after this process first stored one, then what it added and dropped.
        #: What others store is seen at the next dropping.
        self._held: int | None = None

    def chosen(self, reference_ids: Iterable[str]) -> list[str]:
        """Those of the lazy references recalled now whose memory is to be stored."""
        if self.policy.after == 1 and self._retention.capacity is None:
            return list(reference_ids)
        counts = self._recalls.counts
        return [id_ for id_ in reference_ids if self._retention.wants(id_, counts)]

    def make_room(self, table_id: str, stored: int) -> None:
        """After so many memories were stored in a table: drop those wanted least, if they exceed the budget.

        Where somebody else is writing, nothing is dropped: the next one that stores a memory tries again.

        Args:
            table_id: of the table they were stored in; another one in force since: nothing is dropped.
            stored: how many.
        """
        capacity = self._retention.capacity
        if capacity is None or not stored:
            return
        if self._held is None:
            snapshot = self._store.snapshot()
            self._held = snapshot.size - snapshot.lazy
        else:
            self._held += stored
        if self._held <= capacity:
            return
        try:
            with self._store.lock():
                newest = self._store.snapshot()
                if newest.id.table_id != table_id:
                    return  # rebuilt or replaced since: the memories there are not ours to drop
                stored_ids = newest.scan(["reference_id"], f"{LIVE} AND codes_checksum IS NOT NULL")[
                    "reference_id"
                ].to_pylist()
                surplus = self._retention.surplus(stored_ids, self._recalls.counts)
                drop_memories(self._store, newest, surplus)
                self._held = len(stored_ids) - len(surplus)
                self.dropped += len(surplus)
        except BankError:
            return  # the next one that stores a memory tries again

    def give_back(self) -> None:
        """The space of what was dropped, where it is so much that compaction is due and nobody else is writing."""
        if self.dropped:
            try:
                with self._store.lock():
                    tidy(self._store)
            except BankError:
                return  # the next write does it
