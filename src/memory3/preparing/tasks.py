"""One task of a stage, run by datatrove's executor: done once, noted as done when all it wrote is on the disk."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

__all__ = ["StageTasks", "counts"]

#: datatrove says what it does in many lines; the report says what it did.
logger.disable("datatrove")
#: Its tasks of other numbers than 0 print errors alone.
_QUIET = 1


class StageTasks(PipelineExecutor):
    """The tasks of one stage, one at a time. What runs several is `memory3.preparing.processes`."""

    def __init__(self, steps: Sequence[PipelineStep], tasks: int, log: Path, written: Sequence[Path] = ()) -> None:
        """
        Args:
            steps: of the pipeline.
            tasks: how many there are.
            log: folder for what is done, and how much it was.
            written: folders whose files are brought to the disk before a task counts as done.
        """
        super().__init__(list(steps), str(log))
        self._tasks, self._written = tasks, written

    @property
    def world_size(self) -> int:
        """How many tasks there are."""
        return self._tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """That of one machine."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )

    def run(self) -> None:
        """All tasks that are not done, here."""
        for number in range(self._tasks):
            self.run_task(number)

    def run_task(self, number: int) -> None:
        """One task, unless it is done."""
        self._run_for_rank(number, _QUIET)

    def mark_rank_as_completed(self, rank: int) -> None:
        """Notes a task as done, once its files are on the disk."""
        names = f"*{rank:05d}*" if self._tasks > 1 else "*"
        for path in (path for folder in self._written for path in folder.rglob(names)):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        super().mark_rank_as_completed(rank)


def done(log: Path) -> set[int]:
    """The tasks that are done."""
    folder = log / "completions"
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()} if folder.is_dir() else set()


def counts(log: Path) -> dict[str, Counter[str]]:
    """What the steps of all tasks counted, by the name of the step."""
    found: dict[str, Counter[str]] = {}
    for path in sorted((log / "stats").glob("*.json")):
        for step in json.loads(path.read_text()):
            name = step["name"].partition(": ")[2]
            for label, value in step["stats"].items():
                found.setdefault(name, Counter())[label] += round(value["total"] if isinstance(value, dict) else value)
    return found
