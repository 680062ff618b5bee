"""Memories and references at hand, as scoring and recall read a bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memory3.codec import Codec
from memory3.types import Memory, Reference

__all__ = ["Decoded", "Held"]


class Held:
    """A `memory3.recall.retrieval.MemorySource` of memories by id. References are named, never looked up."""

    live = True  # made of the weights as they are

    def __init__(self, references: Mapping[str, Reference], memories: Mapping[str, Memory]) -> None:
        """Hold these.

        Args:
            references: by id.
            memories: by id.
        """
        self._references, self._memories = references, memories

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> Sequence[Memory]:
        """Memories, in order.

        Args:
            reference_ids: in any order.
            use_cache: makes no difference.
            device: makes none: laying them out moves them.
        """
        return [self._memories[name] for name in reference_ids]

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """The references of these ids, in order."""
        return [self._references[name] for name in reference_ids]

    def search(self, queries: Sequence[str], k: int, where: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """Never asked."""
        raise AssertionError("a check names the references it reads")

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many references there are."""
        return len(self._references)


class Decoded(Held):
    """The same of packed records, each decoded anew every time it is read."""

    def __init__(self, references: Mapping[str, Reference], records: Mapping[str, bytes], codec: Codec) -> None:
        """Hold records.

        Args:
            references: by id.
            records: by id, as ``codec`` packed them.
            codec: decodes them.
        """
        super().__init__(references, {})
        self._records, self._codec = records, codec

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> Sequence[Memory]:
        """Memories, in order, decoded now.

        Args:
            reference_ids: in any order.
            use_cache: makes no difference.
            device: where keys and values are made; None: the CPU.
        """
        return self._codec.decode([bytearray(self._records[name]) for name in reference_ids], device=device or "cpu")
