"""`Bank`: documents as memories on disk. The facade over the folder, the writer, the retriever and the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from types import TracebackType

from xxhash import xxh3_64_intdigest

from memory3.bank.cache import MemoryCache
from memory3.bank.embedder import Embedder, TextEmbedder
from memory3.bank.manifest import BankManifest
from memory3.bank.reports import DocumentEntry, Hit, WriteProgress, WriteReport
from memory3.bank.retriever import search
from memory3.bank.rows import TEXT_COLUMNS, checksums, codes_of, references_of
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.where import Where
from memory3.bank.writer import MemoryWriter
from memory3.bank.writing import Writing, delete_documents
from memory3.codec.raw import decode_record, record_size
from memory3.errors import BankCorrupt, BankNotFound, ConfigError, InputError
from memory3.model.catalogue import DEFAULT_EMBEDDER
from memory3.values import Document, Memory, Reference

__all__ = ["Bank"]


class Bank:
    """Memories of documents, written by one model with one set of settings. Made by `Bank.open`.

    Reading is safe from several threads and processes, also while one of them writes; readers see what was there when they
    opened the bank or last called `refresh`.
    """

    def __init__(
        self, store: Store, snapshot: Snapshot, m3: MemoryWriter, embedder: TextEmbedder | None, cache_bytes: int
    ) -> None:
        self._store = store
        self._snapshot = snapshot
        self._m3 = m3
        self._embedder = embedder
        self._embedder_lock = Lock()
        self.cache = MemoryCache(cache_bytes)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        m3: MemoryWriter,
        *,
        embedder: str | TextEmbedder | None = None,
        cache_bytes: int = 1 << 30,
        create: bool = True,
    ) -> Bank:
        """Open the bank at ``path``, or make an empty one.

        Args:
            path: a folder.
            m3: the model that writes and reads. Another than the bank's raises FingerprintMismatch.
            embedder: name or object; by default the bank's own, for a new bank the catalogue's default.
            cache_bytes: RAM for memories read recently; 0 switches the cache off.
            create: whether a missing bank is made; otherwise it raises BankNotFound.
        """
        store = Store(path)
        given = None if isinstance(embedder, str) else embedder
        name = embedder if isinstance(embedder, str) else given.name if given else None
        if create and not store.exists():
            given = given or Embedder.load(name or DEFAULT_EMBEDDER)
            with store.lock(wait_seconds=30.0):
                if not store.exists():
                    _refuse_foreign(store)
                    store.create(BankManifest.of(m3, given.name, given.dimension))
        snapshot = _open_snapshot(store)
        snapshot.manifest.require(m3)
        _require_embedder(snapshot.manifest, name, given)
        return cls(store, snapshot, m3, given, cache_bytes)

    @staticmethod
    def describe(path: str | os.PathLike[str]) -> BankManifest:
        """What the bank at ``path`` says about itself. Needs no model."""
        import dataclasses

        snapshot = _open_snapshot(Store(path))
        documents = snapshot.scan(["document_id"], "ordinal = 0 AND document_references > 0")
        return dataclasses.replace(snapshot.manifest, references=snapshot.size, documents=len(documents))

    @property
    def manifest(self) -> BankManifest:
        """What the bank says about itself."""
        return self._snapshot.manifest

    @property
    def embedder(self) -> TextEmbedder:
        """The sentence embedder, loaded at first use."""
        with self._embedder_lock:
            if self._embedder is None:
                self._embedder = Embedder.load(self.manifest.embedder)
                _require_embedder(self.manifest, None, self._embedder)
            return self._embedder

    def write(
        self,
        documents: Iterable[Document],
        *,
        prune: bool = False,
        cold: bool = False,
        progress: Callable[[WriteProgress], None] | None = None,
        wait_seconds: float = 0.0,
    ) -> WriteReport:
        """Write documents that are new or changed; unchanged ones cost nothing.

        Interrupted at any moment, the bank stays whole, and writing the same documents again goes on where it stopped.

        Args:
            documents: read one by one, so they need not fit into RAM.
            prune: remove the documents of the bank that are not among these.
            cold: store text and embedding only; memories are encoded when first read.
            progress: called after each document and each encoded batch.
            wait_seconds: how long to wait for another writer before raising BankBusy.
        """
        with self._store.lock(wait_seconds):
            snapshot = _open_snapshot(self._store)
            snapshot.manifest.require(self._m3)
            writing = Writing(
                self._store, snapshot.name, snapshot.table, self._m3, self.embedder, cold=cold, progress=progress
            )
            report = writing.run(documents, prune=prune)
        self.refresh()
        return report

    def delete(self, document_ids: Iterable[str], *, wait_seconds: float = 0.0) -> int:
        """Remove documents. Returns how many of them were there."""
        wanted = set([document_ids] if isinstance(document_ids, str) else document_ids)
        with self._store.lock(wait_seconds):
            self.refresh()
            there = sorted(wanted & {entry.id for entry in self.documents()})
            delete_documents(self._store, _open_snapshot(self._store).table, there)
        self.refresh()
        return len(there)

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """For each query the ``k`` most similar references, best first; fewer if the bank, or what ``where`` leaves, has fewer.

        Args:
            queries: texts, embedded in one batch.
            k: how many.
            where: metadata that references must have: ``{"book": "anatomy", "year": [2019, 2020]}``, a list meaning any of.
        """
        snapshot = self._snapshot
        if k <= 0 or snapshot.size == 0 or not queries:
            return [[] for _ in queries]
        return search(snapshot, self.embedder.encode(queries), k, where)

    def memories(self, reference_ids: Sequence[str], *, use_cache: bool = True) -> list[Memory]:
        """The memories of references, in order: from the cache, else from disk, else (cold) encoded now and stored."""
        found: dict[str, Memory] = {}
        for id_ in dict.fromkeys(reference_ids):
            memory = self.cache.get(id_) if use_cache else None
            if memory is not None:
                found[id_] = memory
        missing = [id_ for id_ in dict.fromkeys(reference_ids) if id_ not in found]
        for id_, memory in self._read(missing):
            found[id_] = memory
            if use_cache:
                self.cache.put(id_, memory, record_size(self.manifest.shape))
        return [found[id_] for id_ in reference_ids]

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order."""
        snapshot = self._snapshot
        row_ids = _row_ids(snapshot, dict.fromkeys(reference_ids))
        found: dict[str, Reference] = {}
        for rows in snapshot.take(list(row_ids.values()), TEXT_COLUMNS):
            wrong = [
                id_
                for id_, said, computed in zip(
                    rows["reference_id"].to_pylist(), rows["checksum"].to_pylist(), checksums(rows), strict=True
                )
                if said != computed
            ]
            if wrong:
                raise _corrupt(self._store, wrong)
            found.update((reference.id, reference) for reference in references_of(rows))
        return [found[id_] for id_ in reference_ids]

    def count(self, where: Where | None = None) -> int:
        """How many references match."""
        return self._snapshot.count(where)

    def documents(self) -> Iterator[DocumentEntry]:
        """All documents, in no promised order."""
        columns = ["document_id", "source", "document_references", "content_hash"]
        rows = self._snapshot.scan(columns, "ordinal = 0 AND document_references > 0")
        for values in zip(*(rows[name].to_pylist() for name in columns), strict=True):
            yield DocumentEntry(*values)

    def refresh(self) -> None:
        """See what was written since the bank was opened."""
        snapshot = _open_snapshot(self._store)
        snapshot.manifest.require(self._m3)
        if (snapshot.name, snapshot.version) != (self._snapshot.name, self._snapshot.version):
            self._snapshot = snapshot
            self.cache.clear()

    def close(self) -> None:
        """Release the cache."""
        self.cache.clear()

    def __len__(self) -> int:
        return self._snapshot.size

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _read(self, reference_ids: Sequence[str]) -> Iterator[tuple[str, Memory]]:
        snapshot = self._snapshot
        row_ids = _row_ids(snapshot, reference_ids)
        cold: list[str] = []
        for rows in snapshot.take(list(row_ids.values()), ["reference_id", "codes", "codes_checksum"]):
            ids, said = rows["reference_id"].to_pylist(), rows["codes_checksum"].to_pylist()
            for id_, record, checksum in zip(ids, codes_of(rows), said, strict=True):
                if record is None:
                    cold.append(id_)
                elif xxh3_64_intdigest(record) != checksum:
                    raise _corrupt(self._store, [id_])
                else:
                    yield id_, decode_record(bytearray(record), snapshot.manifest.shape)
        if cold:
            references = self.references(cold)
            for start in range(0, len(cold), self._m3.batch_size):
                part = references[start : start + self._m3.batch_size]
                for reference, memory in zip(part, self._m3.encode(part), strict=True):
                    yield reference.id, memory


