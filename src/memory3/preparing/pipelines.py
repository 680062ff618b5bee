"""Which steps a stage of the work has. A task builds its own, so nothing but numbers and names goes to other processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from memory3.preparing import duplicates
from memory3.preparing.documents import LinesWriter, StoredLines
from memory3.preparing.duplicates import KeptOfGroups, NearDuplicates
from memory3.preparing.extraction import Extraction
from memory3.preparing.grading import Best, Grading
from memory3.preparing.language import Language
from memory3.preparing.personal import Personal
from memory3.preparing.processes import tell_read
from memory3.preparing.reading import Marks, Reading
from memory3.preparing.rules import Rules
from memory3.preparing.settings import PrepareSettings
from memory3.preparing.tasks import StageTasks

__all__ = ["PASSES", "Pass"]

#: In order: what is told of each while it runs.
PASSES = {
    "read": "reading",
    "signatures": "near-duplicates: signatures",
    "buckets": "near-duplicates: comparing",
    "groups": "near-duplicates: groups",
    "grading": "grading",
    "write": "writing",
}


@dataclass(frozen=True)
class Pass:
    """One pass over the documents, or over what is known of them. Called with the number of a task, it does that task.

    Attributes:
        name: of `PASSES`.
        work: the folder of the work.
        settings: of the preparation.
        tasks: of the reading; a pass over documents has as many.
        least: grade that is kept, once it is known.
    """

    name: str
    work: Path
    settings: PrepareSettings
    tasks: int
    least: float = 0.0

    @property
    def count(self) -> int:
        """How many tasks it has."""
        return {"buckets": duplicates.BUCKETS, "groups": 1}.get(self.name, self.tasks)

    @property
    def log(self) -> Path:
        """Folder for what is done."""
        return self.work / "log" / self.name

    def __call__(self, task: int) -> None:
        """Do a task, unless it is done."""
        steps = {"read": self._read, "grading": self._grading, "write": self._write}.get(self.name, self._compare)()
        StageTasks(steps, self.count, self.log, self._written()).run_task(task)

    def _removed(self, stage: str) -> Path:
        return self.work / "removed" / stage

    def _written(self) -> Sequence[Path]:
        """Where files lie that the steps do not bring to the disk themselves."""
        names = {"read": ("marks",), "grading": ("grades",), "write": ()}.get(self.name, (self.name,))
        return [self.work / name for name in names]

    def _read(self) -> list[PipelineStep]:
        asked, work = self.settings, self.work
        steps: list[PipelineStep] = [Reading(work / "shards", work / "notes", asked, tell_read)]
        if asked.has("extraction"):
            steps.append(Extraction(self._removed("extraction")))
        if asked.has("language"):
            steps.append(Language(asked.languages, asked.language_threshold, self._removed("language")))
        if asked.has("rules"):
            steps.append(Rules(asked, self._removed("rules")))
        return [*steps, Marks(work / "marks"), LinesWriter(work / "read")]

    def _stored(self) -> PipelineStep:
        return StoredLines(self.work / "read", self.work / "same")

    def _compare(self) -> list[PipelineStep]:
        if self.name == "signatures":
            return [self._stored(), duplicates.signatures(self.work / "signatures")]
        if self.name == "buckets":
            return [duplicates.buckets(self.work / "signatures", self.work / "buckets")]
        return [duplicates.groups(self.work / "buckets", self.work / "groups")]

    def _unique(self, removed: Path | None) -> list[PipelineStep]:
        return [NearDuplicates(self.work / "groups", removed)] if self.settings.has("duplicates") else []

    def _grading(self) -> list[PipelineStep]:
        return [self._stored(), *self._unique(None), Grading(self.work / "judge.json", self.work / "grades")]

    def _write(self) -> list[PipelineStep]:
        steps = [self._stored(), *self._unique(self._removed("duplicates"))]
        if self.settings.has("duplicates"):
            steps.append(KeptOfGroups(self.work / "kept"))
        if self.settings.has("quality"):
            steps.append(Best(self.work / "grades", self.least, self._removed("quality")))
        if self.settings.has("personal"):
            steps.append(Personal())
        return [*steps, LinesWriter(self.work / "parts")]
