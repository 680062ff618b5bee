"""Rows that come from elsewhere: taken only if they are the very rows that were asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from memory3.bank.format.rows import codes_of, embeddings_of, row_batch
from memory3.bank.write.plan import Shard
from memory3.bank.write.shard import EncodedShard
from memory3.codec import Codec
from memory3.errors import CodecError, FingerprintMismatch, InputError

__all__ = ["accept"]


def accept(shard: Shard, encoded: EncodedShard, schema: pa.Schema, codec: Codec) -> None:
    """Compare an encoded shard with what it should be, value by value but for embeddings and memories.

    The rows are made anew of the shard's own texts, so nothing was altered on the way. Of embeddings and memories it is
    known that they can be read, and not whose they are.

    Args:
        shard: as it was planned.
        encoded: what came.
        schema: of the bank's table.
        codec: of the bank.

    Raises:
        InputError: its rows are not the shard's, or are damaged.
        FingerprintMismatch: it was encoded by another model or with other settings.
    """
    planned, made_for = shard.manifest, encoded.manifest
    if made_for.fingerprint != planned.fingerprint:
        raise FingerprintMismatch(planned.fingerprint, made_for.fingerprint, f"shard {shard.number} is of the second")
    if made_for != planned:
        raise InputError(f"shard {shard.number} was encoded for a bank of other settings than the plan's: encode it again")
    rows = encoded.rows
    if not rows.schema.equals(schema) or len(rows) != len(shard.new):
        raise InputError(f"shard {shard.number} has other columns or rows than the plan's: encode it again")
    table = pa.Table.from_batches([rows])
    records = [None if code is None else bytes(code) for code in codes_of(table)] if len(rows) else []
    embeddings = embeddings_of(table)
    if not row_batch(shard.new, embeddings, records, schema).equals(rows) or not bool(np.isfinite(embeddings).all()):
        raise InputError(f"shard {shard.number} is damaged, or was made of other texts than the plan's: encode it again")
    if any((record is None) != shard.lazy for record in records):
        raise InputError(
            f"shard {shard.number} {'has' if shard.lazy else 'lacks'} memories, the plan says otherwise: encode it again"
        )
    for record in records:
        if record is not None:
            try:
                codec.check(record)
            except CodecError as error:
                raise InputError(f"shard {shard.number} has a memory that cannot be: {error}") from error
