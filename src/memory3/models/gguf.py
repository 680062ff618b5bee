"""Reads a GGUF file: its metadata, and its tensors in float32.

Written here because the ``gguf`` package needs ten seconds for a vocabulary of 49,152 tokens, and a user meets this code on
the first run. Only the three tensor types of the default model are known. Knows nothing of architectures: see `convert`.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks: ggml-common.h, `block_q4_1` and `block_q8_0`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from memory3.errors import ModelError

__all__ = ["GGUF"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK = 32  # values per quantised block
_Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("nibbles", "u1", _BLOCK // 2)])
_Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", _BLOCK)])


class GGUF:
    """A GGUF file held in memory.

    Attributes:
        metadata: every key of the header; arrays are lists.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        try:
            if self._take("4s") != b"GGUF" or self._take("I") not in (2, 3):
                raise ModelError("not a GGUF file of version 2 or 3")
            tensors, keys = self._take("Q"), self._take("Q")
            self.metadata: dict[str, Any] = {self._string(): self._value(self._take("I")) for _ in range(keys)}
            self._tensors = dict(self._tensor_info() for _ in range(tensors))
        except (struct.error, UnicodeDecodeError) as error:
            raise ModelError(f"the GGUF header is damaged near byte {self._at}: {error}") from error
        alignment = self.metadata.get("general.alignment", 32)
        self._start = -(-self._at // alignment) * alignment

    def __len__(self) -> int:
        return len(self._tensors)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and float32 values of each tensor, slowest axis first, as torch counts axes."""
        for name, (shape, kind, offset) in self._tensors.items():
            try:
                yield name, self._values(kind, math.prod(shape), self._start + offset).reshape(shape)
            except ValueError as error:
                raise ModelError(f"tensor {name} reaches beyond the end of the GGUF file: {error}") from error

    def _values(self, kind: int, count: int, offset: int) -> np.ndarray:
        if kind == _F32:
            return np.frombuffer(self._data, "<f4", count, offset)
        blocks = count // _BLOCK
        if kind == _Q8_0:
            raw = np.frombuffer(self._data, _Q8_0_BLOCK, blocks, offset)
            return raw["scale"].astype(np.float32)[:, None] * raw["values"].astype(np.float32)
        if kind == _Q4_1:
            raw = np.frombuffer(self._data, _Q4_1_BLOCK, blocks, offset)
            quants = np.concatenate([raw["nibbles"] & 0x0F, raw["nibbles"] >> 4], axis=1).astype(np.float32)
            return raw["scale"].astype(np.float32)[:, None] * quants + raw["minimum"].astype(np.float32)[:, None]
        raise ModelError(f"GGUF tensor type {kind} is not supported: only F32 (0), Q4_1 (3) and Q8_0 (8) are")

    def _take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        return self._take(f"{self._take('Q')}s").decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind, length = self._take("I"), self._take("Q")
            return [self._value(kind) for _ in range(length)]
        if kind not in _SCALARS:
            raise ModelError(f"the GGUF header holds an unknown value type {kind} near byte {self._at}")
        return self._take(_SCALARS[kind])

    def _tensor_info(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self._string()
        axes = [self._take("Q") for _ in range(self._take("I"))]
        return name, (tuple(reversed(axes)), self._take("I"), self._take("Q"))
