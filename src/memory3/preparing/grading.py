"""Documents graded by a judge, and those with the best grades kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.batching import batched

from memory3.bank.embedder import Embedder, TextEmbedder
from memory3.preparing.documents import LinesWriter
from memory3.preparing.processes import one_thread
from memory3.preparing.quality import Judge, judged_part

__all__ = ["Best", "Grading", "embedder", "least_grade"]

_BATCH = 32


@cache
def embedder(name: str) -> TextEmbedder:
    """Loaded once in a process, on the CPU: the same grades everywhere."""
    return Embedder.load(name, device="cpu")


class Grading(PipelineStep):
    """Writes the grades of a task's documents, float64 ``[documents]``, in their order."""

    type, name = "prepare", "grading"

    def __init__(self, judge: Path, folder: Path) -> None:
        """
        Args:
            judge: what was fitted (`Judge.save`).
            folder: for the grades.
        """
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._judge, self._folder = judge, folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents as they come."""
        judge = Judge.load(self._judge)
        grades: list[np.ndarray] = [np.zeros(0)]
        for batch in batched(data, _BATCH):
            with one_thread():
                grades.append(judge.grades(embedder(judge.embedder).encode([judged_part(one.text) for one in batch])))
            yield from batch
        np.save(self._folder / f"{rank:05d}.npy", np.concatenate(grades))


def least_grade(grades: Sequence[np.ndarray], keep_best: float) -> float:
    """The grade from which on documents are kept: so many that at least the given share is left.

    Args:
        grades: of each task's documents, float64.
        keep_best: share, 0 to 1.
    """
    everything = np.sort(np.concatenate(grades))[::-1]
    number = math.ceil(round(keep_best * len(everything), 6))
    return math.inf if number == 0 else float(everything[number - 1])


class Best(BaseFilter):
    """Removes documents whose grade is below one."""

    name = "quality"

    def __init__(self, grades: Path, least: float, removed: Path) -> None:
        """
        Args:
            grades: folder that `Grading` wrote.
            least: grade that is kept.
            removed: folder for what is removed.
        """
        super().__init__(LinesWriter(removed))
        self._folder, self._least = grades, least
        self._grades: list[float] = []

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents of a task that are left."""
        self._grades = np.load(self._folder / f"{rank:05d}.npy", allow_pickle=False).tolist()[::-1]
        return super().run(data, rank, world_size)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document stays: asked in the order in which they were graded."""
        return True if self._grades.pop() >= self._least else (False, "grade too low")
