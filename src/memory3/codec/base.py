"""What every codec does: memories to records of one fixed size, and back. Knows no bank and no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from memory3.types import Memory, MemoryShape

__all__ = ["Codec", "Record"]

Record = bytes | bytearray | memoryview


class Codec(ABC):
    """Writes memories of one shape as bytes, and reads them.

    Attributes:
        name: as `MemoryConfig.codec` says it.
        shape: of every memory.
        record_size: bytes of every record.
    """

    name: str
    shape: MemoryShape
    record_size: int

    @abstractmethod
    def encode(self, memory: Memory) -> bytes:
        """``memory`` as `record_size` bytes. A memory that does not fit the shape is the caller's mistake: InputError."""

    @abstractmethod
    def check(self, record: Record) -> None:
        """Raise BankCorrupt unless ``record`` can be decoded."""

    @abstractmethod
    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """The memories in ``records``, in order, their keys and values on ``device`` in the shape's dtype.

        Wrong lengths and counts raise BankCorrupt.
        """
