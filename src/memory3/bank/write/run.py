"""Plan, encode and commit in one process: only what is new or changed, resumable after any interruption.

The caller's thread reads, splits and commits, as every other did not know of it; where the model allows, others embed, encode
and pack meanwhile (`memory3.bank.write.workers`). With a pool, other processes or machines do that
(`memory3.bank.write.elsewhere`); commits follow one another in the order of the documents all the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from memory3.bank.codebooks import codec_of
from memory3.bank.embedder import TextEmbedder
from memory3.bank.format.rows import BankRow
from memory3.bank.format.versions import table_id
from memory3.bank.protocol import MemoryWriter
from memory3.bank.reports import WriteProgress, WriteReport
from memory3.bank.store import Store
from memory3.bank.write.commit import Committer
from memory3.bank.write.compare import Comparison, Step
from memory3.bank.write.cut import Cut, Cutter, EmptyDocument, LargeDocument, WholeDocuments
from memory3.bank.write.documents import checked
from memory3.bank.write.elsewhere import RowsElsewhere, ShardPool, ShardRows
from memory3.bank.write.encode import EncodedRows, RowEncoder
from memory3.bank.write.kept import Kept, completed
from memory3.bank.write.options import WriteOptions
from memory3.bank.write.pace import Pace
from memory3.bank.write.workers import working
from memory3.types import Document

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["WriteRun"]


#: Commits' worth of references that may be encoded before those in front of them are committed. Of what lies in the line only
#: the first is encoded whole, so an interruption costs no more than a commit's worth.
_AHEAD = 1


class _Begun(NamedTuple):
    """Rows of a commit that are being encoded, what is kept of them, and since when."""

    rows: Sequence[BankRow]
    kept: Mapping[str, Kept]
    new: EncodedRows | ShardRows
    at: float


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
        pool: ShardPool | None = None,
    ) -> None:
        self._started = time.monotonic()
        self._committer = Committer(store, name, table)
        self._codec = codec_of(store.backend, self._committer.manifest, store.token_vectors)
        self._m3 = m3
        self._embedder = embedder
        self._options = options
        self._progress = progress
        self._pool = pool
        self._pace = Pace(self._codec.record_size, m3.batch_size, pool.shard_references if pool is not None else None)
        self._documents = self._written = self._unchanged = self._references = self._bytes = 0
        self._document_id = ""
        self._line: deque[tuple[Cut, _Begun | None]] = deque()
        self._last = self._started

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
        with self._encoding():
            try:
                self._write_all(documents, comparison, cutter)
            except Exception:
                self._commit()  # what was whole before a document that cannot be read
                raise
        gone, kept = comparison.gone(options.prune_prefix, options.unread) if options.prune else ([], [])
        committer.remove(gone)
        committer.staging.close(comparison.seen)
        if self._pool is not None:
            self._pool.finish()
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

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Whoever encodes, for as long as the block runs."""
        schema, lazy = self._committer.schema, self._options.lazy
        self._encoder: RowEncoder | RowsElsewhere
        if self._pool is not None:
            bank = self._committer.manifest.to_json()
            self._encoder = RowsElsewhere(self._pool, bank, table_id(schema.metadata or {}), schema, self._codec, lazy=lazy)
            self._ahead = self._pool.ahead
            yield
            return
        with working(self._m3, lazy=lazy) as workers:
            self._encoder = RowEncoder(self._m3, self._embedder, self._codec, schema, lazy=lazy, workers=workers)
            self._ahead = 0 if workers is None else _AHEAD
            yield

    def _write_all(self, documents: Iterable[Document], comparison: Comparison, cutter: Cutter) -> None:
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
        self._commit()

    def _write(self, cut: Cut) -> None:
        """Commits follow one another in the order of the documents; so many that come after may be encoded meanwhile."""
        if isinstance(cut, LargeDocument):
            self._commit()
            self._write_large(cut)
            self._done(1)
            return
        if self._pool is None:
            self._commit(self._ahead)
        elif isinstance(cut, EmptyDocument):
            self._commit_one(cut, None)  # a shard of no rows: nothing waits for it
            return
        self._line.append((cut, self._begin(cut.rows) if isinstance(cut, WholeDocuments) else None))
        if self._pool is not None:
            self._commit_full()
        elif not self._ahead:
            self._commit()

    def _commit(self, left: int = 0) -> None:
        """Commit what is in the line until so many are left. After an error nothing of it is committed any more."""
        try:
            while len(self._line) > left:
                self._commit_one(*self._line.popleft())
        except BaseException:
            self._line.clear()
            raise

    def _commit_full(self) -> None:
        """Commit what is encoded at the line's front, once a commit is full of it: until then it is kept by the pool, and a
        commit for each shard would leave a fragment for each. Waits while the pool has more than it can work on.
        """
        while True:
            front = list(takewhile(lambda each: each[1] is None or each[1].new.is_ready(), self._line))
            if sum(len(begun.rows) for _, begun in front if begun is not None) >= self._pace.most:
                self._commit(len(self._line) - 1)
            elif len(self._line) - len(front) > self._ahead:
                begun = self._line[len(front)][1]
                assert begun is not None
                begun.new.wait(self._encoded)
            else:
                return

    def _commit_one(self, cut: Cut, begun: _Begun | None) -> None:
        match cut:
            case WholeDocuments():
                assert begun is not None
                sizes, group = dict(cut.sizes), [begun]
                rows = len(cut.rows)
                while (following := self._ready(self._pace.most - rows)) is not None:
                    sizes |= following[0].sizes
                    group.append(following[1])
                    rows += len(following[0].rows)
                batches = [self._finished(each) for each in group]
                now = time.monotonic()
                self._pace.encoded(rows, now - max(begun.at, self._last))
                self._last = now
                self._committer.put(sizes, batches)
                for each in group:
                    each.new.committed()
                self._done(len(sizes))
            case EmptyDocument() if self._committer.holds(cut.document_id):  # nothing is left of it
                self._committer.remove([cut.document_id])
                self._written += 1
            case EmptyDocument():
                self._unchanged += 1

    def _ready(self, most: int) -> tuple[WholeDocuments, _Begun] | None:
        """The next in the line, taken out of it, if it need not be waited for and has no more rows than that."""
        if not self._line:
            return None
        cut, begun = self._line[0]
        if not isinstance(cut, WholeDocuments) or begun is None or len(cut.rows) > most or not begun.new.is_ready():
            return None
        self._line.popleft()
        return cut, begun

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
        parts: deque[_Begun] = deque()
        while part := list(islice(references, self._pace.size)):
            count += len(part)
            parts.append(self._begin([BankRow(reference, large.content_hash, 0, document.origin) for reference in part]))
            if len(parts) > self._ahead:
                self._stage(parts.popleft())
        for left in parts:
            self._stage(left)
        self._committer.move(document.id, count)

    def _stage(self, begun: _Begun) -> None:
        self._committer.staging.add(self._finished(begun))
        begun.new.committed()

    def _begin(self, rows: Sequence[BankRow]) -> _Begun:
        """Have rows encoded; what the table has for the same tokens is kept."""
        kept = self._committer.kept([row.reference for row in rows], lazy=self._options.lazy)
        new = self._encoder.begin([row for row in rows if row.reference.id not in kept])
        return _Begun(rows, kept, new, time.monotonic())

    def _finished(self, begun: _Begun) -> pa.RecordBatch:
        """The rows with embeddings and memories."""
        self._references += len(begun.kept)
        batch = completed(begun.rows, begun.new.batch(self._encoded), begun.kept, self._committer.schema)
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
