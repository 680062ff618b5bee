"""`FarView`: a view of a bank from which reading takes long, as from object storage.

What was read lies on this machine's disk from then on, bounded in bytes, as for banks that other machines serve. What will
probably be read next is fetched beside what the caller does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory3.bank.lookup import read_references, read_rows
from memory3.bank.record import MemoryRecord
from memory3.bank.remote.disk import DiskCache
from memory3.bank.remote.kept import Item, ItemShape, Kept
from memory3.bank.reports import Hit
from memory3.bank.snapshot import Snapshot
from memory3.bank.view import BankView
from memory3.bank.where import Where
from memory3.models.catalogue import cache_dir
from memory3.types import Memory, Reference

if TYPE_CHECKING:
    import torch

__all__ = ["Far", "FarView"]

#: For so many seconds a search waits for the guesses in front of it, which fetch most of what it will want.
_GUESS_SECONDS, _MOST_GUESSES = 5.0, 4


class Far:
    """What the views of one bank share: what is kept on disk, and a thread that guesses. Safe to share between threads."""

    def __init__(self, disk_bytes: int, folder: Path | None = None) -> None:
        """
        Args:
            disk_bytes: of the cache on disk, which all banks that lie elsewhere share; 0 keeps nothing there.
            folder: of that cache; by default ``remote`` in the cache folder.
        """
        self._disk = DiskCache(folder or cache_dir() / "remote", disk_bytes)
        self._kept: tuple[object, Kept] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._guesses: list[Future[Any]] = []

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
            kept = self._kept = snapshot.id, Kept(f"{snapshot.path}\0{version}", shape, self._disk)
        return kept[1]

    def beside(self, work: Callable[[], Any]) -> None:
        """Do something in the thread that guesses, unless much is waiting there. A guess is worth nothing if it fails."""
        self._guesses = [one for one in self._guesses if not one.done()]
        if len(self._guesses) < _MOST_GUESSES:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="memory3-ahead")
            self._guesses.append(self._thread.submit(work))

    def settle(self) -> None:
        """Wait for the guesses that are under way, though not long."""
        wait_for(self._guesses, _GUESS_SECONDS)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None


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
        self._far = far
        self._kept = far.kept(snapshot, self.version)

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """The ``k`` nearest references of each query, after the guesses that are under way.

        Args:
            queries, k, where: as of `BankView.search`.
        """
        self._far.settle()
        return super().search(queries, k, where)

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """The memories of references, in order, from RAM, from this machine's disk, or from the bank.

        Args:
            reference_ids: of this version.
            use_cache: without it neither RAM nor disk is asked.
            device: where keys and values are made; None: the CPU.
        """
        if use_cache:
            self._far.settle()
            return super().memories(reference_ids, use_cache=True, device=device)
        self._recalls.add(set(reference_ids))
        fetch, read = super()._records, self._reader.memories
        return self._reading(lambda: read(reference_ids, fetch, device=device, use_cache=False))

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order, from this machine's disk where they are there. Nothing counts as recalled."""
        found = {id_: item.reference for id_ in set(reference_ids) if (item := self._kept.item(id_, False)) is not None}
        missing = [id_ for id_ in dict.fromkeys(reference_ids) if id_ not in found]
        if missing:
            read = self._reading(lambda: read_references(self.snapshot, missing))
            self._kept.put(Item(reference, None) for reference in read.values())
            found |= read
        return [found[id_] for id_ in reference_ids]

    def ahead(self, queries: Sequence[str], k: int, where: Where | None = None) -> None:
        """Fetch what a search like this would find beside what this thread does: a guess of what will be read next.

        Args:
            queries, k, where: as in `search`.
        """

        def guess() -> None:
            hits = super(FarView, self).search(queries, k, where)
            names = dict.fromkeys(hit.reference_id for each in hits for hit in each)
            self._fetch([id_ for id_ in names if self._kept.item(id_, True) is None])

        self._far.beside(guess)

    def _records(self, reference_ids: list[str]) -> list[MemoryRecord]:
        items = {id_: self._kept.item(id_, True) for id_ in reference_ids}
        found = {id_: item.record for id_, item in items.items() if item is not None and item.record is not None}
        found |= self._fetch([id_ for id_ in reference_ids if id_ not in found])
        lazy = [id_ for id_ in reference_ids if id_ not in found]
        if lazy:
            found |= self._encode_lazy(self.snapshot, lazy)
        return [found[id_] for id_ in reference_ids]

    def _fetch(self, reference_ids: list[str]) -> dict[str, MemoryRecord]:
        """From the bank, to be kept here; those of lazy references are missing."""
        if not reference_ids:
            return {}
        rows = read_rows(self.snapshot, reference_ids)
        self._kept.put(Item(reference, record) for reference, record in rows.values())
        return {id_: record for id_, (_, record) in rows.items() if record is not None}
