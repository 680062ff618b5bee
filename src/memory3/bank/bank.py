"""`Bank`: documents as memories on disk. The facade over the folder, the writer, the retriever and the cache."""

from __future__ import annotations

import dataclasses
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from memory3.bank.address import is_address
from memory3.bank.ahead import Ahead
from memory3.bank.backends.base import Backend
from memory3.bank.cache import MemoryCache
from memory3.bank.codebooks import new_codec
from memory3.bank.disk import DiskCache
from memory3.bank.embedder import Embedder, Embedders, TextEmbedder
from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.rows import FIRST_ROWS
from memory3.bank.format.tags import Scalar
from memory3.bank.info import bank_info
from memory3.bank.lazy import encode_lazy, lazy_among
from memory3.bank.protocol import MemoryWriter
from memory3.bank.rebuild import rebuild
from memory3.bank.recalls import RecallLog
from memory3.bank.record import MemoryRecord
from memory3.bank.reports import BankInfo, DocumentEntry, Hit, VerifyReport, WriteProgress, WriteReport
from memory3.bank.retention import BankRetention, read_policy, save_policy
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.tiers import TierBytes, Tiers
from memory3.bank.trust import Advice, advice
from memory3.bank.upkeep import compact, tidy
from memory3.bank.upkeep import purge as purge_bank
from memory3.bank.verify import verify
from memory3.bank.view import BankView
from memory3.bank.where import Where
from memory3.bank.write.conflicts import check_conflicts
from memory3.bank.write.elsewhere import ShardPool
from memory3.bank.write.options import WriteOptions
from memory3.bank.write.plan import WritePlan
from memory3.bank.write.planned import commit_shards, plan_write, wanted_shards
from memory3.bank.write.removal import delete_documents, present
from memory3.bank.write.run import WriteRun
from memory3.bank.write.shard import EncodedShard
from memory3.codec import Codebook
from memory3.errors import BankBusy, BankChanged, BankCorrupt, ConfigError, Memory3Error
from memory3.models.catalogue import DEFAULT_EMBEDDER, cache_dir
from memory3.retention import RetentionPolicy
from memory3.sources import Unread
from memory3.types import Document, Memory, Reference

if TYPE_CHECKING:
    import torch

    from memory3.bank.far import Far

