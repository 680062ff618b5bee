"""Checking every row of a bank: checksums, record lengths, completeness of documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from memory3.bank.codebooks import read_codec
from memory3.bank.format.rows import LIVE, TEXT_COLUMNS, checksums, codes_of, embeddings_of
from memory3.bank.reports import VerifyReport
from memory3.bank.snapshot import Snapshot
from memory3.codec import Codec
from memory3.errors import BankCorrupt, CodecError

__all__ = ["verify"]


def verify(snapshot: Snapshot) -> VerifyReport:
    """Read everything once. Damage is reported, not raised; only a bank whose very list of rows, or codebook, is
    unreadable gives no ids.
    """
    unreadable = [f"{fault}: restore the bank from a copy" for fault in snapshot.backend.table_faults(snapshot.name)]
    if unreadable:
        return VerifyReport(0, 0, 0, (), tuple(unreadable))
    try:
        listing = snapshot.scan(["reference_id", "document_id", "ordinal", "document_references", "content_hash"])
        hidden = snapshot.scan(["reference_id"], f"NOT ({LIVE})")
        codec = read_codec(snapshot.backend, snapshot.manifest)
    except BankCorrupt as error:
        return VerifyReport(0, 0, 0, (), (str(error),))
    bad: dict[str, str] = {}
    lazy = 0
    # Rows that are no part of their document are looked at, too: they are what a write left over, or rows whose numbers
    # are damaged.
    names = {
        row_id: id_
        for rows in (listing, hidden)
        for row_id, id_ in zip(rows["_rowid"].to_pylist(), rows["reference_id"].to_pylist(), strict=True)
    }
    left_over = set(hidden["reference_id"].to_pylist())
    for row_id, rows in _each_readable(snapshot, list(names)):
        if rows is None:
            bad[names[row_id]] = "cannot be read"
            continue
        for id_, fault, is_lazy in _faults(rows, codec, snapshot):
            lazy += is_lazy and id_ not in left_over
            if fault:
                bad[id_] = fault
    problems = [f"reference {id_!r}: {fault}" for id_, fault in bad.items()]
    documents = 0
    for document_id, fault in _documents(listing):
        documents += 1
        if fault:
            problems.append(f"document {document_id!r}: {fault}")
    return VerifyReport(len(listing), documents, lazy, tuple(bad), tuple(problems))


def _each_readable(snapshot: Snapshot, row_ids: list[int]) -> Iterator[tuple[int, pa.Table | None]]:
    """Rows in portions; where a portion cannot be read, its rows one by one, None for the unreadable."""
    columns = [*TEXT_COLUMNS, "codes"]
    size = snapshot.portion(columns)
    for start in range(0, len(row_ids), size):
        portion = row_ids[start : start + size]
        try:
            yield portion[0], next(snapshot.take(portion, columns))
        except BankCorrupt:
            for row_id in portion:
                try:
                    yield row_id, next(snapshot.take([row_id], columns))
                except BankCorrupt:
                    yield row_id, None


def _faults(rows: pa.Table, codec: Codec, snapshot: Snapshot) -> Iterator[tuple[str, str, bool]]:
    """For each row its id, what is wrong ("" if nothing), and whether it is lazy."""
    names = ("reference_id", "document_id", "ordinal", "checksum", "codes_checksum")
    columns = [rows[name].to_pylist() for name in (*names, "token_ids", "document_references")]
    finite = np.isfinite(embeddings_of(rows)).all(axis=1).tolist()
    values = zip(*columns, finite, checksums(rows), codes_of(rows), strict=True)
    for id_, document_id, ordinal, told, codes_told, token_ids, size, is_finite, computed, record in values:
        fault = ""
        if told != computed:
            fault = "wrong checksum"
        elif id_ != f"{document_id}#{ordinal}":
            fault = f"does not belong to document {document_id!r} as number {ordinal}"
        elif ordinal < size and not snapshot.has_tokens(token_ids):  # what a shorter version left over has none
            fault = "has tokens that cannot be"
        elif not is_finite:
            fault = "has an embedding that is not finite"
        elif codes_told != (None if record is None else xxh3_64_intdigest(record)):
            fault = "wrong checksum of its memory"
        elif record is not None:
            try:
                codec.check(record)
            except CodecError as error:
                fault = str(error)
        yield id_, fault, record is None


def _documents(listing: pa.Table) -> Iterator[tuple[str, str]]:
    """For each document its id and what is wrong, "" if nothing."""
    rows: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    columns = (listing[name].to_pylist() for name in ("document_id", "ordinal", "document_references", "content_hash"))
    for document_id, ordinal, size, content_hash in zip(*columns, strict=True):
        rows[document_id].append((ordinal, size, content_hash))
    for document_id, found in rows.items():
        ordinals = sorted(ordinal for ordinal, _, _ in found)
        size = found[0][1]
        if len({(size, content_hash) for _, size, content_hash in found}) > 1:
            yield document_id, "its references come from different versions"
        elif size != len(ordinals) or ordinals != list(range(len(ordinals))):
            yield document_id, f"has {len(found)} of {size} references"
        else:
            yield document_id, ""