def _open_snapshot(store: Store) -> Snapshot:
    name = store.current()
    return Snapshot(store.path, name, *store.open(name))


def _row_ids(snapshot: Snapshot, reference_ids: Iterable[str]) -> dict[str, int]:
    wanted = list(reference_ids)
    found = snapshot.row_ids(wanted)
    unknown = [id_ for id_ in wanted if id_ not in found]
    if unknown:
        raise InputError(
            f"{snapshot.path}: the bank has no reference {unknown[0]!r}{f' nor {len(unknown) - 1} others' if unknown[1:] else ''}"
        )
    return found


def _corrupt(store: Store, reference_ids: Sequence[str]) -> BankCorrupt:
    return BankCorrupt(
        f"{store.path}: the row of reference {reference_ids[0]!r} is damaged (wrong checksum). Find all with "
        f"`memory3 verify --bank {store.path}`; delete its document and write it again",
        reference_ids,
    )


def _refuse_foreign(store: Store) -> None:
    """A new bank goes into a new or empty folder, or one where making a bank was interrupted."""
    if store.tables() and any(table.count_rows() for table in map(store.find_table, store.tables()) if table is not None):
        store.current()  # raises: rows lie there that nothing names
    foreign = [
        entry.name for entry in store.path.iterdir() if not entry.name.startswith(("references-", "writer.lock", "CURRENT"))
    ]
    if foreign:
        raise BankNotFound(
            f"{store.path} is no bank but holds other files ({sorted(foreign)[0]!r}): give a new or an empty folder"
        )


def _require_embedder(manifest: BankManifest, name: str | None, embedder: TextEmbedder | None) -> None:
    if name is not None and name != manifest.embedder:
        raise ConfigError(
            f"this bank's embeddings are by {manifest.embedder!r}, not {name!r}: leave the embedder out, or write a new bank"
        )
    if embedder is not None and embedder.dimension != manifest.dimension:
        raise ConfigError(
            f"the embedder {embedder.name!r} gives {embedder.dimension} numbers, this bank's embeddings have {manifest.dimension}"
        )
