"""The coded record: what a `Memory` says beside its vectors, and codes of some bytes a vector. Knows no quantiser.

Little endian, no padding between the parts; what a short reference leaves unused is zero.

    counts     uint16           [L*H]   pairs kept per layer and KV head; their sum p is at most P
    positions  uint8 or uint16  [P]     place of each kept token in its reference
    keys       uint8            [P, a]  codes, a bytes a key
    values     uint8            [P, b]  codes, b bytes a value

Positions take one byte where references have at most 256 tokens. (A bitmap per head would take H L 128 / 8 bytes, the same for the default
preset; uint16, as in the raw record, twice that.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memory3.codec.base import Record
from memory3.codec.raw import checked_pairs
from memory3.errors import BankCorrupt, InputError
from memory3.values import Memory, MemoryShape

__all__ = ["Coded", "Layout"]


@dataclass(frozen=True)
class Coded:
    """The pairs of some records, one record after the other.

    Attributes:
        counts: one uint16 ``[L, H]`` per record.
        positions: uint16 ``[n]``, n pairs of all records.
        heads: int64 ``[n]``: layer * H + head of each pair, in order of layers and heads.
        keys, values: uint8 ``[n, a]`` and ``[n, b]``, codes.
    """

    counts: list[np.ndarray]
    positions: np.ndarray
    heads: np.ndarray
    keys: np.ndarray
    values: np.ndarray

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
        parts = zip(self.counts, positions, keys, values, strict=True)
        return [Memory(counts, places.copy(), k, v) for counts, places, k, v in parts]


@dataclass(frozen=True)
class Layout:
    """Where the parts of a record lie.

    Attributes:
        shape: of the memories.
        positions: tokens a reference may have.
        key_bytes, value_bytes: a and b, bytes of a coded vector.
    """

    shape: MemoryShape
    positions: int
    key_bytes: int
    value_bytes: int

    @property
    def size(self) -> int:
        """Bytes of every record."""
        return 2 * self.shape.heads + self.shape.pairs * (self._place.itemsize + self.key_bytes + self.value_bytes)

    @property
    def _place(self) -> np.dtype:
        return np.dtype("<u1" if self.positions <= 256 else "<u2")

    def pack(self, memory: Memory, keys: np.ndarray, values: np.ndarray) -> bytes:
        """A record of ``memory`` with the codes of its keys, uint8 ``[p, a]``, and of its values, uint8 ``[p, b]``."""
        record = bytearray(self.size)
        parts = self._parts(record)
        for part, given in zip(parts, (memory.counts.reshape(-1), memory.positions, keys, values), strict=True):
            part[: len(given)] = given
        return bytes(record)

    def places(self, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Head (layer * H + head) and position of each pair, int64 ``[p]`` both. A memory that does not fit raises InputError."""
        checked_pairs(memory, self.shape)
        if len(memory.positions) and int(memory.positions.max()) >= self.positions:
            raise InputError(f"a memory keeps the token at {memory.positions.max()}, references have {self.positions} at most")
        heads = np.repeat(np.arange(self.shape.heads), memory.counts.reshape(-1))
        return torch.from_numpy(heads), torch.from_numpy(memory.positions.astype(np.int64))

    def unpack(self, records: Sequence[Record]) -> Coded:
        """The pairs of ``records``. Wrong lengths and counts raise BankCorrupt."""
        counts: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        keys: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for record in records:
            view = memoryview(record).cast("B")
            if view.nbytes != self.size:
                raise BankCorrupt(
                    f"a record has {view.nbytes} bytes, this bank's have {self.size}: check it with `memory3 verify`"
                )
            of_heads, *parts = self._parts(view)
            pairs = int(of_heads.sum(dtype=np.int64))
            if pairs > self.shape.pairs:
                raise BankCorrupt(
                    f"a record counts {pairs} pairs, this bank's have at most {self.shape.pairs}: check it with `memory3 verify`"
                )
            counts.append(of_heads.reshape(len(self.shape.layers), self.shape.kv_heads).copy())
            for all_, part in zip((positions, keys, values), parts, strict=True):
                all_.append(part[:pairs])
        every = np.concatenate([each.reshape(-1) for each in counts])
        heads = np.repeat(np.tile(np.arange(self.shape.heads), len(counts)), every)
        joined = (np.concatenate(part) for part in (keys, values))
        return Coded(counts, np.concatenate(positions).astype(np.uint16), heads, *joined)

    def _parts(self, record: bytearray | memoryview) -> list[np.ndarray]:
        """Views of a record's four parts."""
        parts, start, pairs = [], 0, self.shape.pairs
        for dtype, shape in (
            (np.dtype("<u2"), (self.shape.heads,)),
            (self._place, (pairs,)),
            (np.dtype("u1"), (pairs, self.key_bytes)),
            (np.dtype("u1"), (pairs, self.value_bytes)),
        ):
            part = np.frombuffer(record, dtype, int(np.prod(shape)), start).reshape(shape)
            parts.append(part)
            start += part.nbytes
        return parts
