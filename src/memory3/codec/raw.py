"""The raw record: a `Memory` as bytes of one fixed size per bank, uncompressed. Knows no bank and no model.

Little endian, no padding between the parts; what a short reference leaves unused is zero.

    counts     uint16 [L*H]   pairs kept per layer and KV head; their sum p is at most P
    positions  uint16 [P]     place of each kept token in its reference
    keys       dtype  [P, d]
    values     dtype  [P, d]
    biases     int8   [P]     where memories have them, in steps of 1/40

docs/bank-format.md has the same with byte offsets, and a reader that does not need memory3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from memory3.codec.base import Codec, Record, RecordSizes
from memory3.codec.kinds.raw import Raw
from memory3.errors import CodecError, InputError
from memory3.types import Memory, MemoryShape

__all__ = ["RawCodec", "checked_pairs", "decode_record", "encode_record", "record_size"]

_COUNT = np.dtype("<u2")
#: Steps of a bias, to 1.
_STEPS = 40


class RawCodec(Codec):
    """Keys and values as they are. Needs no codebook."""

    name = "raw"

    def __init__(self, shape: MemoryShape) -> None:
        self.shape = shape
        self.record_size = record_size(shape)

    def encode_many(self, memories: Sequence[Memory], *, device: torch.device | str | None = None) -> list[bytes]:
        """Memories as `record_size` bytes each (`encode_record`); there is nothing to compute on a ``device``.

        Raises:
            InputError: a memory does not fit the shape.
        """
        return [encode_record(memory, self.shape) for memory in memories]

    def check(self, record: Record) -> None:
        """Raise CodecError unless ``record`` can be decoded."""
        decode_record(record, self.shape)

    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """The memories in ``records``, in order.

        Args:
            records: of `record_size` bytes each.
            device: where keys and values are wanted; on the CPU, writable records are viewed.

        Raises:
            CodecError: a record has a wrong length, or counts more than it can hold.
        """
        memories = (decode_record(record, self.shape) for record in records)
        return [
            dataclasses.replace(
                m,
                keys=m.keys.to(device),
                values=m.values.to(device),
                biases=None if m.biases is None else m.biases.to(device),
            )
            for m in memories
        ]


def record_size(shape: MemoryShape) -> int:
    """Bytes of every record of this shape."""
    return Raw().cost(RecordSizes(shape.heads, shape.pairs, shape.head_dim, 0, shape.dtype, biases=shape.biases)).record_bytes


def encode_record(memory: Memory, shape: MemoryShape) -> bytes:
    """A memory as `record_size` bytes.

    Args:
        memory: what is kept.
        shape: of all memories of the bank.

    Raises:
        InputError: the memory does not fit the shape.
    """
    pairs = checked_pairs(memory, shape)
    record = bytearray(record_size(shape))
    counts, positions, keys, values, biases = _parts(record, shape)
    counts[:] = memory.counts.reshape(-1)
    positions[:pairs] = memory.positions
    keys[:pairs] = memory.keys
    values[:pairs] = memory.values
    if memory.biases is not None:
        biases[:pairs] = (memory.biases * _STEPS).round().clamp(-127, 127)
    return bytes(record)


def decode_record(data: Record, shape: MemoryShape) -> Memory:
    """The memory in ``data``.

    Writable buffers are viewed, not copied, so the memory keeps them alive and must be their only user; read-only ones are
    copied once, since torch has no read-only tensors.

    Args:
        data: a record.
        shape: of the memory.

    Raises:
        CodecError: its length is wrong, or it counts more pairs than it can hold.
    """
    size = record_size(shape)
    view = memoryview(data).cast("B")
    if view.nbytes != size:
        raise CodecError(f"a record has {view.nbytes} bytes, all others {size}")
    counts, positions, keys, values, biases = _parts(bytearray(view) if view.readonly else view, shape)
    pairs = int(counts.sum(dtype=np.int64))
    if pairs > shape.pairs:
        raise CodecError(f"a record counts {pairs} pairs, it has at most {shape.pairs}")
    return Memory(
        counts=counts.reshape(len(shape.layers), shape.kv_heads),
        positions=positions[:pairs],
        keys=keys[:pairs],
        values=values[:pairs],
        biases=biases[:pairs].float() / _STEPS if shape.biases else None,
    )


def _parts(
    record: bytearray | memoryview, shape: MemoryShape
) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of the parts of a writable record: counts ``[L*H]``, positions ``[P]``, keys and values ``[P, d]``, and
    biases int8 ``[P]``, or ``[0]`` where memories have none.
    """
    counts = np.frombuffer(record, _COUNT, shape.heads)
    positions = np.frombuffer(record, _COUNT, shape.pairs, counts.nbytes)
    numbers = torch.frombuffer(
        record, dtype=shape.torch_dtype, count=2 * shape.pairs * shape.head_dim, offset=counts.nbytes + positions.nbytes
    )
    keys, values = numbers.view(2, shape.pairs, shape.head_dim)
    kept = shape.pairs if shape.biases else 0
    # torch takes no buffer of no bytes
    biases = torch.frombuffer(record, dtype=torch.int8, count=kept, offset=len(record) - kept) if kept else torch.empty(0)
    return counts, positions, keys, values, biases


def checked_pairs(memory: Memory, shape: MemoryShape) -> int:
    """How many pairs ``memory`` keeps; InputError if it does not fit the shape."""
    pairs = int(memory.counts.sum(dtype=np.int64))
    expected = (len(shape.layers), shape.kv_heads)
    if memory.counts.shape != expected or pairs > shape.pairs:
        raise InputError(
            f"a memory with counts {memory.counts.shape} and {pairs} pairs does not fit records of {expected} heads "
            f"and at most {shape.pairs} pairs"
        )
    if (memory.biases is not None) != shape.biases:
        has, bank = ("no biases", "them") if shape.biases else ("biases", "none")
        raise InputError(f"the memory has {has} and its bank keeps {bank}: they were made with other settings")
    if memory.positions.shape != (pairs,) or not (memory.keys.shape == memory.values.shape == (pairs, shape.head_dim)):
        raise InputError(
            f"a memory counts {pairs} pairs of {shape.head_dim} numbers, but has {memory.positions.shape} positions, "
            f"keys {tuple(memory.keys.shape)} and values {tuple(memory.values.shape)}"
        )
    return pairs
