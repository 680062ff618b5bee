"""The raw record: bytes both ways, its frozen layout, and damaged bytes."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_writer import SHAPE, HashingWriter, same_memory
from golden import golden_memory

from memory3.codec.raw import decode_record, encode_record, record_size
from memory3.errors import CodecError, InputError
from memory3.types import Memory, MemoryShape, Reference

GOLDEN = Path(__file__).parent / "data" / "record-v1.hex"


def test_golden_bytes():
    """Format version 1. If this fails, banks on people's disks cannot be read any more."""
    golden = bytes.fromhex(GOLDEN.read_text())
    assert encode_record(golden_memory(), SHAPE) == golden
    assert same_memory(decode_record(golden, SHAPE), golden_memory())


def test_golden_bytes_read_by_hand():
    """The offsets that docs/bank-format.md states, without memory3's reader."""
    golden = bytes.fromhex(GOLDEN.read_text())
    assert len(golden) == 2 * 6 + 2 * 7 + 2 * 7 * 5 + 2 * 7 * 5 == record_size(SHAPE)
    assert struct.unpack_from("<6H", golden, 0) == (1, 0, 2, 1, 0, 0)
    assert struct.unpack_from("<7H", golden, 12) == (3, 1, 2, 127, 0, 0, 0)
    assert struct.unpack_from("<35e", golden, 26) == (*range(20), *[0] * 15)
    assert struct.unpack_from("<35e", golden, 96) == (*[-n / 4 for n in range(20)], *[0] * 15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("pairs", [7, 11])
def test_round_trip(dtype, pairs):
    shape = MemoryShape(layers=(0, 2, 3), kv_heads=2, head_dim=5, pairs=pairs, dtype=dtype)
    writer = HashingWriter(shape)
    for number in range(50):
        memory = writer.memory(Reference("d#0", "d", 0, 0, 0, f"text {number}", ()))
        record = encode_record(memory, shape)
        assert len(record) == record_size(shape)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of read-only buffers
            for data in (record, bytearray(record), memoryview(record)):
                decoded = decode_record(data, shape)
                assert same_memory(decoded, memory)
                assert decoded.keys.dtype == shape.torch_dtype


def test_a_writable_buffer_is_viewed_and_a_read_only_one_is_not():
    record = bytearray(encode_record(golden_memory(), SHAPE))
    viewed, copied = decode_record(record, SHAPE), decode_record(bytes(record), SHAPE)
    record[26:28] = struct.pack("<e", 9.0)
    assert viewed.keys[0, 0] == 9.0
    assert copied.keys[0, 0] == 0.0


@pytest.mark.parametrize("length", [0, 1, 165, 167])
def test_wrong_length(length):
    with pytest.raises(CodecError, match=f"{length} bytes.*166"):
        decode_record(bytes(length), SHAPE)


def test_counts_beyond_the_record():
    record = bytearray(encode_record(golden_memory(), SHAPE))
    struct.pack_into("<H", record, 10, 65535)
    with pytest.raises(CodecError, match=r"65539 pairs.*at most 7"):
        decode_record(record, SHAPE)


def test_any_bytes_decode_or_are_refused():
    rng = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(rng.integers(0, 256, record_size(SHAPE), dtype=np.uint8).tobytes())
        data[:12] = rng.integers(0, 3, 6).astype("<u2").tobytes()
        try:
            memory = decode_record(data, SHAPE)
        except CodecError:
            continue
        assert int(memory.counts.sum()) == len(memory.positions) == len(memory.keys) <= SHAPE.pairs


@pytest.mark.parametrize(
    "change",
    [
        {"counts": np.array([[1, 0], [2, 1]], np.uint16)},
        {"counts": np.array([[1, 0], [2, 9], [0, 0]], np.uint16)},
        {"positions": np.zeros(3, np.uint16)},
        {"keys": torch.zeros(4, 6, dtype=torch.float16)},
        {"values": torch.zeros(3, 5, dtype=torch.float16)},
    ],
    ids=["heads", "too many", "positions", "width", "rows"],
)
def test_a_memory_that_does_not_fit(change):
    with pytest.raises(InputError):
        encode_record(Memory(**{**vars(golden_memory()), **change}), SHAPE)


def test_sizes_of_the_design():
    """1440 pairs of SmolLM2 in fp16 are about 370 KB."""
    assert record_size(MemoryShape(tuple(range(30)), 3, 64, 1440)) == 180 + 2880 + 2 * 1440 * 64 * 2 == 371_700
