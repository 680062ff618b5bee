"""Making a plan: documents compared with a table, and those to write cut into shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from memory3.bank.format.rows import BankRow
from memory3.bank.protocol import MemoryWriter
from memory3.bank.snapshot import Snapshot
from memory3.bank.write.commit import Committer
from memory3.bank.write.compare import Comparison, Step
from memory3.bank.write.cut import Cut, Cutter, EmptyDocument, LargeDocument, WholeDocuments
from memory3.bank.write.documents import checked
from memory3.bank.write.options import WriteOptions
from memory3.bank.write.pace import most_references
from memory3.bank.write.plan import PlannedDocument, Shard, WritePlan, plan_id
from memory3.codec import CodedCodec
from memory3.errors import ConfigError, setting
from memory3.types import Document

__all__ = ["prepare"]


def prepare(
    now: Snapshot,
    committer: Committer,
    m3: MemoryWriter,
    documents: Iterable[Document],
    options: WriteOptions,
    shard_references: int,
) -> WritePlan:
    """A plan for a table. Encodes and changes nothing.

    Args:
        now: the table; its codebook travels with the plan.
        committer: which has read it.
        m3: cuts documents into references; its model is not run.
        documents: in any order; read once.
        options: how they are to be written.
        shard_references: references of a shard, about: documents stay whole while a commit can hold them.
    """
    if isinstance(shard_references, bool) or not isinstance(shard_references, int) or shard_references < 1:
        raise ConfigError(f"{setting('shard_references', shard_references)}: give a whole number from 1")
    most = most_references(committer.manifest.record_bytes)
    size = min(shard_references, most)
    comparison = Comparison(committer.stored, committer.broken, lazy=options.lazy, replace=options.replace)
    cutter = Cutter(m3, most, lambda references: references >= size)
    planned: list[PlannedDocument] = []
    groups: list[tuple[BankRow, ...]] = []
    unchanged = 0

    def add(cut: Cut) -> int:
        """Plan what was cut. Returns how many of its documents turned out to be there already."""
        match cut:
            case WholeDocuments():
                groups.append(tuple(cut.rows))
                hashes = {row.reference.document_id: row.content_hash for row in cut.rows}
                planned.extend(
                    PlannedDocument(id_, hashes[id_], count, comparison.before(id_)) for id_, count in cut.sizes.items()
                )
            case LargeDocument():
                id_ = cut.document.id
                parts = list(_parts(cut, size))
                groups.extend(parts)
                planned.append(PlannedDocument(id_, cut.content_hash, sum(map(len, parts)), comparison.before(id_)))
            case EmptyDocument() if committer.holds(cut.document_id):
                planned.append(PlannedDocument(cut.document_id, cut.content_hash, 0, comparison.before(cut.document_id)))
            case EmptyDocument():
                return 1
        return 0

    for given in documents:
        document = checked(given)
        content_hash = document.content_hash
        step = comparison.step(document, content_hash)
        unchanged += step is Step.UNCHANGED
        if step is Step.WRITE:
            unchanged += sum(map(add, cutter.take(document, content_hash)))
    for cut in cutter.rest():
        add(cut)
    gone, spared = comparison.gone(options.prune_prefix, options.unread) if options.prune else ([], [])
    bank = committer.manifest.to_json()
    shards = tuple(
        Shard("", number, bank, now.id.table_id, options.lazy, rows, _kept(committer, rows, lazy=options.lazy))
        for number, rows in enumerate(groups)
    )
    id_ = plan_id(shards, tuple(planned))
    return WritePlan(
        id=id_,
        bank=bank,
        table_id=now.id.table_id,
        version=now.version,
        lazy=options.lazy,
        documents=tuple(planned),
        shards=tuple(dataclasses.replace(shard, plan=id_) for shard in shards),
        unchanged=unchanged,
        gone=tuple((id_, comparison.before(id_)) for id_ in gone),
        replaced=tuple(comparison.replaced),
        conflicts=tuple(comparison.conflicts),
        kept=tuple(spared),
        code_book=now.codec.codebook if isinstance(now.codec, CodedCodec) else None,
    )


def _parts(large: LargeDocument, size: int) -> Iterator[tuple[BankRow, ...]]:
    document = large.document
    while part := list(islice(large.references, size)):
        yield tuple(BankRow(reference, large.content_hash, 0, document.origin) for reference in part)


def _kept(committer: Committer, rows: Sequence[BankRow], *, lazy: bool) -> tuple[str, ...]:
    found = committer.kept([row.reference for row in rows], lazy=lazy)
    return tuple(row.reference.id for row in rows if row.reference.id in found)
