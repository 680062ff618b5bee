"""A reference as a row of the Lance table: columns, checksums, and back. Knows no disk.

Two checksums, so that texts can be checked without reading memories, which are a hundred times larger:
``codes_checksum`` covers ``codes`` and is null with them; ``checksum`` covers every other column, ``codes_checksum`` too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from memory3.bank.format.manifest import METADATA_KEY, TABLE_ID_KEY, BankManifest
from memory3.bank.format.tags import tags
from memory3.errors import BankCorrupt
from memory3.files import parse_json
from memory3.types import Reference

__all__ = [
    "FIRST_ROWS",
    "LIVE",
    "TEXT_COLUMNS",
    "BankRow",
    "are_damaged",
    "are_tombstones",
    "checksums",
    "codes_of",
    "embeddings_of",
    "origin_in",
    "references_of",
    "row_batch",
    "row_bytes",
    "row_schema",
    "tombstone",
    "with_checksums",
]

#: A row is part of its document. The others are what a shorter new version left over, between two commits (`writing`).
LIVE = "ordinal < document_references"
#: One row of each document.
FIRST_ROWS = "ordinal = 0 AND document_references > 0"

#: Every column but the large one and its companion that covers the others, in the order `checksum` reads them.
_CHECKED = (
    "reference_id",
    "document_id",
    "ordinal",
    "start",
    "end",
    "source",
    "text",
    "token_ids",
    "metadata",
    "tags",
    "content_hash",
    "document_references",
    "embedding",
    "codes_checksum",
)
#: A row without record and embedding has about as many bytes: text, tokens, names.
_OTHER_BYTES = 2048
#: What is read to give back references and check them.
TEXT_COLUMNS = (*_CHECKED, "checksum")


@dataclass(frozen=True)
class BankRow:
    """What a row says beyond its memory: the reference, its document's hash, origin and number of references."""

    reference: Reference
    content_hash: str
    document_references: int
    origin: str = ""


