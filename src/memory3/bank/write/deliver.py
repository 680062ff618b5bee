"""Encoded shards of a plan, come from anywhere in any order: each is checked against the plan and put into the bank once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa

from memory3.bank.format.rows import BankRow
from memory3.bank.reports import WriteReport
from memory3.bank.write.accept import accept
from memory3.bank.write.commit import Committer
from memory3.bank.write.kept import completed
from memory3.bank.write.plan import PlannedDocument, Shard, WritePlan
from memory3.bank.write.shard import EncodedShard
from memory3.codec import Codec
from memory3.errors import BankChanged, InputError

__all__ = ["Delivery", "pending"]


class Delivery:
    """Puts the shards of one plan into its table. By the holder of the bank's lock."""

    def __init__(self, plan: WritePlan, committer: Committer, codec: Codec) -> None:
        """
        Raises:
            BankChanged: a document has become another one since the plan was made.
        """
        self._plan = plan
        self._committer = committer
        self._codec = codec
        self._started = time.monotonic()
        self._open = {document.id: document for document in _open_documents(plan, committer)}
        self._staged: dict[str, set[int]] = {}
        self._written: list[str] = []
        self._references = self._bytes = 0

    def take(self, encoded: EncodedShard) -> None:
        """Put a shard into the table; what is there already is left as it is.

        Raises:
            InputError: it is of another plan, or its rows are not what the plan says.
            FingerprintMismatch: it was encoded by another model or with other settings.
        """
        shard = self._required(encoded)
        ids = set(shard.document_ids)
        wanted = ids & self._open.keys()
        if not wanted:
            return
        if any(row.document_references == 0 for row in shard.rows):
            self._stage(shard, encoded.rows)
            return
        rows = [row for row in shard.rows if row.reference.document_id in wanted]
        batch = self._completed(rows, shard, encoded.rows)
        self._committer.put({id_: self._open[id_].references for id_ in shard.document_ids if id_ in wanted}, [batch])
        self._close(wanted, len(rows), batch.nbytes)

    def finish(self) -> WriteReport:
        """Where every document of the plan is written, remove those that are gone. Says what this delivery did."""
        committer = self._committer
        emptied = [id_ for id_, document in self._open.items() if not document.references]
        committer.remove(emptied)
        self._close(set(emptied), 0, 0)
        gone: list[str] = []
        if not self._open:
            before = {id_: each.content_hash for id_, each in committer.stored.items()}
            gone = [id_ for id_, hash_ in self._plan.gone if committer.holds(id_) and before.get(id_, "") == hash_]
            committer.remove(gone)
            committer.staging.close({document.id for document in self._plan.documents})
        written = set(self._written)
        return WriteReport(
            written=len(written),
            unchanged=self._plan.unchanged,
            removed=len(gone),
            references=self._references,
            bytes=self._bytes,
            seconds=time.monotonic() - self._started,
            added=sum(document.id in written and not document.before for document in self._plan.documents),
            replaced=self._plan.replaced,
            conflicts=self._plan.conflicts,
            kept=self._plan.kept,
        )

    def _close(self, document_ids: set[str], references: int, nbytes: int) -> None:
        for id_ in document_ids:
            del self._open[id_]
        self._written += document_ids
        self._references += references
        self._bytes += nbytes

    def _stage(self, shard: Shard, encoded: pa.RecordBatch) -> None:
        """Keep a part of a large document until all parts are there, then move them in one commit."""
        (id_,) = shard.document_ids
        staging = self._committer.staging
        staged = self._begun(id_, shard.rows[0].content_hash)
        if shard.rows[0].reference.ordinal not in staged:
            batch = self._completed(shard.rows, shard, encoded)
            staging.add(batch)
            staged.update(row.reference.ordinal for row in shard.rows)
            self._references += len(shard.rows)
            self._bytes += batch.nbytes
        if len(staged) == self._open[id_].references:
            self._committer.move(id_, len(staged))
            self._close({id_}, 0, 0)

    def _begun(self, document_id: str, content_hash: str) -> set[int]:
        """Ordinals of a document that are staged. What was staged of references that were cut otherwise is forgotten."""
        if document_id not in self._staged:
            staging = self._committer.staging
            found = staging.begin(document_id, content_hash, self._committer.schema, lazy=self._plan.lazy)
            parts = [shard.rows for shard in self._plan.shards if shard.rows[0].reference.document_id == document_id]
            made = {r.ordinal: (r.end, len(r.token_ids)) for rows in parts for r in (row.reference for row in rows)}
            whole = all(len({row.reference.ordinal for row in rows} & found.keys()) in (0, len(rows)) for rows in parts)
            if not whole or any(made.get(ordinal) != there for ordinal, there in found.items()):
                staging.forget(document_id)
                found = {}
            self._staged[document_id] = set(found)
        return self._staged[document_id]

    def _completed(self, rows: Sequence[BankRow], shard: Shard, encoded: pa.RecordBatch) -> pa.RecordBatch:
        """``rows`` of a shard, with what the table keeps of them."""
        kept_ids = set(shard.kept)
        wanted = [row.reference for row in rows if row.reference.id in kept_ids]
        kept = self._committer.kept(wanted, lazy=self._plan.lazy)
        if missing := [reference.id for reference in wanted if reference.id not in kept]:
            raise BankChanged(f"the memory of {missing[0]!r} was to be kept, and is no longer there: plan again")
        if len(rows) < len(shard.rows):
            ids = {row.reference.id for row in rows}
            encoded = encoded.filter(pa.array([id_ in ids for id_ in encoded["reference_id"].to_pylist()], pa.bool_()))
        return completed(rows, encoded, kept, self._committer.schema)

    def _required(self, encoded: EncodedShard) -> Shard:
        """The shard that this is, once its rows are accepted."""
        plan = self._plan
        if encoded.plan != plan.id or not 0 <= encoded.number < len(plan.shards):
            raise InputError(
                f"shard {encoded.number} is of plan {encoded.plan:.40}, not of the {len(plan.shards)} of {plan.id}: "
                "encode the shards of this plan"
            )
        shard = plan.shards[encoded.number]
        accept(shard, encoded, self._committer.schema, self._codec)
        return shard


def pending(plan: WritePlan, committer: Committer) -> list[int]:
    """Numbers of the shards that are still to be put into the table. A part of a document counts until all is there.

    Args:
        plan: of a write.
        committer: of the table it goes into.

    Raises:
        BankChanged: a document has become another one since the plan was made.
    """
    open_ids = {document.id for document in _open_documents(plan, committer)}
    return [shard.number for shard in plan.shards if open_ids.intersection(shard.document_ids)]


def _open_documents(plan: WritePlan, committer: Committer) -> Iterator[PlannedDocument]:
    """Documents of a plan that the table does not have yet."""
    for document in plan.documents:
        now = committer.stored.get(document.id)
        have = now.content_hash if now is not None else ""
        if not document.references:
            if now is None and document.id not in committer.broken:
                continue
        elif have == document.content_hash and (plan.lazy or now is None or not now.is_lazy):
            continue
        if have != document.before:
            raise BankChanged(f"document {document.id!r} has become another one since this was planned: plan again")
        yield document
