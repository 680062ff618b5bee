"""A bank in RAM that finds what it is told to: the twin of the real one, for tests of reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memory3.llm import Memory3
from memory3.types import Document, Memory, Reference


@dataclass(frozen=True)
class Found:
    reference_id: str
    score: float = 0.5


class RamBank:
    """Holds the memories of texts; ``answers`` maps a query (or None: any) to the reference numbers found for it."""

    def __init__(self, m3: Memory3, texts: Sequence[str], answers: Mapping[str | None, Sequence[int]] | None = None) -> None:
        split = [r for n, text in enumerate(texts) for r in m3.split(Document(f"doc{n}", text, source=f"doc{n}.txt"))]
        self.all: dict[str, Reference] = {r.id: r for r in split}
        self.order = list(self.all)
        self.stored: dict[str, Memory] = dict(zip(self.order, m3.encode(split), strict=True)) if split else {}
        self.answers = answers
        self.queries: list[str] = []

    def search(self, queries: Sequence[str], k: int, where: Any = None) -> list[list[Found]]:
        self.queries += queries
        found = []
        for query in queries:
            if self.answers is None:  # different for every text, the same for the same
                start = sum(query.encode()) % len(self.order)
                numbers: Sequence[int] = [(start + i) % len(self.order) for i in range(min(k, len(self.order)))]
            else:
                numbers = self.answers.get(query, self.answers.get(None, ()))
            found.append([Found(self.order[i]) for i in list(numbers)[:k]])
        return found

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        return [self.stored[i] for i in reference_ids]

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        return [self.all[i] for i in reference_ids]

    def count(self, where: Any = None) -> int:
        return len(self.order)
