"""Rows that are encoded in other processes or on other machines, and taken from there as if they had been made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from memory3.bank.format.rows import BankRow, row_batch
from memory3.bank.write.accept import accept
from memory3.bank.write.plan import Shard, single_shard
from memory3.bank.write.shard import EncodedShard
from memory3.codec import Codebook, Codec, CodedCodec
from memory3.errors import FingerprintMismatch, InputError

__all__ = ["EncodingShard", "RowsElsewhere", "ShardPool", "ShardRows"]


class EncodingShard(Protocol):
    """A shard on its way."""

    def is_ready(self) -> bool:
        """Whether `result` would return, or raise, without waiting."""
        ...

    def wait(self) -> None:
        """Until `result` would not wait."""
        ...

    def result(self) -> EncodedShard:
        """What came back, once it has come."""
        ...


class ShardPool(Protocol):
    """Encodes shards somewhere, each by itself. What came back is kept until it is forgotten, also by a later process.

    Attributes:
        shard_references: references of a shard, about.
        ahead: shards that may be on their way.
    """

    shard_references: int
    ahead: int

    def begin(self, shard: Shard, code_book: Codebook | None) -> EncodingShard:
        """Have a shard encoded, unless what came back before is still kept.

        Args:
            shard: from `memory3.bank.write.plan.single_shard`.
            code_book: of the bank, if its codec needs one.
        """
        ...

    def forget(self, shard_id: str) -> None:
        """Keep a shard no longer: it is committed, or what came is no good."""
        ...

    def finish(self) -> None:
        """Keep nothing any more: all is committed."""
        ...


class RowsElsewhere:
    """Has rows of one table encoded by a pool, as `memory3.bank.write.encode.RowEncoder` does it in this process."""

    def __init__(self, pool: ShardPool, bank: str, table_id: str, schema: pa.Schema, codec: Codec, *, lazy: bool) -> None:
        """
        Args:
            pool: who encodes.
            bank: the bank's manifest as JSON.
            table_id: of the table.
            schema: of the table.
            codec: of the bank.
            lazy: leave memories out.
        """
        self.pool, self.schema, self.codec = pool, schema, codec
        self.code_book = codec.codebook if isinstance(codec, CodedCodec) else None
        self._bank, self._table_id, self._lazy = bank, table_id, lazy

    def begin(self, rows: Sequence[BankRow]) -> ShardRows:
        """Have rows encoded.

        Args:
            rows: what to encode.
        """
        return ShardRows(self, single_shard(rows, self._bank, self._table_id, lazy=self._lazy))


class ShardRows:
    """Rows that are being encoded elsewhere."""

    def __init__(self, rows: RowsElsewhere, shard: Shard) -> None:
        self._of, self._shard = rows, shard
        self._is_told = False
        self._coming = rows.pool.begin(shard, rows.code_book) if shard.rows else None

    def is_ready(self) -> bool:
        """Whether `batch` would not wait."""
        return self._coming is None or self._coming.is_ready()

    def wait(self, told: Callable[[int], None]) -> None:
        """Until they have come.

        Args:
            told: called with their number, now or by `batch`, once.
        """
        if self._coming is not None:
            self._coming.wait()
            self._tell(told)

    def batch(self, told: Callable[[int], None] = lambda references: None) -> pa.RecordBatch:
        """The rows in their order, once they have come and are accepted. What is no good is encoded once more.

        Args:
            told: called with their number.
        """
        of, shard = self._of, self._shard
        if self._coming is None:
            return row_batch([], np.zeros((0, shard.manifest.dimension), np.float32), [], of.schema)
        try:
            encoded = self._accepted()
        except (InputError, FingerprintMismatch):  # a file that was damaged, or put there by others
            of.pool.forget(shard.plan)
            self._coming = of.pool.begin(shard, of.code_book)
            encoded = self._accepted()
        self._tell(told)
        return pa.record_batch(encoded.rows.columns, schema=of.schema)

    def committed(self) -> None:
        """The rows are in the table."""
        if self._coming is not None:
            self._of.pool.forget(self._shard.plan)

    def _tell(self, told: Callable[[int], None]) -> None:
        if not self._is_told:
            self._is_told = True
            told(len(self._shard.rows))

    def _accepted(self) -> EncodedShard:
        assert self._coming is not None
        encoded = self._coming.result()
        accept(self._shard, encoded, self._of.schema, self._of.codec)
        return encoded
