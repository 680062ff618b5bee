"""Writing documents into a table: only what is new or changed, whole documents per commit, resumable after any interruption.

A commit replaces whole documents, so a reader sees a document as it was or as it is. Where a new version has fewer
references than the old one, the commit overwrites the surplus with tombstones, which readers ignore and the next commit deletes:
Lance's own "delete what the source lacks" reads the whole table, memories included, into RAM.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from memory3.bank.codebooks import codec_of
from memory3.bank.embedder import TextEmbedder
from memory3.bank.faults import reading, writing
from memory3.bank.format.manifest import METADATA_KEY, BankManifest
from memory3.bank.format.rows import (
    LIVE,
    TEXT_COLUMNS,
    BankRow,
    are_damaged,
    are_tombstones,
    codes_of,
    embeddings_of,
    origin_in,
    references_of,
    row_batch,
    tombstone,
)
from memory3.bank.reports import Conflict, WriteProgress, WriteReport
from memory3.bank.staging import Staging
from memory3.bank.store import Store
from memory3.bank.where import is_in, tags
from memory3.bank.writer import MemoryWriter
from memory3.errors import InputError
from memory3.sources import Unread, same_source
from memory3.types import Document, Reference, plain

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["Writing", "delete_documents", "delete_tombstones", "present"]

#: A commit holds about what is encoded in this time, which is what an interruption can cost,
COMMIT_SECONDS = 10.0
#: but not more than this, so that memory stays bounded.
COMMIT_BYTES = 64 << 20
COMMIT_REFERENCES = 1024

#: A group has at most so many times the references of the one before.
_GROWTH = 8

_DELETE_AT_ONCE = 500


class Writing:
    """One write into one table, by the holder of the lock."""

    def __init__(
        self,
        store: Store,
        name: str,
        table: Table,
        m3: MemoryWriter,
        embedder: TextEmbedder,
        *,
        cold: bool = False,
        progress: Callable[[WriteProgress], None] | None = None,
    ) -> None:
        self._store = store
        self._table = table
        self._m3 = m3
        self._embedder = embedder
        self._cold = cold
        self._progress = progress
        self._started = time.monotonic()
        with reading(store.path):
            self._schema: pa.Schema = table.schema
        self._codec = codec_of(store.backend, BankManifest.from_json(self._schema.metadata[METADATA_KEY]), store.token_vectors)
        self._staging = Staging(store, f"{name}-staging")
        self._most = max(1, min(COMMIT_REFERENCES, COMMIT_BYTES // self._codec.record_size))
        self._group_size = min(self._most, m3.batch_size)  # until it is known how fast the model is
        self._group: list[BankRow] = []
        self._committed = self._started
        self._sizes: dict[str, int] = {}
        self._broken: set[str] = set()
        self._documents = self._written = self._unchanged = self._references = self._bytes = 0
        self._document_id = ""

    def run(
        self,
        documents: Iterable[Document],
        *,
        prune: bool = False,
        replace: bool = False,
        unread: Unread | None = None,
        within: str = "",
    ) -> WriteReport:
        """Write what is new or changed. Arguments as for `Bank.write`; conflicts are reported, not raised."""
        delete_tombstones(self._store, self._table)
        known = self._known()
        self._sizes = {id_: size for id_, (_, size, _, _, _) in known.items()}
        added = 0
        replaced: list[Conflict] = []
        conflicts: list[Conflict] = []
        seen: dict[str, str] = {}
        for document in documents:
            document = _checked(document)
            content_hash = document.content_hash
            if document.id in seen:
                if seen[document.id] != content_hash:
                    raise InputError(f"two documents have the id {document.id!r} and different content: ids must be unique")
                continue
            seen[document.id] = content_hash
            self._documents += 1
            self._document_id = document.id
            old_hash, _, is_cold, source, origin = known.get(document.id, ("", 0, False, "", ""))
            is_same = old_hash == content_hash
            if old_hash and not is_same and source != document.source:
                # The same text and metadata under another spelling of the source, or from a copy: nothing to do.
                is_same = dataclasses.replace(document, source=source).content_hash == old_hash
            is_foreign = bool(old_hash) and not is_same and not same_source(source, origin, document.source, document.origin)
            if is_foreign:
                (replaced if replace else conflicts).append(
                    Conflict(document.id, origin or source, document.origin or document.source)
                )
            if is_same and (self._cold or not is_cold):
                self._unchanged += 1
            elif not is_foreign or replace:
                added += not old_hash
                self._take(document, content_hash)
            self._tell()
        self._flush()
        if prune and known and not seen:
            raise InputError(
                "no document was given, so pruning would empty the bank: nothing was removed. Use delete for that"
            )
        kept: list[tuple[str, str]] = []
        gone: list[str] = []
        places = {id_: (source, origin) for id_, (_, _, _, source, origin) in known.items()} | dict.fromkeys(
            self._broken, ("", "")
        )
        for id_, place in places.items() if prune and not conflicts else ():
            if id_ in seen or not id_.startswith(within):
                continue
            reason = unread.reason(id_.removeprefix(within), *place) if unread is not None else None
            if reason is None:
                gone.append(id_)
            else:
                kept.append((id_, reason))
        delete_documents(self._store, self._table, gone)
        self._staging.close(seen)
        self._tell()
        return WriteReport(
            written=self._written,
            unchanged=self._unchanged,
            removed=len(gone),
            references=self._references,
            bytes=self._bytes,
            seconds=time.monotonic() - self._started,
            added=min(added, self._written),
            replaced=tuple(replaced),
            conflicts=tuple(conflicts),
            kept=tuple(kept),
        )

    def _known(self) -> dict[str, tuple[str, int, bool, str, str]]:
        """Content hash, number of references, coldness, source and origin of every document in the table.

        Notes those whose rows are damaged, to be replaced whole.
        """
        columns = ["document_id", "content_hash", "document_references", "source", "tags"]
        with reading(self._store.path):
            firsts = self._table.search().where("ordinal = 0").select(columns).limit(None).to_arrow()
            cold = self._table.search().where("codes_checksum IS NULL").select(["document_id"]).limit(None).to_arrow()
            others = self._table.search().where("NOT (ordinal = 0)").select(["document_id"]).limit(None).to_arrow()
        cold_ids = set(cold["document_id"].to_pylist())
        more = Counter(others["document_id"].to_pylist())
        values = list(zip(*(firsts[name].to_pylist() for name in columns), strict=True))
        known = {
            id_: (content_hash, size, id_ in cold_ids, source, origin_in(tags))
            for id_, content_hash, size, source, tags in values
            if size == 1 + more[id_]
        }
        self._broken = {*more, *firsts["document_id"].to_pylist()} - known.keys()
        return known

    def _take(self, document: Document, content_hash: str) -> None:
        """Add a document to the group, or write it by itself if it is larger than a group may be."""
        references = self._m3.split(document)
        head = list(islice(references, self._most + 1))
        if len(head) > self._most:
            self._flush()
            self._write_large(document, content_hash, chain(head, references))
        elif head:
            self._group += [BankRow(reference, content_hash, len(head), document.origin) for reference in head]
            if len(self._group) >= self._group_size or time.monotonic() - self._committed >= COMMIT_SECONDS:
                self._flush()
        elif document.id in self._sizes or document.id in self._broken:  # nothing is left of it
            delete_documents(self._store, self._table, [document.id])
            self._written += 1
        else:
            self._unchanged += 1

    def _flush(self) -> None:
        """Encode and commit the group."""
        if not self._group:
            return
        rows, self._group = self._group, []
        started = time.monotonic()
        batch = self._encode(rows)
        rate = len(rows) / max(time.monotonic() - started, 1e-6)
        # What the first few take, and one odd measurement, say little of those to come.
        most = min(int(rate * COMMIT_SECONDS), _GROWTH * len(rows), self._most)
        self._group_size = max(most, min(self._m3.batch_size, self._most))
        ids = {row.reference.document_id: row.document_references for row in rows}
        self._commit(ids, [batch])
        self._bytes += batch.nbytes

    def _write_large(self, document: Document, content_hash: str, references: Iterator[Reference]) -> None:
        """Encode a large document part by part into the staging table, then move it in one commit."""
        staged = self._staging.begin(document.id, content_hash, self._schema, cold=self._cold)
        count = len(staged)
        if any(there != (made.end, len(made.token_ids)) for there, made in zip(staged, references, strict=False)):
            self._staging.forget(document.id)  # a release that cuts otherwise began it
            references, count = self._m3.split(document), 0
        while part := list(islice(references, self._group_size)):
            count += len(part)
            batch = self._encode([BankRow(reference, content_hash, 0, document.origin) for reference in part])
            self._staging.add(batch)
            self._bytes += batch.nbytes
        self._commit({document.id: count}, self._staging.batches(document.id, count))
        self._staging.forget(document.id)

    def _encode(self, rows: Sequence[BankRow]) -> pa.RecordBatch:
        """Rows with embeddings and memories. References of like length are encoded together, which saves padding.

        What a reference of the same id and tokens has in the table already is kept: where metadata alone have changed, or text was added at the end.
        """
        kept = self._kept([row.reference for row in rows])
        new = [place for place, row in enumerate(rows) if row.reference.id not in kept]
        embeddings = np.zeros((len(rows), self._embedder.dimension), np.float32)
        if new:
            embeddings[new] = self._embedder.encode([rows[place].reference.read_text for place in new])
        records: list[bytes | None] = [None] * len(rows)
        for place, row in enumerate(rows):
            if row.reference.id in kept:
                embeddings[place], records[place] = kept[row.reference.id]
        self._references += len(rows) - len(new)
        by_length = sorted(new, key=lambda place: len(rows[place].reference.token_ids))
        size = len(rows) if self._cold else self._m3.batch_size
        for start in range(0, len(new), size):
            places = by_length[start : start + size]
            if not self._cold:
                memories = self._m3.encode([rows[place].reference for place in places])
                for place, memory in zip(places, memories, strict=True):
                    records[place] = self._codec.encode(memory)
            self._references += len(places)
            self._tell()
        return row_batch(rows, embeddings, records, self._schema)

    def _kept(self, references: Sequence[Reference]) -> dict[str, tuple[np.ndarray, bytes | None]]:
        """By id, embedding and record of what the table has for the same tokens, undamaged; cold only where cold is what is wanted."""
        known = {r.id: r for r in references if r.document_id in self._sizes}
        if not known:
            return {}
        with reading(self._store.path):
            query = self._table.search().where(f"{LIVE} AND {is_in('reference_id', known)}").select([*TEXT_COLUMNS, "codes"])
            rows = query.limit(None).to_arrow()
        rows = rows.filter(pa.array([not damaged for damaged in are_damaged(rows)], pa.bool_())).combine_chunks()
        kept = {}
        for stored, embedding, record in zip(references_of(rows), embeddings_of(rows), codes_of(rows), strict=True):
            made = known[stored.id]
            if (stored.token_ids, stored.text) == (made.token_ids, made.text) and (self._cold or record is not None):
                kept[stored.id] = (embedding, None if record is None else bytes(record))
        return kept

    def _commit(self, sizes: dict[str, int], batches: Iterable[pa.RecordBatch]) -> None:
        """Put whole documents into the table, in one commit, in place of what was there under their ids. What was damaged goes in one before."""
        broken = sorted(self._broken.intersection(sizes))
        delete_documents(self._store, self._table, broken)
        self._broken.difference_update(broken)
        replaced = {id_: self._sizes[id_] for id_ in sizes if id_ in self._sizes}
        surplus = [tombstone(id_, ordinal, sizes[id_]) for id_, old in replaced.items() for ordinal in range(sizes[id_], old)]
        if surplus:
            blank = np.zeros((len(surplus), self._embedder.dimension), np.float32)
            batches = chain(batches, [row_batch(surplus, blank, [None] * len(surplus), self._schema)])
        data = pa.RecordBatchReader.from_batches(self._schema, batches)
        with writing(self._store.path):
            if replaced:
                merge = self._table.merge_insert("reference_id")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(data)
            else:
                self._table.add(data)
        if surplus:
            delete_tombstones(self._store, self._table)
        self._sizes.update(sizes)
        self._written += len(sizes)
        self._committed = time.monotonic()

    def _tell(self) -> None:
        if self._progress is not None:
            seconds = time.monotonic() - self._started
            self._progress(
                WriteProgress(self._documents, self._written, self._unchanged, self._references, seconds, self._document_id)
            )


def present(store: Store, table: Table, document_ids: Sequence[str]) -> list[str]:
    """Those of the documents of which the table has a row, damaged or not."""
    found: set[str] = set()
    for start in range(0, len(document_ids), _DELETE_AT_ONCE):
        condition = is_in("document_id", document_ids[start : start + _DELETE_AT_ONCE])
        with reading(store.path):
            rows = table.search().where(condition).select(["document_id"]).limit(None).to_arrow()
        found.update(rows["document_id"].to_pylist())
    return sorted(found)


def delete_documents(store: Store, table: Table, document_ids: Sequence[str]) -> None:
    """Remove documents; each goes whole, in one commit."""
    for start in range(0, len(document_ids), _DELETE_AT_ONCE):
        with writing(store.path):
            table.delete(is_in("document_id", document_ids[start : start + _DELETE_AT_ONCE]))


def delete_tombstones(store: Store, table: Table) -> None:
    """Remove what a shorter version of a document left over, perhaps of a write that was killed.

    A row that is no part of its document because it is damaged stays: `verify` names it.
    """
    with reading(store.path):
        rows = table.search().where(f"NOT ({LIVE})").select(list(TEXT_COLUMNS)).limit(None).to_arrow()
    ids = [id_ for id_, sound in zip(rows["reference_id"].to_pylist(), are_tombstones(rows), strict=True) if sound]
    for start in range(0, len(ids), _DELETE_AT_ONCE):
        with writing(store.path):
            table.delete(f"NOT ({LIVE}) AND {is_in('reference_id', ids[start : start + _DELETE_AT_ONCE])}")


def _checked(document: Document) -> Document:
    """The document as it can be stored, in Python's own types: a subclass, such as numpy's or an enum's, is the value it is."""
    if not isinstance(document, Document):
        raise InputError(f"{document!r:.80} is no Document: give memory3.Document(id, text, source, metadata)")
    for name in ("id", "text", "source"):
        text = getattr(document, name)
        if not isinstance(text, str):
            raise InputError(f"document {document.id!r:.80}: its {name} is {type(text).__name__}, not text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"document {document.id!r}: its {name} is not valid Unicode ({error.reason})") from None
    if not document.id:
        raise InputError(f"a document from {document.source or 'an unnamed source'!r} has an empty id")
    if not isinstance(document.metadata, Mapping):
        raise InputError(
            f"document {document.id!r}: its metadata is {type(document.metadata).__name__}, not names with values"
        )
    tags(document.metadata)
    metadata = {plain(key): plain(value) for key, value in document.metadata.items()}
    return dataclasses.replace(
        document, id=plain(document.id), text=plain(document.text), source=plain(document.source), metadata=metadata
    )
