"""Encoding a bank anew, from the texts it holds, for another model or other settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from memory3.bank.codebooks import new_codec
from memory3.bank.embedder import TextEmbedder
from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.rows import origin_in
from memory3.bank.lookup import references_at
from memory3.bank.protocol import MemoryWriter
from memory3.bank.reports import WriteProgress, WriteReport
from memory3.bank.snapshot import Snapshot
from memory3.bank.store import Store
from memory3.bank.upkeep import tidy
from memory3.bank.write.options import WriteOptions
from memory3.bank.write.run import WriteRun
from memory3.codec import Codebook
from memory3.errors import BankCorrupt
from memory3.types import Document, Reference

__all__ = ["rebuild", "stored_documents"]

_READ_AT_ONCE = 1000


def rebuild(
    store: Store,
    m3: MemoryWriter,
    embedder: TextEmbedder,
    progress: Callable[[WriteProgress], None] | None = None,
    code_book: Codebook | None = None,
    *,
    lazy: bool = False,
) -> WriteReport:
    """Write all documents into a new table and put it in force at the end. An interrupted rebuild goes on where it stopped.

    Needs the lock. ``lazy``: texts only, as the bank's policy has it. Until the end the old table is in force and can be read.

    Args:
        store: the bank; its lock is held.
        m3: encodes the memories.
        embedder: embeds the texts.
        progress: called with a `WriteProgress` now and then.
        code_book: for the codec of the settings; None takes the one in the cache.
        lazy: texts only, as the bank's policy has it.
    """
    old = store.snapshot()
    codec, book = new_codec(m3, code_book)
    manifest = BankManifest.of(m3, embedder.name, embedder.dimension, codec, book)
    name = store.next_name()
    unfinished = store.find_table(name)
    if unfinished is None or not old.size or store.open(name)[1] != manifest:
        store.remove_table(f"{name}-staging")
        store.add_codebook(book)
        unfinished = store.add_table(name, manifest)
    options = WriteOptions(lazy=lazy, prune=True, replace=True)
    report = WriteRun(store, name, unfinished, m3, embedder, options, progress=progress).run(stored_documents(old))
    store.switch(name)
    tidy(store)
    return report


def stored_documents(snapshot: Snapshot) -> Iterator[Document]:
    """The documents as they were written, put together from their references."""
    listing = snapshot.scan(["document_id", "ordinal", "content_hash", "tags"]).sort_by("ordinal")
    rows: dict[str, list[int]] = defaultdict(list)
    hashes: dict[str, str] = {}
    origins: dict[str, str] = {}
    columns = (listing[name].to_pylist() for name in ("_rowid", "document_id", "content_hash", "tags"))
    for row_id, document_id, content_hash, tags in zip(*columns, strict=True):
        rows[document_id].append(row_id)
        origins[document_id] = origins.get(document_id) or origin_in(tags)
        hashes[document_id] = content_hash
    for document_ids in _portions(rows):
        found = references_at(snapshot, [row_id for id_ in document_ids for row_id in rows[id_]])
        parts: dict[str, list[Reference]] = defaultdict(list)
        for reference in sorted(found.values(), key=lambda reference: reference.ordinal):
            parts[reference.document_id].append(reference)
        for document_id, references in parts.items():
            text = "".join(reference.text for reference in references)
            document = Document(document_id, text, references[0].source, references[0].metadata, origins[document_id])
            if document.content_hash != hashes[document_id]:
                raise BankCorrupt(
                    f"{snapshot.path}: the text of document {document_id!r} is not complete: delete it, or write it again, "
                    "before you rebuild",
                    [reference.id for reference in references],
                )
            yield document


def _portions(rows: dict[str, list[int]]) -> Iterator[list[str]]:
    """Document ids in groups that have about `_READ_AT_ONCE` references."""
    portion: list[str] = []
    size = 0
    for document_id, row_ids in rows.items():
        portion.append(document_id)
        size += len(row_ids)
        if size >= _READ_AT_ONCE:
            yield portion
            portion, size = [], 0
    yield portion
