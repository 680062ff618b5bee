"""`BankView`: a bank as it was at one moment: of one version, whatever others write meanwhile.

The tiers are shared by all views of a bank and keyed by version, so that no memory is served for a text it was not made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from memory3.bank.ahead import Ahead
from memory3.bank.copies import search_distinct
from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.tags import Scalar, untagged
from memory3.bank.format.versions import version_text
from memory3.bank.lookup import read_records, read_references
from memory3.bank.reader import MemoryReader
from memory3.bank.recalls import RecallLog
from memory3.bank.record import MemoryRecord
from memory3.bank.reports import Hit
from memory3.bank.snapshot import Snapshot
from memory3.bank.tiers import Tiers
from memory3.bank.where import Where
from memory3.codec import Codec
from memory3.errors import BankChanged, BankCorrupt
from memory3.types import Memory, Reference

if TYPE_CHECKING:
    import torch

__all__ = ["BankView"]

T = TypeVar("T")


class BankView:
    """One version of a bank to search and to read from. Made by `Bank.pin`; safe to share between threads.

    Every method raises `BankChanged` once the version's files are gone: ten minutes after another took its place at the
    earliest, or at once by a purge.

    Attributes:
        snapshot: the version.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        embed: Callable[[Sequence[str]], np.ndarray],
        encode_lazy: Callable[[Snapshot, Sequence[str]], dict[str, MemoryRecord]],
        tiers: Tiers,
        recalls: RecallLog,
        guesses: Ahead,
    ) -> None:
        """Called by `Bank`.

        Args:
            snapshot: the version.
            embed: vectors ``[q, dimension]`` of texts.
            encode_lazy: records of references that have none in a version.
            tiers: shared by all views of the bank.
            recalls: where reading is counted.
            guesses: the thread that fetches ahead, shared, too.
        """
        self.snapshot = snapshot
        self._embed = embed
        self._encode_lazy = encode_lazy
        self._tiers = tiers
        self._guesses = guesses
        name = str(snapshot.path)
        self._reader = MemoryReader(snapshot.manifest, lambda: snapshot.codec, tiers, snapshot.id, name)
        self._recalls = recalls

    @property
    def manifest(self) -> BankManifest:
        """What this version says about itself."""
        return self.snapshot.manifest

    @property
    def version(self) -> str:
        """32 hex digits, equal only where every row is equal."""
        return version_text(self.snapshot.id)

    @property
    def codec(self) -> Codec:
        """What reads the records of this version."""
        return self._reader.codec

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """The ``k`` nearest references of each query, best first, in the version of the bank that this view holds.

        Args:
            queries: texts.
            k: hits per query at most.
            where: metadata that references must have; None: any.

        Raises:
            BankError: the bank cannot be read; BankCorrupt where its files are damaged.
        """
        if k <= 0 or not len(self) or not queries:
            return [[] for _ in queries]
        vectors = self._embed(queries)
        return self._reading(lambda: search_distinct(self.snapshot, vectors, k, where))

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """The memories of references, in order; lazy ones are encoded. Each counts as recalled.

        Args:
            reference_ids: of this version.
            use_cache: keep what is read, and take from device and RAM what is there.
            device: where keys and values are made; None: the CPU.

        Raises:
            BankCorrupt: a row is damaged.
        """
        self._recalls.add(set(reference_ids))
        read, fetch = self._reader.memories, self._fetch if use_cache else self._records
        return self._reading(lambda: read(reference_ids, fetch, device=device, use_cache=use_cache))

    def records(self, reference_ids: Sequence[str]) -> list[MemoryRecord]:
        """The packed memories of references, in order; lazy ones are encoded. Each counts as recalled."""
        self._recalls.add(set(reference_ids))
        return self._reading(lambda: self._reader.records(reference_ids, self._fetch))

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order. Nothing counts as recalled."""
        found = self._reading(lambda: read_references(self.snapshot, list(dict.fromkeys(reference_ids))))
        return [found[id_] for id_ in reference_ids]

    def count(self, where: Where | None = None) -> int:
        """How many references have the metadata ``where``; all without it."""
        return self._reading(lambda: self.snapshot.count(where))

    def metadata(self) -> dict[str, list[Scalar]]:
        """Every metadata key of this version with its values."""
        return untagged(self._reading(self.snapshot.tags))

    def __len__(self) -> int:
        return self._reading(lambda: self.snapshot.size)

    def prefetch(self, reference_ids: Sequence[str]) -> None:
        """Fetch packed memories into RAM beside what this thread does, as long as nobody waits for the bank. Returns at once.
        Nothing counts as recalled, and lazy references stay so.

        Args:
            reference_ids: of this version, the likeliest first; those that are in RAM cost nothing.
        """
        missing = [id_ for id_ in reference_ids if not self._tiers.has(self.snapshot.id, id_)]
        self._guesses.names(missing, self.snapshot.record_bytes, self._bring)

    def _bring(self, reference_ids: list[str]) -> None:
        """Into RAM."""
        records = read_records(self.snapshot, reference_ids)
        for record in records.values():
            self._tiers.keep_packed(self.snapshot.id, record)
        self._tiers.count(ahead=len(records))

    def _fetch(self, reference_ids: list[str]) -> list[MemoryRecord]:
        """What is neither on the device nor in RAM."""
        with self._guesses.request():
            self._tiers.count(bank=len(reference_ids))
            return self._records(reference_ids)

    def _records(self, reference_ids: list[str]) -> list[MemoryRecord]:
        """From the bank."""
        found = read_records(self.snapshot, reference_ids)
        lazy = [id_ for id_ in reference_ids if id_ not in found]
        if lazy:
            found |= self._encode_lazy(self.snapshot, lazy)
        return [found[id_] for id_ in reference_ids]

    def _reading(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except BankCorrupt as error:
            if not self.snapshot.is_removed():
                raise
            raise BankChanged(
                f"{self.snapshot.path}: version {self.snapshot.version} of {self.snapshot.name} was replaced and then removed "
                "while it was read: ask again, and the bank's newest version is read"
            ) from error
