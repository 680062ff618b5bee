"""Plan, encode and commit in one process: only what is new or changed, resumable after any interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from memory3.bank.codebooks import codec_of
from memory3.bank.embedder import TextEmbedder
from memory3.bank.format.rows import BankRow
from memory3.bank.protocol import MemoryWriter
from memory3.bank.reports import WriteProgress, WriteReport
from memory3.bank.store import Store
from memory3.bank.write.commit import Committer
from memory3.bank.write.compare import Comparison, Step
from memory3.bank.write.cut import Cut, Cutter, EmptyDocument, LargeDocument, WholeDocuments
from memory3.bank.write.documents import checked
from memory3.bank.write.kept import completed
from memory3.bank.write.options import WriteOptions
from memory3.bank.write.pace import Pace
from memory3.bank.write.shard import encode_rows
from memory3.types import Document

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["WriteRun"]


class WriteRun:
    """One write into one table, by the holder of the lock."""

    def __init__(
        self,
        store: Store,
        name: str,
        table: Table,
        m3: MemoryWriter,
        embedder: TextEmbedder,
        options: WriteOptions,
        *,
        progress: Callable[[WriteProgress], None] | None = None,
    ) -> None:
        self._started = time.monotonic()
        self._committer = Committer(store, name, table)
        self._codec = codec_of(store.backend, self._committer.manifest, store.token_vectors)
        self._m3 = m3
        self._embedder = embedder
        self._options = options
        self._progress = progress
        self._pace = Pace(self._codec.record_size, m3.batch_size)
        self._documents = self._written = self._unchanged = self._references = self._bytes = 0
        self._document_id = ""

    def run(self, documents: Iterable[Document]) -> WriteReport:
        """Write what is new or changed. Conflicts are reported, not raised.

        Args:
            documents: in any order; read once.

        Returns:
            how many documents were written, unchanged, pruned, and the conflicts.
        """
        committer, options = self._committer, self._options
        comparison = Comparison(committer.stored, committer.broken, lazy=self._options.lazy, replace=self._options.replace)
        cutter = Cutter(self._m3, self._pace.most, self._pace.is_due)
        for given in documents:
            document = checked(given)
            content_hash = document.content_hash
            step = comparison.step(document, content_hash)
            if step is Step.REPEATED:
                continue
            self._documents += 1
            self._document_id = document.id
            if step is Step.UNCHANGED:
                self._unchanged += 1
            elif step is Step.WRITE:
                for cut in cutter.take(document, content_hash):
                    self._write(cut)
            self._tell()
        for cut in cutter.rest():
            self._write(cut)
        gone, kept = comparison.gone(options.prune_prefix, options.unread) if options.prune else ([], [])
        committer.remove(gone)
        committer.staging.close(comparison.seen)
        self._tell()
        return WriteReport(
            written=self._written,
            unchanged=self._unchanged,
            removed=len(gone),
            references=self._references,
            bytes=self._bytes,
            seconds=time.monotonic() - self._started,
            added=min(comparison.added, self._written),
            replaced=tuple(comparison.replaced),
            conflicts=tuple(comparison.conflicts),
            kept=tuple(kept),
        )

    def _write(self, cut: Cut) -> None:
        match cut:
            case WholeDocuments():
                started = time.monotonic()
                batch = self._encode(cut.rows)
                self._pace.encoded(len(cut.rows), time.monotonic() - started)
                self._committer.put(cut.sizes, [batch])
                self._done(len(cut.sizes))
            case LargeDocument():
                self._write_large(cut)
                self._done(1)
            case EmptyDocument() if self._committer.holds(cut.document_id):  # nothing is left of it
                self._committer.remove([cut.document_id])
                self._written += 1
            case EmptyDocument():
                self._unchanged += 1

    def _done(self, documents: int) -> None:
        self._written += documents
        self._pace.committed()

    def _write_large(self, large: LargeDocument) -> None:
        """Encode a large document part by part into the staging table, then move it in one commit."""
        document, references, staging = large.document, large.references, self._committer.staging
        staged = staging.begin(document.id, large.content_hash, self._committer.schema, lazy=self._options.lazy)
        count = len(staged)
        begun = [staged.get(ordinal) for ordinal in range(count)]
        if any(there != (made.end, len(made.token_ids)) for there, made in zip(begun, references, strict=False)):
            # A release that cuts otherwise began it, or a plan that was given up with parts missing.
            staging.forget(document.id)
            references, count = self._m3.split(document), 0
        while part := list(islice(references, self._pace.size)):
            count += len(part)
            staging.add(self._encode([BankRow(reference, large.content_hash, 0, document.origin) for reference in part]))
        self._committer.move(document.id, count)

    def _encode(self, rows: Sequence[BankRow]) -> pa.RecordBatch:
        """Rows with embeddings and memories; what the table has for the same tokens is kept."""
        schema = self._committer.schema
        kept = self._committer.kept([row.reference for row in rows], lazy=self._options.lazy)
        self._references += len(kept)
        new = [row for row in rows if row.reference.id not in kept]
        encoded = encode_rows(self._m3, self._embedder, self._codec, new, schema, lazy=self._options.lazy, told=self._encoded)
        batch = completed(rows, encoded, kept, schema)
        self._bytes += batch.nbytes
        return batch

    def _encoded(self, references: int) -> None:
        self._references += references
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            seconds = time.monotonic() - self._started
            self._progress(
                WriteProgress(self._documents, self._written, self._unchanged, self._references, seconds, self._document_id)
            )
