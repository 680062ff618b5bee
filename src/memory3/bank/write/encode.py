"""Rows with embeddings and packed memories, made in the caller's thread or by `Workers`. Knows no bank's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Lock

import numpy as np
import pyarrow as pa

from memory3.bank.embedder import TextEmbedder
from memory3.bank.format.rows import BankRow, row_batch
from memory3.bank.protocol import MemoryWriter
from memory3.bank.write.workers import Workers
from memory3.codec import Codec
from memory3.encode.stopping import check_stopped
from memory3.types import Reference

__all__ = ["EncodedRows", "RowEncoder"]

#: Tokens that a worker on a CPU encodes in one go, with padding: as many as the model takes in one pass there.
_CPU_TOKENS = 512
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
        self._on_cpu = m3.token_vectors.device.type == "cpu"
        # Elsewhere batches are as large as the device's memory allows, so that one is computed at a time.
        self.encoding: AbstractContextManager[object] = nullcontext() if self._on_cpu else Lock()
        self.embedding = Lock()  # of tokenizers and of others' embedders not all may be used by two threads at once

    def lots(self, references: Sequence[Reference]) -> list[list[int]]:
        """Places of references that are encoded in one go, those of like length together.

        Args:
            references: what to encode.
        """
        lengths = [len(reference.token_ids) for reference in references]
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        most = max(1, len(references)) if self.lazy else self.m3.batch_size
        on_cpu = self.workers is not None and self._on_cpu
        lots: list[list[int]] = []
        for place in by_length:
            # With this one, the longest so far, all of its lot have its length.
            full = not lots or len(lots[-1]) >= most or (on_cpu and (len(lots[-1]) + 1) * lengths[place] > _CPU_TOKENS)
            if full:
                lots.append([])
            lots[-1].append(place)
        return lots

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
        steps = [(0, self._embed)] if rows else []
        steps += [(len(places), partial(self._encode, places)) for places in encoder.lots(self._references)]
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

    def is_ready(self) -> bool:
        """Whether `batch` is known not to wait: not of rows that are encoded here."""
        return False

    def wait(self, told: Callable[[int], None]) -> None:
        """Nothing: they are made when `batch` is asked for, or by this process's threads.

        Args:
            told: not called.
        """

    def committed(self) -> None:
        """The rows are in the table: nothing is left to be done here."""

    def _embed(self) -> None:
        texts, embedder = [reference.read_text for reference in self._references], self._encoder.embedder
        size = len(texts) if self._encoder.workers is None else _EMBEDDED_AT_ONCE
        for start in range(0, len(texts), size):
            check_stopped()
            with self._encoder.embedding:
                self._embeddings[start : start + size] = embedder.encode(texts[start : start + size])

    def _encode(self, places: Sequence[int]) -> None:
        if self._encoder.lazy:
            return
        m3 = self._encoder.m3
        with self._encoder.encoding:
            memories = m3.encode([self._references[place] for place in places])
        packed = self._encoder.codec.encode_many(memories, device=m3.token_vectors.device)
        for place, record in zip(places, packed, strict=True):
            self._records[place] = record
