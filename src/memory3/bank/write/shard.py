"""One shard encoded: rows with embeddings and packed memories.

Depends on the shard, the model and the embedder alone; knows no bank's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from memory3.bank.codebooks import cached_codebook
from memory3.bank.embedder import Embedder, TextEmbedder
from memory3.bank.format.manifest import METADATA_KEY, BankManifest
from memory3.bank.format.rows import row_schema
from memory3.bank.protocol import MemoryWriter
from memory3.bank.write.encode import RowEncoder
from memory3.bank.write.plan import Shard
from memory3.bank.write.workers import working
from memory3.codec import Codebook, Codec, CodedCodec, RawCodec
from memory3.errors import BankError, ConfigError, InputError
from memory3.files import parse_json, read_bounded, write_atomically

__all__ = ["EncodedShard", "encode_shard"]

_KEY = b"memory3.shard"
_MOST_BYTES = 1 << 32


@dataclass(frozen=True, eq=False)
class EncodedShard:
    """The rows of a shard as they are put into the bank.

    Attributes:
        plan, number: which shard of which plan.
        rows: those that were encoded, in the shard's order, in the columns of the bank (docs/bank-format.md). The schema
            carries the manifest of the bank that they were made for.
    """

    plan: str
    number: int
    rows: pa.RecordBatch

    @cached_property
    def manifest(self) -> BankManifest:
        """What the rows were made for: model, settings, embedder and codec."""
        return BankManifest.from_json((self.rows.schema.metadata or {}).get(METADATA_KEY, b""))

    @property
    def fingerprint(self) -> str:
        """Of the model and the settings that encoded it."""
        return self.manifest.fingerprint

    def to_bytes(self) -> bytes:
        """The rows as an Arrow IPC stream, to be sent or kept; the schema's metadata names the plan and the shard's number."""
        mark = json.dumps({"plan": self.plan, "number": self.number}).encode()
        schema = self.rows.schema.with_metadata({**(self.rows.schema.metadata or {}), _KEY: mark})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(pa.record_batch(self.rows.columns, schema=schema))
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> EncodedShard:
        """Inverse of `to_bytes`. InputError where the bytes are no encoded shard."""
        try:
            with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
                (batch,) = stream
            batch.validate(full=True)
            metadata = dict(batch.schema.metadata or {})
            mark = parse_json(metadata.pop(_KEY))
            rows = pa.record_batch(batch.columns, schema=batch.schema.with_metadata(metadata))
            shard = cls(str(mark["plan"]), int(mark["number"]), rows)
            shard.manifest  # noqa: B018 (raises where it is none)
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, BankError) as error:
            raise InputError(f"this is no encoded shard ({error!s:.200}): encode it again, or copy it anew") from error
        return shard

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all."""
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EncodedShard:
        """Inverse of `save`."""
        return cls.from_bytes(read_bounded(Path(path), _MOST_BYTES))


def encode_shard(
    m3: MemoryWriter,
    shard: Shard,
    *,
    embedder: TextEmbedder | None = None,
    code_book: Codebook | None = None,
    told: Callable[[int], None] = lambda references: None,
) -> EncodedShard:
    """Encode a shard. It takes as long as encoding does; the bank may lie on another machine.

    Args:
        m3: the model, with the settings, that the bank was written with.
        shard: see `Shard`.
        embedder: the bank's; by default it is loaded by name, which takes seconds: give it where you encode several.
        code_book: the bank's (`WritePlan.code_book`), where its codec needs one; by default what `memory3 calibrate` keeps
            in the cache folder.
        told: called now and then with the number of references that were encoded since.

    Raises:
        FingerprintMismatch: the shard was planned for another model or other settings.
        ConfigError: for another embedder or codebook.
    """
    manifest = shard.manifest
    manifest.require(m3)
    embedder = embedder if embedder is not None else Embedder.load(manifest.embedder)
    manifest.require_embedder(embedder.name, embedder.dimension)
    codec = _codec(m3, manifest, code_book)
    schema = row_schema(manifest, shard.table_id)
    with working(m3, lazy=shard.lazy) as workers:
        rows = RowEncoder(m3, embedder, codec, schema, lazy=shard.lazy, workers=workers).begin(shard.new).batch(told)
    return EncodedShard(shard.plan, shard.number, rows)


def _codec(m3: MemoryWriter, manifest: BankManifest, book: Codebook | None) -> Codec:
    if manifest.codec == "raw":
        return RawCodec(manifest.shape)
    book = book or cached_codebook(manifest.codec, manifest.fingerprint)
    if book is None or book.fingerprint != manifest.code_book:
        raise ConfigError(
            f"the bank's codebook is {manifest.code_book}, {'none' if book is None else book.fingerprint} is at hand: "
            "give encode_shard the plan's, code_book=plan.code_book"
        )
    return CodedCodec(book).with_vectors(m3.token_vectors)
