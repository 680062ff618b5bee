"""`Bank`: documents as memories on disk. The facade over the folder, the writer, the retriever and the cache."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from types import TracebackType
from typing import TypeVar

from memory3.bank.backends.base import Backend
from memory3.bank.cache import MemoryCache
from memory3.bank.codebooks import new_codec
from memory3.bank.cold import warm_up
from memory3.bank.embedder import Embedder, TextEmbedder
from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.rows import FIRST_ROWS
from memory3.bank.info import bank_info
from memory3.bank.keeping import Keeping, read_policy, save_policy
from memory3.bank.rebuild import rebuild
from memory3.bank.recalls import RecallLog
from memory3.bank.reports import BankInfo, DocumentEntry, Hit, VerifyReport, WriteProgress, WriteReport
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.upkeep import compact, tidy
from memory3.bank.upkeep import purge as purge_bank
from memory3.bank.verify import verify
from memory3.bank.view import BankView
from memory3.bank.where import Scalar, Where
from memory3.bank.writer import MemoryWriter
from memory3.bank.writing import Writing, delete_documents, present
from memory3.codec import Codebook
from memory3.errors import BankChanged, BankCorrupt, ConfigError, SourceConflict
from memory3.models.catalogue import DEFAULT_EMBEDDER
from memory3.policy import WritePolicy
from memory3.sources import Unread
from memory3.types import Document, Memory, Reference

__all__ = ["Bank"]

T = TypeVar("T")
Progress = Callable[[WriteProgress], None]


class Bank:
    """Memories of documents, written by one model with one set of settings. Made by `Bank.open`.

    Reading is safe from several threads and processes, also while one of them writes; readers see what was there when they
    opened the bank or last called `refresh`. Between two calls another thread may refresh: ids found by one and read by the next
    belong together only in a view, which `pin` gives.
    """

    def __init__(
        self, store: Store, snapshot: Snapshot, m3: MemoryWriter | None, embedder: TextEmbedder | None, cache_bytes: int
    ) -> None:
        self._store = store
        self._snapshot = snapshot
        self._refresh_lock = Lock()
        self._m3 = m3
        self._embedder = embedder
        self._embedder_lock = Lock()
        self.cache = MemoryCache(cache_bytes)
        self._recalls = RecallLog(store.backend, store.lock)
        weakref.finalize(self, self._recalls.flush)  # a bank that nobody closes has been recalled from, too
        self._keeping = Keeping(store, read_policy(store), snapshot.record_bytes, self._recalls)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Backend,
        m3: MemoryWriter | None,
        *,
        embedder: str | TextEmbedder | None = None,
        cache_bytes: int = 1 << 30,
        create: bool = True,
        write: WritePolicy | str | None = None,
        code_book: Codebook | None = None,
    ) -> Bank:
        """Open the bank at ``path``, or make an empty one.

        Args:
            path: a folder, or another `memory3.bank.backends.base.Backend`.
            m3: the model that writes and reads. Another than the bank's raises FingerprintMismatch. None: the bank can be
                searched, listed, checked, compacted and deleted from, but not written, and memories that are cold or whose codec predicts cannot be read.
            embedder: name or object; by default the bank's own, for a new bank the catalogue's default.
            cache_bytes: RAM for memories read recently; 0 switches the cache off.
            create: whether a missing bank is made; otherwise it raises BankNotFound.
            write: what becomes of new documents, remembered by the bank. ``"now"``: they are encoded when written. ``"auto"``: they are
                kept as text, and memories are stored when recalled; `memory3.policy.WritePolicy` says at which recall, and within what disk
                budget. None: as the bank remembers; ``"now"`` for a new one.
            code_book: for a new bank whose codec needs one; by default what `memory3 calibrate` keeps in the cache folder. A bank that exists
                has its own, and keeps its codec whatever ``m3.config`` says: `rebuild` changes it.
        """
        store = Store(path, None if m3 is None else m3.token_vectors)
        given = None if isinstance(embedder, str) else embedder
        name = embedder if isinstance(embedder, str) else given.name if given else None
        if create and m3 is not None and not store.exists():
            given = given or Embedder.load(name or DEFAULT_EMBEDDER)
            codec, book = new_codec(m3, code_book)
            store.create(BankManifest.of(m3, given.name, given.dimension, codec, book), book)
        snapshot = store.snapshot()
        if m3 is not None:
            snapshot.manifest.require(m3)
        if name is not None:
            snapshot.manifest.require_embedder(name, given.dimension if given else None)
        if write is not None and read_policy(store) != (policy := WritePolicy.of(write)):
            save_policy(store, policy)
        return cls(store, snapshot, m3, given, cache_bytes)

    @staticmethod
    def describe(path: str | os.PathLike[str] | Backend) -> BankManifest:
        """What the bank at ``path`` says about itself. Needs no model."""
        snapshot = Store(path).snapshot()
        documents = len(snapshot.scan(["document_id"], FIRST_ROWS))
        return dataclasses.replace(snapshot.manifest, references=snapshot.size, documents=documents)

    @staticmethod
    def rebuild(
        path: str | os.PathLike[str] | Backend,
        m3: MemoryWriter,
        *,
        embedder: str | TextEmbedder | None = None,
        progress: Progress | None = None,
        wait_seconds: float = 0.0,
        code_book: Codebook | None = None,
    ) -> WriteReport:
        """Encode the bank's documents anew, from the texts it holds, for another model, other settings, another codec or embedder.

        The bank can be read with the old model until the end, when the new memories take its place at once; banks that are
        open go on with the old ones until they refresh. Interrupted, it goes on where it stopped when called again.
        """
        store = Store(path, m3.token_vectors)
        embedder = embedder or store.snapshot().manifest.embedder
        chosen = Embedder.load(embedder) if isinstance(embedder, str) else embedder
        with store.lock(wait_seconds):
            return rebuild(store, m3, chosen, progress, code_book, cold=read_policy(store).write == "auto")

    @property
    def manifest(self) -> BankManifest:
        """What the bank says about itself."""
        return self._snapshot.manifest

    @property
    def embedder(self) -> TextEmbedder:
        """The sentence embedder, loaded at first use."""
        with self._embedder_lock:
            if self._embedder is None:
                embedder = Embedder.load(self.manifest.embedder)
                self.manifest.require_embedder(embedder.name, embedder.dimension)
                self._embedder = embedder
            return self._embedder

    @property
    def policy(self) -> WritePolicy:
        """What becomes of new documents and of cold ones that are recalled."""
        return self._keeping.policy

    # ---- writing ---------------------------------------------------------------------------------------------------------

    def write(
        self,
        documents: Iterable[Document],
        *,
        prune: bool = False,
        replace: bool = False,
        unread: Unread | None = None,
        within: str | None = None,
        cold: bool | None = None,
        progress: Progress | None = None,
        wait_seconds: float = 0.0,
    ) -> WriteReport:
        """Write documents that are new or changed; unchanged ones cost nothing.

        Interrupted at any moment, the bank stays whole, and writing the same documents again goes on where it stopped.

        Args:
            documents: read one by one, so they need not fit into RAM.
            prune: remove the documents of the bank that are not among these. Without any document, or with a conflict, nothing is removed.
            replace: whether a document takes the place of one that the bank has under its id from another source. Without it such
                documents are not written, all others are, and SourceConflict is raised at the end.
            unread: what could not be read, which pruning spares. By default that of ``documents``, if they are of `read_documents`.
            within: pruning removes only documents whose id begins so. By default the prefix of `read_documents`.
            cold: store text and embedding only; memories are encoded when first read. None: as the bank's policy says.
            progress: called after each document and each encoded batch.
            wait_seconds: how long to wait for another writer before raising BankBusy.
        """
        m3 = self._model("write")
        embedder = self.embedder
        with self._store.lock(wait_seconds):
            self.refresh()
            now = self._store.snapshot()
            cold = self.policy.write == "auto" if cold is None else cold
            writing = Writing(self._store, now.name, now.table, m3, embedder, cold=cold, progress=progress)
            unread = getattr(documents, "unread", None) if unread is None else unread
            within = getattr(documents, "prefix", "") if within is None else within
            report = writing.run(documents, prune=prune, replace=replace, unread=unread, within=within)
            if report.written or report.removed:
                tidy(self._store)
        self.refresh()
        if report.conflicts:
            some = "; ".join(f"{each.id!r} came from {each.stored}, now from {each.given}" for each in report.conflicts[:3])
            raise SourceConflict(
                f"{len(report.conflicts)} not written: under the same id the bank has a document from another source: {some}. To keep both, put a "
                "prefix before these ids (--prefix NAME/); to replace, give --replace. All else was written, nothing was pruned",
                report,
            )
        return report

    def delete(self, document_ids: str | Iterable[str], *, purge: bool = False, wait_seconds: float = 0.0) -> int:
        """Remove documents. Returns how many of them were there.

        They can no longer be found or read, but their bytes stay in old files until the bank is compacted some time later.

        Args:
            document_ids: one or several; none are needed to purge.
            purge: leave no byte of what was deleted or replaced, now or before: the bank is written anew without it, for which it needs as much
                space once more. Banks that others have open must `refresh` before they read again.
            wait_seconds: how long to wait for another writer before raising BankBusy.
        """
        wanted = {document_ids} if isinstance(document_ids, str) else set(document_ids)
        with self._store.lock(wait_seconds):
            self.refresh()
            table = self._store.snapshot().table
            there = present(self._store, table, sorted(wanted))
            if there:
                delete_documents(self._store, table, there)
            if purge:
                purge_bank(self._store)
                self.refresh()
                self._forget()
            elif there:
                tidy(self._store)
        self.refresh()
        return len(there)

    def compact(self, *, wait_seconds: float = 0.0) -> None:
        """Merge what many commits wrote, give back the space of what was removed, renew the indexes.

        Writes anew only what lies in small pieces or among deleted rows, 64 MB at a time. It needs as much free space as these have until it is done,
        and for some minutes more where readers may still use the old.
        """
        with self._store.lock(wait_seconds):
            compact(self._store)
            self._forget()
        self.refresh()

    def _forget(self) -> None:
        """Leave out of the recalls what is no longer in the bank. Needs the lock."""
        held = {entry.id for entry in self.documents()}
        self._recalls.flush()
        self._recalls.sum_up(lambda reference_id: reference_id.rpartition("#")[0] in held)

    # ---- reading ---------------------------------------------------------------------------------------------------------

    def pin(self) -> BankView:
        """The bank as it is open now, to search and read from: ids, memories and texts of one version, also while others write.

        If the files of that version are gone, since others wrote and tidied up, the bank is refreshed first.
        """
        if self._snapshot.is_removed():
            self.refresh()
        return self._view()

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """For each query the ``k`` most similar references, best first; fewer if the bank, or what ``where`` leaves, has fewer.

        Of references with one and the same text the best is found alone.

        Args:
            queries: texts, embedded in one batch.
            k: how many.
            where: metadata that references must have: ``{"book": "anatomy", "year": [2019, 2020]}``, a list meaning any of.
        """
        return self._reading(lambda view: view.search(queries, k, where))

    def memories(self, reference_ids: Sequence[str], *, use_cache: bool = True) -> list[Memory]:
        """The memories of references, in order: from the cache, else from disk, else (cold) encoded now, and stored if the policy says so."""
        return self._reading(lambda view: view.memories(reference_ids, use_cache=use_cache))

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order."""
        return self._reading(lambda view: view.references(reference_ids))

    def count(self, where: Where | None = None) -> int:
        """How many references match."""
        return self._reading(lambda view: view.count(where))

    def metadata(self) -> dict[str, list[Scalar]]:
        """What documents can be filtered by: every key, and its values."""
        return self._reading(lambda view: view.metadata())

    def documents(self) -> Iterator[DocumentEntry]:
        """All documents, in no promised order."""
        columns = ["document_id", "source", "document_references", "content_hash"]
        rows = self._reading(lambda view: view.snapshot.scan(columns, FIRST_ROWS))
        for values in zip(*(rows[name].to_pylist() for name in columns), strict=True):
            yield DocumentEntry(*values)

    def recalls(self) -> dict[str, int]:
        """How often references of each document were recalled, by all that read this bank, as far as they have told; 0 for those never."""
        counts = {entry.id: 0 for entry in self.documents()}
        for reference_id, count in self._recalls.counts().items():
            document_id = reference_id.rpartition("#")[0]
            if document_id in counts:
                counts[document_id] += count
        return counts

    def verify(self) -> VerifyReport:
        """Read every row and check it: checksums, record lengths, completeness of documents."""
        self.refresh()
        return verify(self._snapshot)

    def info(self) -> BankInfo:
        """Counts, sizes, state of the index and of the cache."""
        statistics = self.cache.statistics()
        return self._reading(lambda view: bank_info(self._store, view.snapshot, statistics))

    def refresh(self) -> None:
        """See what was written since the bank was opened. The memories kept in RAM are dropped if anything was."""
        with self._refresh_lock:
            newest = self._store.snapshot()
            if newest.id != self._snapshot.id:
                if self._m3 is not None:
                    newest.manifest.require(self._m3)
                self._snapshot = newest
                self.cache.clear()

    def close(self) -> None:
        """Give back the RAM, write down the recalls. The bank must not be used after that."""
        self._recalls.flush()
        self._keeping.give_back()
        self.cache.clear()

    def __len__(self) -> int:
        return self._reading(len)

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _view(self) -> BankView:
        return BankView(
            self._snapshot,
            embed=lambda texts: self.embedder.encode(texts),
            encode_cold=self._encode_cold,
            cache=self.cache,
            recalls=self._recalls,
        )

    def _reading(self, read: Callable[[BankView], T]) -> T:
        """``read`` from the version that is open. If its files are gone, since others wrote and tidied up, from the newest."""
        view = self._view()
        try:
            return read(view)
        except (BankCorrupt, BankChanged):
            self.refresh()
            if self._snapshot is view.snapshot:
                raise
            return read(self._view())

    def _encode_cold(self, snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, Memory]:
        m3 = self._model("encode cold memories of")
        made, stored = warm_up(self._store, snapshot, m3, reference_ids, self._keeping.chosen)
        self._keeping.make_room(snapshot.id.table_id, stored)
        return made

    def _model(self, task: str) -> MemoryWriter:
        if self._m3 is None:
            raise ConfigError(f"to {task} this bank a model is needed: open it with Bank.open({self._store.path!r}, m3)")
        return self._m3
