"""`MemoryRecord`: a memory as it is stored, packed. What a bank hands out, and what a bank elsewhere would send."""

from __future__ import annotations

from dataclasses import dataclass

from memory3.types import Reference

__all__ = ["MemoryRecord"]


@dataclass(frozen=True)
class MemoryRecord:
    """One memory, packed by its bank's codec. Plain data: no tensor, no file. Only `MemoryReader` looks into ``data``.

    Attributes:
        reference_id, document_id: the reference it is of.
        start, end: character offsets of the reference in its document.
        token_ids: the reference's tokens.
        codec: name of the codec that packed it.
        data: the bytes; all records of a bank have the same number.
        stored_bytes: ``len(data)`` where they were read from a bank; 0 where the memory was encoded for this recall (lazy
            encoding).
    """

    reference_id: str
    document_id: str
    start: int
    end: int
    token_ids: tuple[int, ...]
    codec: str
    data: bytes
    stored_bytes: int

    @classmethod
    def of(cls, reference: Reference, data: bytes, codec: str, *, stored: bool) -> MemoryRecord:
        """The record of a reference; ``stored``: whether its bytes come from a bank.

        Args:
            reference: whose memory it is.
            data: the packed memory.
            codec: name of the codec that packed it.
            stored: whether the bytes come from a bank, and count as read from it.
        """
        return cls(
            reference_id=reference.id,
            document_id=reference.document_id,
            start=reference.start,
            end=reference.end,
            token_ids=reference.token_ids,
            codec=codec,
            data=data,
            stored_bytes=len(data) if stored else 0,
        )