def row_schema(manifest: BankManifest, table_id: str = "") -> pa.Schema:
    """Columns of a bank. Records are stored unpacked ("fullzip"): they do not compress, and random reads are faster.

    Args:
        manifest: says the sizes of embeddings and records.
        table_id: of the table, kept in the schema's metadata.
    """
    unpacked = {b"lance-encoding:structural-encoding": b"fullzip"}
    return pa.schema(
        [
            pa.field("reference_id", pa.string(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("tags", pa.list_(pa.string()), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("document_references", pa.int32(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), manifest.dimension), nullable=False),
            pa.field("codes", pa.binary(manifest.record_bytes), nullable=True, metadata=unpacked),
            pa.field("codes_checksum", pa.uint64(), nullable=True),
            pa.field("checksum", pa.uint64(), nullable=False),
        ],
        metadata={METADATA_KEY: manifest.to_json().encode(), TABLE_ID_KEY: table_id.encode()},
    )


def row_bytes(manifest: BankManifest) -> int:
    """About how many bytes a row takes in RAM, with or without a record: Arrow keeps as much room for one that is missing."""
    return manifest.record_bytes + 4 * manifest.dimension + _OTHER_BYTES


def row_batch(
    rows: Sequence[BankRow], embeddings: np.ndarray, records: Sequence[bytes | None], schema: pa.Schema
) -> pa.RecordBatch:
    """Rows with their embeddings and records as one Arrow batch, with checksums.

    Args:
        rows: one per reference.
        embeddings: float32 ``[n, dimension]``.
        records: encoded memories, None where one is still to be made.
        schema: what `row_schema` gave.
    """
    references = [row.reference for row in rows]
    columns: dict[str, object] = {
        "reference_id": [r.id for r in references],
        "document_id": [r.document_id for r in references],
        "ordinal": [r.ordinal for r in references],
        "start": [r.start for r in references],
        "end": [r.end for r in references],
        "source": [r.source for r in references],
        "text": [r.text for r in references],
        "token_ids": [r.token_ids for r in references],
        "metadata": [json.dumps(dict(r.metadata), sort_keys=True) for r in references],
        "tags": [_tags(row) for row in rows],
        "content_hash": [row.content_hash for row in rows],
        "document_references": [row.document_references for row in rows],
        "codes": records,
        "codes_checksum": [None if record is None else xxh3_64_intdigest(record) for record in records],
    }
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    flat = pa.array(np.ascontiguousarray(embeddings, dtype=np.float32).reshape(-1))
    arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, schema.field("embedding").type.list_size)
    return with_checksums(arrays, schema)


def _tags(row: BankRow) -> list[str]:
    """Tags to filter on, and with a document's first row its origin: a JSON object, which no filter can ask for."""
    own = tags(row.reference.metadata)
    return [*own, json.dumps({"origin": row.origin})] if row.origin and not row.reference.ordinal else own


def origin_in(row_tags: Sequence[str]) -> str:
    """The origin that a document's first row carries among its tags; "" where nobody kept it."""
    for item in row_tags:
        if item.startswith('{"origin"'):
            try:
                return str(parse_json(item)["origin"])
            except (ValueError, KeyError, TypeError):
                return ""  # a damaged row, which reading refuses
    return ""


def with_checksums(columns: dict[str, pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """All columns of a row batch but ``checksum``, completed by it.

    Args:
        columns: by name; ``checksum`` is added to it.
        schema: what `row_schema` gave.
    """
    checked = pa.table({name: columns[name] for name in _CHECKED})
    columns["checksum"] = pa.array(checksums(checked), pa.uint64())
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def tombstone(document_id: str, ordinal: int, document_references: int) -> BankRow:
    """A row that is no longer part of its document: it takes the place of an old row until it is deleted.

    Args:
        document_id: of the document.
        ordinal: number of the row in it.
        document_references: references that the document has now.
    """
    reference = Reference(f"{document_id}#{ordinal}", document_id, ordinal, 0, 0, "", ())
    return BankRow(reference, "", document_references)


def are_damaged(rows: pa.Table) -> list[bool]:
    """Which rows are not what their checksums were taken of, those of their memories too where these were read."""
    told = rows["checksum"].to_pylist()
    damaged = [one != other for one, other in zip(told, checksums(rows), strict=True)]
    if "codes" not in rows.column_names:
        return damaged
    computed = (None if record is None else xxh3_64_intdigest(record) for record in codes_of(rows))
    pairs = zip(damaged, rows["codes_checksum"].to_pylist(), computed, strict=True)
    return [is_damaged or one != other for is_damaged, one, other in pairs]


def are_tombstones(rows: pa.Table) -> list[bool]:
    """Which rows are what `tombstone` made, and undamaged."""
    hashes, told = (rows[name].to_pylist() for name in ("content_hash", "checksum"))
    return [not hash_ and one == other for hash_, one, other in zip(hashes, told, checksums(rows), strict=True)]


def checksums(rows: pa.Table) -> list[int]:
    """xxh3_64 of every row: for each checked column its bytes, after their number as 8 bytes."""
    digests = []
    for pieces in zip(*(_column_bytes(rows, name) for name in _CHECKED), strict=True):
        digests.append(xxh3_64_intdigest(b"".join(len(piece).to_bytes(8, "little") + piece for piece in pieces)))
    return digests


def _column_bytes(rows: pa.Table, name: str) -> Iterable[bytes]:
    """The bytes of a column that its rows' checksums cover: UTF-8, 8-byte integers, little-endian arrays, JSON for tags."""
    if name == "embedding":
        return (vector.tobytes() for vector in embeddings_of(rows))
    if name == "token_ids":
        return (np.asarray(ids, "<i4").tobytes() for ids in rows[name].to_pylist())
    if name == "tags":
        return (json.dumps(items).encode() for items in rows[name].to_pylist())
    if pa.types.is_string(rows.schema.field(name).type):
        return (text.encode() for text in rows[name].to_pylist())
    # Modulo 2^64: a damaged row may have numbers below zero.
    return (b"" if number is None else (number % 2**64).to_bytes(8, "little") for number in rows[name].to_pylist())


def embeddings_of(rows: pa.Table) -> np.ndarray:
    """float32 ``[n, dimension]``."""
    column = rows["embedding"].combine_chunks()
    width = column.type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def codes_of(rows: pa.Table) -> list[memoryview | None]:
    """The records, as views of Arrow's memory, None where there is none yet."""
    views: list[memoryview | None] = []
    for chunk in rows["codes"].chunks:
        size = chunk.type.byte_width
        data = memoryview(chunk.buffers()[1] or b"").cast("B")
        for row, present in enumerate(chunk.is_valid().to_pylist()):
            place = (chunk.offset + row) * size
            views.append(data[place : place + size] if present else None)
    return views


def references_of(rows: pa.Table) -> list[Reference]:
    """The references that rows were made of. BankCorrupt where a row is none: check the `checksums` first."""
    return [
        Reference(
            id=row["reference_id"],
            document_id=row["document_id"],
            ordinal=row["ordinal"],
            start=row["start"],
            end=row["end"],
            text=row["text"],
            token_ids=tuple(row["token_ids"]),
            source=row["source"],
            metadata=_metadata(row),
        )
        for row in rows.select([name for name in _CHECKED if name != "embedding"]).to_pylist()
    ]


def _metadata(row: dict[str, Any]) -> dict[str, str | int | float | bool]:
    try:
        found = parse_json(row["metadata"])
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise BankCorrupt(
        f"the metadata of reference {row['reference_id']!r} cannot be read: delete its document and write it again",
        [row["reference_id"]],
    )