__all__ = ["Bank"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
#: Lazy references that are encoded and stored at once.
_AT_ONCE = 256
Progress = Callable[[WriteProgress], None]


class Bank:
    """Memories of documents, written by one model with one set of settings. Made by `Bank.open`.

    Reading is safe from several threads and processes, also while one of them writes; readers see what was there when they
    opened the bank or last called `refresh`. Between two calls another thread may refresh: ids found by one and read by the
    next belong together only in a view, which `pin` gives.

    Attributes:
        tiers: the cache of memories that were read: device, RAM and disk.
    """

    def __init__(
        self, store: Store, snapshot: Snapshot, m3: MemoryWriter | None, embedder: TextEmbedder | None, bounds: TierBytes
    ) -> None:
        self._store = store
        self._snapshot = snapshot
        self._refresh_lock = Lock()
        self._m3 = m3
        self._embedders = Embedders(embedder)
        # Within a folder reading is as quick as from a cache on the same disk; all banks that lie elsewhere share one.
        disk = DiskCache(cache_dir() / "remote", bounds.disk) if store.backend.disk_bytes else None
        self.tiers = Tiers(bounds, disk)
        self._guesses = Ahead()
        self._recalls = RecallLog(store.backend, store.lock)
        weakref.finalize(self, self._recalls.flush)  # a bank that nobody closes has been recalled from, too
        self._retention = BankRetention(store, read_policy(store), snapshot.record_bytes, self._recalls)
        self._far: Far | None = None
        if disk is not None:
            from memory3.bank.far import Far  # and the library for HTTP

            self._far = Far(self.tiers, disk)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Backend,
        m3: MemoryWriter | None,
        *,
        embedder: str | TextEmbedder | None = None,
        device_bytes: int | None = None,
        cache_bytes: int = 1 << 30,
        disk_bytes: int | None = None,
        create: bool = True,
        write: RetentionPolicy | str | None = None,
        code_book: Codebook | None = None,
    ) -> Bank:
        """Open the bank at ``path``, or make an empty one.

        Args:
            path: a folder; ``"s3://bucket/bank"``, ``gs://`` or ``az://``, a bank on object storage
                (`memory3.bank.backends.object_store.ObjectBackend` has its options); or another
                `memory3.bank.backends.base.Backend`; or ``"http://host:port/banks/name"``, a bank that `memory3 serve` serves
                there, which is read only (`memory3.bank.remote.RemoteBank.open` has its options).
            m3: the model that writes and reads. Another than the bank's raises FingerprintMismatch. None: the bank can be
                searched, listed, checked, compacted and deleted from, but not written, and lazy references, and memories of
                a codec that predicts, cannot be read.
            embedder: name or object; by default the bank's own, for a new bank the catalogue's default.
            device_bytes: of the device that reads, for memories read recently; None: 1 GiB on a GPU, 0 on a CPU.
            cache_bytes: RAM for the same; 0 switches it off.
            disk_bytes: of this machine's disk, for a bank that lies elsewhere; None: as its `Backend` says, 4 GiB.
            create: whether a missing bank is made; otherwise it raises BankNotFound.
            write: what becomes of new documents, remembered by the bank. ``"now"``: they are encoded when written.
                ``"auto"``: they are kept as text, and memories are stored when recalled;
                `memory3.retention.RetentionPolicy` says at which recall, and within what disk budget. None: as the bank
                remembers; ``"now"`` for a new one.
            code_book: for a new bank whose codec needs one; by default what `memory3 calibrate` keeps in the cache folder.
                A bank that exists has its own, and keeps its codec whatever ``m3.config`` says: `rebuild` changes it.
        """
        if is_address(path):
            from memory3.bank.remote import RemoteBank  # and the library for HTTP

            elsewhere = TierBytes.disk if disk_bytes is None else disk_bytes
            opened = RemoteBank.open(path, m3, device_bytes=device_bytes, cache_bytes=cache_bytes, disk_bytes=elsewhere)
            return cast(Bank, opened)  # all that reading needs
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
        if write is not None and read_policy(store) != (policy := RetentionPolicy.of(write)):
            save_policy(store, policy)
        on_disk = store.backend.disk_bytes
        bounds = TierBytes.of(m3, device_bytes, cache_bytes, on_disk if disk_bytes is None or not on_disk else disk_bytes)
        return cls(store, snapshot, m3, given, bounds)

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
        """Encode the bank's documents anew, from the texts it holds: for another model, settings, codec or embedder.

        The bank can be read with the old model until the end, when the new memories take its place at once; banks that are
        open go on with the old ones until they refresh. Interrupted, it goes on where it stopped when called again.

        Args:
            path: the bank's folder or `Backend`.
            m3: encodes the memories: a `Memory3` with the new model or settings.
            embedder: name or object; None keeps the bank's own.
            progress: called with a `WriteProgress` now and then.
            wait_seconds: how long to wait for another writer; 0 fails at once.
            code_book: for the codec of the settings; None takes the calibrated or shipped one.

        Raises:
            BankNotFound: there is no bank.
            BankBusy: another process is writing.
            ConfigError: the codec needs a codebook and there is none.
        """
        store = Store(path, m3.token_vectors)
        embedder = embedder or store.snapshot().manifest.embedder
        chosen = Embedder.load(embedder) if isinstance(embedder, str) else embedder
        with store.lock(wait_seconds):
            return rebuild(store, m3, chosen, progress, code_book, lazy=read_policy(store).write == "auto")

    @property
    def manifest(self) -> BankManifest:
        """What the bank says about itself."""
        return self._snapshot.manifest

    @property
    def embedder(self) -> TextEmbedder:
        """The sentence embedder of the version that is open, loaded at first use."""
        return self._embedders.of(self.manifest)

    @property
    def cache(self) -> MemoryCache:
        """RAM's tier, by its name in earlier releases."""
        return self.tiers.ram

    @property
    def policy(self) -> RetentionPolicy:
        """What becomes of new documents and of lazy references that are recalled."""
        return self._retention.policy

    # ---- writing ---------------------------------------------------------------------------------------------------------

    def write(
        self,
        documents: Iterable[Document],
        *,
        prune: bool = False,
        replace: bool = False,
        unread: Unread | None = None,
        prune_prefix: str | None = None,
        lazy: bool | None = None,
        progress: Progress | None = None,
        wait_seconds: float = 0.0,
        pool: ShardPool | None = None,
        within: str | None = None,
        cold: bool | None = None,
    ) -> WriteReport:
        """Write documents that are new or changed; unchanged ones cost nothing.

        Interrupted at any moment, the bank stays whole, and writing the same documents again goes on where it stopped. A model
        whose memories were never checked, or were found wanting, is named once in the log (`advice`).

        Args:
            documents: read one by one, so they need not fit into RAM.
            prune: remove the documents of the bank that are not among these. Without any document, or with a conflict,
                nothing is removed.
            replace: whether a document takes the place of one that the bank has under its id from another source. Without
                it such documents are not written, all others are, and SourceConflict is raised at the end.
            unread: what could not be read, which pruning spares. By default that of ``documents``, if they are of
                `read_documents`.
            prune_prefix: pruning removes only documents whose id begins so. By default the prefix of `read_documents`.
            lazy: store text and embedding only; memories are encoded when first read. None: as the bank's policy says.
            progress: called after each document and each encoded batch.
            wait_seconds: how long to wait for another writer before raising BankBusy.
            pool: other processes or machines that encode, such as `memory3.cluster.process.local_pool` gives. None: this
                process does.
            within, cold: ``prune_prefix`` and ``lazy`` by their names in earlier releases.
        """
        m3 = self._model("write")
        _ = self.embedder  # loaded before others have to wait for the lock
        lazy = cold if lazy is None else lazy
        with self._changing(wait_seconds):
            self.refresh()
            now = self._store.snapshot()
            if (said := advice(m3, now.manifest, self._store.path)) is not None:
                _log.warning("%s", said.text)
            embedder = self._embedders.of(now.manifest)
            lazy = self.policy.write == "auto" if lazy is None else lazy
            prefix = within if prune_prefix is None else prune_prefix
            options = WriteOptions.of(documents, lazy=lazy, prune=prune, replace=replace, unread=unread, prune_prefix=prefix)
            run = WriteRun(self._store, now.name, now.table, m3, embedder, options, progress=progress, pool=pool)
            report = run.run(documents)
            if report.written or report.removed:
                tidy(self._store)
        check_conflicts(report)
        return report

    def encode(
        self,
        reference_ids: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
        wait_seconds: float = 0.0,
    ) -> int:
        """Make and store the memories of lazy references now, whatever the policy says. No recall is counted.

        Interrupted, what was stored stays, and the same call goes on. References that have a memory cost nothing.

        Args:
            reference_ids: which.
            progress: told how many are done, of how many.
            wait_seconds: how long to wait for another writer before the first and after the last is stored.

        Returns:
            How many were stored.

        Raises:
            BankBusy: another process is writing, or began to.
        """
        m3 = self._model("encode references of")
        with self._store.lock(wait_seconds):
            wanted = lazy_among(self._store.snapshot(), reference_ids)
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            encode_lazy(self._store, self._store.snapshot(), m3, some, list)
            if left := lazy_among(self._store.snapshot(), some):
                raise BankBusy(
                    f"{self._store.path}: {len(left)} memories were not stored, since another process is writing or the disk "
                    "cannot be written to: see to it, then run the same again to go on"
                )
            if progress is not None:
                progress(start + len(some), len(wanted))
        with self._changing(wait_seconds):
            tidy(self._store)
        return len(wanted)

    def advice(self) -> Advice | None:
        """What `memory3 check` found of these memories, or that it was never asked; said once (`memory3.bank.trust`)."""
        return advice(self._model("say what was checked of it"), self.manifest, self._store.path)

    def plan(
        self,
        documents: Iterable[Document],
        *,
        shard_references: int = 256,
        prune: bool = False,
        replace: bool = False,
        unread: Unread | None = None,
        prune_prefix: str | None = None,
        lazy: bool | None = None,
        wait_seconds: float = 0.0,
    ) -> WritePlan:
        """What `write` would do, as plain data, to be encoded on several machines. Changes nothing in the bank.

        Each of ``plan.shards`` goes to `memory3.bank.encode_shard`, in any process with the same model; `commit` takes what
        comes back::

            plan = bank.plan(read_documents("docs/"))
            encoded = [encode_shard(m3, shard, embedder=bank.embedder, code_book=plan.code_book) for shard in plan.shards]
            bank.commit(plan, encoded)

        Args:
            documents: as for `write`; texts and tokens of those to write are held in RAM.
            shard_references: references of a shard, about: a document stays whole while one commit can hold it.
            prune, replace, unread, prune_prefix, lazy, wait_seconds: as for `write`. Conflicts are named in the plan and
                left out.
        """
        m3 = self._model("plan a write of")
        lazy = self.policy.write == "auto" if lazy is None else lazy
        options = WriteOptions.of(documents, lazy=lazy, prune=prune, replace=replace, unread=unread, prune_prefix=prune_prefix)
        return plan_write(self._store, m3, documents, options, shard_references=shard_references, wait_seconds=wait_seconds)

    def commit(
        self, plan: WritePlan, encoded: EncodedShard | Iterable[EncodedShard], *, wait_seconds: float = 0.0
    ) -> WriteReport:
        """Put encoded shards of a plan into the bank: some or all, in any order. One that is there already is left.

        A document is put into the bank when all of it has come. What is to be pruned goes when the last document has come.
        Interrupted, `pending` says what is still wanted.

        Args:
            plan: of `plan`, for this bank.
            encoded: read one by one, so they need not fit into RAM.
            wait_seconds: how long to wait for another writer before raising BankBusy.

        Returns:
            What this call did.

        Raises:
            InputError: a shard is of another plan, is damaged, or was made of other texts. Those before it are committed.
            FingerprintMismatch: a shard was encoded by another model or with other settings.
            BankChanged: the bank was rebuilt, or a document was changed by others since the plan was made.
        """
        with self._changing(wait_seconds):
            report = commit_shards(self._store, plan, [encoded] if isinstance(encoded, EncodedShard) else encoded)
            if report.written or report.removed:
                tidy(self._store)
        return report

    def pending(self, plan: WritePlan, *, wait_seconds: float = 0.0) -> list[int]:
        """Numbers of the plan's shards that are not in the bank yet. Of a large document all count until the last has come.

        Args:
            plan: what `Bank.plan` gave.
            wait_seconds: how long to wait for another writer; 0 fails at once.

        Raises:
            BankChanged: as `commit`.
        """
        with self._store.lock(wait_seconds):
            return wanted_shards(self._store, plan)

    def delete(self, document_ids: str | Iterable[str], *, purge: bool = False, wait_seconds: float = 0.0) -> int:
        """Remove documents. Returns how many of them were there.

        They can no longer be found or read, but their bytes stay in old files until the bank is compacted some time later.

        Args:
            document_ids: one or several; none are needed to purge.
            purge: leave no byte of what was deleted or replaced, now or before: the bank is written anew without it, for
                which it needs as much space once more. Banks that others have open must `refresh` before they read again.
            wait_seconds: how long to wait for another writer before raising BankBusy.
        """
        wanted = {document_ids} if isinstance(document_ids, str) else set(document_ids)
        with self._changing(wait_seconds):
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
        return len(there)

    def compact(self, *, wait_seconds: float = 0.0) -> None:
        """Merge what many commits wrote, give back the space of what was removed, renew the indexes.

        Writes anew only what lies in small pieces or among deleted rows, some megabytes at a time. It needs as much free
        space as these have until it is done, and for some minutes more where readers may still use the old.
        """
        with self._changing(wait_seconds):
            compact(self._store)
            self._forget()

    def _forget(self) -> None:
        """Leave out of the recalls what is no longer in the bank. Needs the lock."""
        held = {entry.id for entry in self.documents()}
        self._recalls.flush()
        self._recalls.sum_up(lambda reference_id: reference_id.rpartition("#")[0] in held)

    # ---- reading ---------------------------------------------------------------------------------------------------------

    def pin(self) -> BankView:
        """The bank as it is open now, to search and read from: one version, also while others write.

        If the files of that version are gone, since others wrote and tidied up, the bank is refreshed first.
        """
        if self._snapshot.is_removed():
            self.refresh()
        return self._view()

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """For each query the ``k`` most similar references, best first; fewer where the bank, or the filter, has fewer.

        Of references with one and the same text the best is found alone.

        Args:
            queries: texts, embedded in one batch.
            k: how many.
            where: metadata that references must have: ``{"book": "anatomy", "year": [2019, 2020]}``, a list meaning any of.
        """
        return self._reading(lambda view: view.search(queries, k, where))

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """The memories of references, in order: from the cache, else from the bank, else (lazy) encoded now.

        What is encoded now is stored, if the policy says so.

        Args:
            reference_ids: which.
            use_cache: look into the cache first, and keep there what is read.
            device: where keys and values are to lie; default the CPU.
        """
        return self._reading(lambda view: view.memories(reference_ids, use_cache=use_cache, device=device))

    def records(self, reference_ids: Sequence[str]) -> list[MemoryRecord]:
        """The memories of references as they are stored, packed, in order.

        Lazy ones are encoded now, and stored if the policy says so. `memory3.bank.MemoryReader` decodes them. Counts as a
        recall, as `memories` does.
        """
        return self._reading(lambda view: view.records(reference_ids))

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
        """How often references of each document were recalled, by all readers, as far as they have told; 0: never."""
        counts = {entry.id: 0 for entry in self.documents()}
        for reference_id, count in self._recalls.totals().items():
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
        statistics = self.tiers.statistics()
        return self._reading(lambda view: bank_info(self._store, view.snapshot, statistics))

    def refresh(self) -> None:
        """See what was written since the bank was opened. The memories kept in RAM are dropped if anything was."""
        with self._refresh_lock:
            newest = self._store.snapshot()
            if newest.id != self._snapshot.id:
                if self._m3 is not None:
                    newest.manifest.require(self._m3)
                self._snapshot = newest
                self.tiers.clear()

    def close(self) -> None:
        """Give back the RAM, write down the recalls. The bank must not be used after that."""
        self._recalls.flush()
        self._retention.give_back()
        self._guesses.close()
        self.tiers.clear()

    def __len__(self) -> int:
        return self._reading(len)

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _changing(self, wait_seconds: float) -> Iterator[None]:
        """The lock. Behind it this bank shows all that was committed, also where an error ended the change in its midst."""
        with self._store.lock(wait_seconds):
            try:
                yield
            except BaseException:
                with suppress(Memory3Error):
                    self.refresh()
                raise
        self.refresh()

    def _view(self) -> BankView:
        snapshot = self._snapshot
        parts: dict[str, Any] = {
            "embed": lambda texts: self._embedders.of(snapshot.manifest).encode(texts),
            "encode_lazy": self._encode_lazy,
            "tiers": self.tiers,
            "recalls": self._recalls,
            "guesses": self._guesses,
        }
        if self._far is None:
            return BankView(snapshot, **parts)
        from memory3.bank.far import FarView

        return FarView(snapshot, far=self._far, **parts)

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

    def _encode_lazy(self, snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, MemoryRecord]:
        m3 = self._model("encode lazy references of")
        made, stored = encode_lazy(self._store, snapshot, m3, reference_ids, self._retention.chosen)
        self._retention.make_room(snapshot.id.table_id, stored)
        return made

    def _model(self, task: str) -> MemoryWriter:
        if self._m3 is None:
            raise ConfigError(f"to {task} this bank a model is needed: open it with Bank.open({self._store.path!r}, m3)")
        return self._m3
