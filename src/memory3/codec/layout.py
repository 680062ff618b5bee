"""The coded record: what a `Memory` says beside its vectors, and codes of some bytes a vector. Knows no quantiser.

Little endian, no padding between the parts; what a short reference leaves unused is zero.

    counts     uint16           [L*H]   pairs kept per layer and KV head; their sum p is at most P
    positions  uint8 or uint16  [P]     place of each kept token in its reference
    keys       uint8            [P, a]  codes, a bytes a key
    values     uint8            [P, b]  codes, b bytes a value
    tokens     uint16 or uint32 [S]     only where the codec predicts: the reference's tokens up to the last that is kept

Tokens take two bytes where the vocabulary has at most 65,536. Positions take one byte where references have at most 256
tokens. (A bitmap per head would take H L 128 / 8 bytes, the same for the default preset; uint16, as in the raw record, twice
that.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memory3.codec.base import Record, RecordSizes, coded_record_bytes
from memory3.codec.raw import checked_pairs
from memory3.errors import CodecError, InputError
from memory3.types import Memory, MemoryShape

__all__ = ["Coded", "Layout"]


@dataclass(frozen=True)
class Coded:
    """The pairs of some records, one record after the other.

    Attributes:
        counts: one uint16 ``[L, H]`` per record.
        positions: uint16 ``[n]``, n pairs of all records.
        heads: int64 ``[n]``: layer * H + head of each pair, in order of layers and heads.
        keys, values: uint8 ``[n, a]`` and ``[n, b]``, codes.
        tokens: uint32 ``[records, S]``; S is 0 where records have none.
    """

    counts: list[np.ndarray]
    positions: np.ndarray
    heads: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    tokens: np.ndarray

    def places(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Head and position of each pair, int64 ``[n]`` both."""
        return torch.from_numpy(self.heads).to(device), torch.from_numpy(self.positions.astype(np.int64)).to(device)

    @property
    def sizes(self) -> list[int]:
        """Pairs of each record; they add up to n."""
        return [int(each.sum(dtype=np.int64)) for each in self.counts]

    def memories(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> list[Memory]:
        """One memory per record, of decoded keys and values, one tensor ``[size, d]`` per record."""
        positions = np.split(self.positions, np.cumsum(self.sizes)[:-1])
        parts = zip(self.counts, positions, keys, values, self.tokens, strict=True)
        return [
            Memory(counts, places.copy(), k, v, _kept(places, tokens).copy() if len(tokens) else None)
            for counts, places, k, v, tokens in parts
        ]


def _kept(positions: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Tokens up to the last that is kept."""
    return tokens[: int(positions.max()) + 1 if len(positions) else 0]


@dataclass(frozen=True)
class Layout:
    """Where the parts of a record lie.

    Attributes:
        shape: of the memories.
        positions: tokens a reference may have.
        key_bytes, value_bytes: a and b, bytes of a coded vector.
        vocabulary: of the model whose tokens are kept; 0: none are.
    """

    shape: MemoryShape
    positions: int
    key_bytes: int
    value_bytes: int
    vocabulary: int = 0

    @property
    def size(self) -> int:
        """Bytes of every record."""
        shape = self.shape
        sizes = RecordSizes(shape.heads, shape.pairs, shape.head_dim, self.positions, shape.dtype, self.vocabulary)
        return coded_record_bytes(sizes, self.key_bytes, self.value_bytes, predicts=self.vocabulary > 0)

    @property
    def _place(self) -> np.dtype:
        return np.dtype("<u1" if self.positions <= 256 else "<u2")

    def pack(self, memory: Memory, keys: np.ndarray, values: np.ndarray) -> bytes:
        """A record of a memory.

        Args:
            memory: of which counts, positions and tokens are taken; it fits the shape (`places`).
            keys: codes of its keys, uint8 ``[p, a]``.
            values: codes of its values, uint8 ``[p, b]``.

        Returns:
            `size` bytes.
        """
        record = bytearray(self.size)
        parts = self._parts(record)
        tokens = np.zeros(0, np.uint32)
        if self.vocabulary and memory.tokens is not None:
            tokens = _kept(memory.positions, memory.tokens)
        for part, given in zip(parts, (memory.counts.reshape(-1), memory.positions, keys, values, tokens), strict=True):
            part[: len(given)] = given
        return bytes(record)

    def places(self, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Head (layer * H + head) and position of each pair of a memory, int64 ``[p]`` both.

        Raises:
            InputError: the memory does not fit the shape, or keeps a token beyond `positions`.
        """
        checked_pairs(memory, self.shape)
        if len(memory.positions) and int(memory.positions.max()) >= self.positions:
            raise InputError(f"a memory keeps the token at {memory.positions.max()}, references have {self.positions} at most")
        heads = np.repeat(np.arange(self.shape.heads), memory.counts.reshape(-1))
        return torch.from_numpy(heads), torch.from_numpy(memory.positions.astype(np.int64))

    def unpack(self, records: Sequence[Record]) -> Coded:
        """The pairs of records.

        Args:
            records: of `size` bytes each.

        Raises:
            CodecError: a length, a count or a position is wrong.
        """
        counts: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        keys: list[np.ndarray] = []
        values: list[np.ndarray] = []
        tokens: list[np.ndarray] = []
        for record in records:
            view = memoryview(record).cast("B")
            if view.nbytes != self.size:
                raise CodecError(f"a record has {view.nbytes} bytes, all others {self.size}")
            of_heads, *parts, of_tokens = self._parts(view)
            pairs = int(of_heads.sum(dtype=np.int64))
            if pairs > self.shape.pairs:
                raise CodecError(f"a record counts {pairs} pairs, it has at most {self.shape.pairs}")
            counts.append(of_heads.reshape(len(self.shape.layers), self.shape.kv_heads).copy())
            tokens.append(of_tokens.astype(np.uint32))
            for all_, part in zip((positions, keys, values), parts, strict=True):
                all_.append(part[:pairs])
        every = np.concatenate([each.reshape(-1) for each in counts])
        heads = np.repeat(np.tile(np.arange(self.shape.heads), len(counts)), every)
        places = np.concatenate(positions).astype(np.uint16)
        if int(places.max(initial=0)) >= self.positions:
            raise CodecError(f"a record keeps the token at {places.max()}, references have {self.positions} at most")
        return Coded(counts, places, heads, np.concatenate(keys), np.concatenate(values), np.stack(tokens))

    def _parts(self, record: bytearray | memoryview) -> list[np.ndarray]:
        """Views of a record's parts."""
        parts, start, pairs = [], 0, self.shape.pairs
        for dtype, shape in (
            (np.dtype("<u2"), (self.shape.heads,)),
            (self._place, (pairs,)),
            (np.dtype("u1"), (pairs, self.key_bytes)),
            (np.dtype("u1"), (pairs, self.value_bytes)),
            (np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4"), (self.positions if self.vocabulary else 0,)),
        ):
            part = np.frombuffer(record, dtype, int(np.prod(shape)), start).reshape(shape)
            parts.append(part)
            start += part.nbytes
        return parts
