"""`Held`: memories at hand, for those who name what they read and search for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memory3.types import Memory, Reference

__all__ = ["Held"]


class Held:
    """A `memory3.recall.retrieval.MemorySource` of memories by id. References are named, never looked up."""

    live = True  # made of the weights as they are

    def __init__(self, memories: Mapping[str, Memory], references: Mapping[str, Reference] | None = None) -> None:
        """
        Args:
            memories: by id.
            references: by id, for those who read their text.
        """
        self._memories, self._references = memories, references or {}

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
        """Never asked.

        Args:
            queries, k, where: what a bank would be asked.

        Raises:
            AssertionError: always.
        """
        raise AssertionError("who reads these names the references")

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many memories or references there are."""
        return max(len(self._memories), len(self._references))
