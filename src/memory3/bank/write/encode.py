"""Rows with embeddings and packed memories, made in the caller's thread or by `Workers`. Knows no bank's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from memory3.bank.embedder import TextEmbedder
from memory3.bank.format.rows import BankRow, row_batch
from memory3.bank.protocol import MemoryWriter
from memory3.bank.write.workers import Workers
from memory3.codec import Codec
from memory3.encode.stopping import check_stopped

__all__ = ["EncodedRows", "RowEncoder"]

#: References that a worker on a CPU encodes in one go: so many full ones are one pass.
_AT_ONCE_ON_A_CPU = 4
#: Texts that a worker embeds before it looks whether they are still wanted.
_EMBEDDED_AT_ONCE = 16


class RowEncoder:
    """Encodes rows of one bank. References of like length are encoded together, which saves padding."""

    def __init__(
        self,
        m3: MemoryWriter,
        embedder: TextEmbedder,
        codec: Codec,
        schema: pa.Schema,
        *,
        lazy: bool,
        workers: Workers | None = None,
    ) -> None:
        """
        Args:
            m3, embedder, codec: of the bank.
            schema: of the bank's table.
            lazy: leave memories out.
            workers: who does it; None: the caller of `EncodedRows.batch`.
        """
        self.m3, self.embedder, self.codec, self.schema, self.lazy = m3, embedder, codec, schema, lazy
        self.workers = workers
        self.at_once = m3.batch_size
        if workers is not None and m3.token_vectors.device.type == "cpu":
            self.at_once = min(self.at_once, _AT_ONCE_ON_A_CPU)

    def begin(self, rows: Sequence[BankRow]) -> EncodedRows:
        """Have rows encoded; workers begin at once.

        Args:
            rows: what to encode.
        """
        return EncodedRows(self, rows)


class EncodedRows:
    """Rows that are being encoded."""

    def __init__(self, encoder: RowEncoder, rows: Sequence[BankRow]) -> None:
        self._encoder, self._rows = encoder, rows
        self._references = [row.reference for row in rows]
        self._embeddings = np.zeros((len(rows), encoder.embedder.dimension), np.float32)
        self._records: list[bytes | None] = [None] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda place: len(self._references[place].token_ids))
        size = max(1, len(rows)) if encoder.lazy else encoder.at_once
        steps = [(0, self._embed)] if rows else []
        for start in range(0, len(rows), size):
            places = by_length[start : start + size]
            steps.append((len(places), lambda places=places: self._encode(places)))  # type: ignore[misc]
        # Who has no workers does it when the batch is asked for.
        workers = encoder.workers
        self._steps = steps if workers is None else [(count, workers.submit(step)) for count, step in steps]

    def batch(self, told: Callable[[int], None] = lambda references: None) -> pa.RecordBatch:
        """The rows in their order, once they are encoded.

        Args:
            told: called by the caller's thread after each step with its number of references.
        """
        for count, done in self._steps:
            done()
            if count:
                told(count)
        return row_batch(self._rows, self._embeddings, self._records, self._encoder.schema)

    def _embed(self) -> None:
        texts, embedder = [reference.read_text for reference in self._references], self._encoder.embedder
        size = len(texts) if self._encoder.workers is None else _EMBEDDED_AT_ONCE
        for start in range(0, len(texts), size):
            check_stopped()
            self._embeddings[start : start + size] = embedder.encode(texts[start : start + size])

    def _encode(self, places: Sequence[int]) -> None:
        if self._encoder.lazy:
            return
        m3 = self._encoder.m3
        memories = m3.encode([self._references[place] for place in places])
        packed = self._encoder.codec.encode_many(memories, device=m3.token_vectors.device)
        for place, record in zip(places, packed, strict=True):
            self._records[place] = record
