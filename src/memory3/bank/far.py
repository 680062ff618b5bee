"""`FarView`: a view of a bank from which reading takes long, as from object storage.

What was read lies on this machine's disk from then on, bounded in bytes, as for banks that other machines serve. What will
probably be read next is fetched beside what the caller does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memory3.bank.disk import DiskCache
from memory3.bank.lookup import read_references, read_rows
from memory3.bank.record import MemoryRecord
from memory3.bank.remote.kept import Item, ItemShape, Kept
from memory3.bank.reports import Hit
from memory3.bank.snapshot import Snapshot
from memory3.bank.tiers import Tiers
from memory3.bank.view import BankView
from memory3.bank.where import Where
from memory3.types import Memory, Reference

if TYPE_CHECKING:
    import torch

__all__ = ["Far", "FarView"]


class Far:
    """What the views of one bank share: what is kept on disk. Safe to share between threads."""

    def __init__(self, tiers: Tiers, disk: DiskCache) -> None:
        """
        Args:
            tiers: of the bank.
            disk: of them, which all banks that lie elsewhere share.
        """
        self._tiers = tiers
        self._disk = disk
        self._kept: tuple[object, Kept] | None = None

    def kept(self, snapshot: Snapshot, version: str) -> Kept:
        """What is here of a version. Of another version nothing counts: each write makes one.

        Args:
            snapshot: the version.
            version: the same as text.
        """
        kept = self._kept
        if kept is None or kept[0] != snapshot.id:
            manifest, vectors = snapshot.manifest, snapshot.token_vectors
            vocabulary = len(vectors) if vectors is not None else 1 << 31
            shape = ItemShape(manifest.codec, manifest.record_bytes, manifest.config.reference_length, vocabulary)
            place = f"{snapshot.path}\0{version}"
            kept = self._kept = snapshot.id, Kept(place, snapshot.id, shape, self._tiers, self._disk)
        return kept[1]


class FarView(BankView):
    """Reads from this machine's disk what was read before, and fetches ahead. Safe to share between threads."""

    def __init__(self, snapshot: Snapshot, *, far: Far, **rest: Any) -> None:
        """Called by `Bank`.

        Args:
            snapshot: the version.
            far: shared by all views of the bank.
            rest: of `BankView`.
        """
        super().__init__(snapshot, **rest)
        self._kept = far.kept(snapshot, self.version)

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """The ``k`` nearest references of each query, after the guesses that are under way.

        Args:
            queries, k, where: as of `BankView.search`.
        """
        self._guesses.settle()
        with self._guesses.request():
            return super().search(queries, k, where)

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """The memories of references, in order, from device or RAM, from this machine's disk, or from the bank.

        Args:
            reference_ids: of this version.
            use_cache: without it nothing but the bank is asked.
            device: where keys and values are made; None: the CPU.
        """
        if use_cache:
            self._guesses.settle()
        return super().memories(reference_ids, use_cache=use_cache, device=device)

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order, from this machine's disk where they are there. Nothing counts as recalled."""
        found = {id_: reference for id_ in set(reference_ids) if (reference := self._kept.text(id_)) is not None}
        missing = [id_ for id_ in dict.fromkeys(reference_ids) if id_ not in found]
        if missing:
            read = self._reading(lambda: read_references(self.snapshot, missing))
            self._kept.put(Item(reference, None) for reference in read.values())
            found |= read
        return [found[id_] for id_ in reference_ids]

    def ahead(self, queries: Sequence[str], k: int, where: Where | None = None) -> None:
        """Fetch what a search like this would find beside what this thread does: a guess of what will be read next. Behind
        that, as long as nobody waits, as many that rank below.

        Args:
            queries, k, where: as in `search`.
        """

        def guess() -> None:
            hits = super(FarView, self).search(queries, 2 * k, where)
            names = dict.fromkeys(hit.reference_id for each in hits for hit in each[:k])
            self._bring([id_ for id_ in names if not self._tiers.has(self.snapshot.id, id_)])
            self.prefetch([hit.reference_id for each in hits for hit in each[k:]])

        self._guesses.beside(guess)

    def _bring(self, reference_ids: list[str]) -> None:
        found = self._kept.stored(reference_ids, counted=False)
        found |= self._read([id_ for id_ in reference_ids if id_ not in found])
        self._tiers.count(ahead=len(found))

    def _fetch(self, reference_ids: list[str]) -> list[MemoryRecord]:
        with self._guesses.request():
            found = self._kept.stored(reference_ids)
            missing = [id_ for id_ in reference_ids if id_ not in found]
            self._tiers.count(bank=len(missing))
            found |= self._read(missing)
            lazy = [id_ for id_ in reference_ids if id_ not in found]
            if lazy:
                found |= self._encode_lazy(self.snapshot, lazy)
            return [found[id_] for id_ in reference_ids]

    def _read(self, reference_ids: list[str]) -> dict[str, MemoryRecord]:
        """From the bank, to be kept here; those of lazy references are missing."""
        if not reference_ids:
            return {}
        rows = read_rows(self.snapshot, reference_ids)
        self._kept.put(Item(reference, record) for reference, record in rows.values())
        return {id_: record for id_, (_, record) in rows.items() if record is not None}
