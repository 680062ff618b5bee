"""What a preparation did: what each stage removed, why, and samples of it. The same run gives the same report."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memory3.errors import Memory3Error
from memory3.files import write_atomically
from memory3.preparing.documents import FILTER_REASON, NEAR, lines_of
from memory3.preparing.folder import PrepareFolder
from memory3.preparing.personal import Personal
from memory3.preparing.pipelines import Pass
from memory3.preparing.quality import Judge
from memory3.preparing.settings import STAGES, PrepareSettings
from memory3.preparing.tasks import counts

__all__ = ["SAMPLES", "Report", "report"]

#: Of each stage: documents that are shown, and characters of each.
SAMPLES, _SHOWN = 30, 300
#: Files and records that are named; all are counted.
_NAMED = 100
_SAME = "id and text of an earlier document"


@dataclass(frozen=True)
class Report:
    """What is written to ``report.json``.

    Attributes:
        read, kept: documents.
        skipped: files and records that were passed over or altered while reading: ``count``, and the ``first`` of them.
        stages: for each, in order: its name, whether it ran, documents in, removed, reasons with counts, samples.
        languages: documents of each language, as far as it is sure.
        masked: documents in which personal data was masked.
        judge: what was fitted to graded examples, with ``least_grade``; None where nothing was.
        settings: of the run.
    """

    read: int
    kept: int
    skipped: dict[str, Any]
    stages: list[dict[str, Any]]
    languages: dict[str, int]
    masked: int
    judge: dict[str, Any] | None
    settings: dict[str, Any]

    def save(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps({"format": 1, **asdict(self)}))


def report(
    folder: PrepareFolder,
    asked: PrepareSettings,
    tasks: int,
    skipped: Sequence[tuple[str, str]],
    judge: Judge | None,
    least: float | None,
) -> Report:
    """Count what was read, removed and kept.

    Args:
        folder: whose work is done.
        asked: settings of the run.
        tasks: of the reading.
        skipped: place and reason of what was passed over while files were listed.
        judge: of the quality stage.
        least: the grade that it kept.

    Raises:
        Memory3Error: documents are missing.
    """
    first = counts(Pass("read", folder.work, asked, tasks).log)
    last = counts(Pass("write", folder.work, asked, tasks).log)
    read, kept = (step.get(name, Counter())["total"] for step, name in ((first, "reading"), (last, "lines")))
    near = _near(folder.inside("kept"))
    stages: list[dict[str, Any]] = []
    left = read
    for stage in ("extraction", "language", "rules", "ids", "duplicates", "quality"):
        if stage == "ids":
            numbers = sum(len(np.load(path, allow_pickle=False)) for path in folder.inside("same").glob("*.npy"))
            found: dict[str, Any] = {"removed": numbers, "reasons": {_SAME: numbers} if numbers else {}, "samples": []}
        else:
            found = _removed(folder.inside("removed", stage), asked.has("personal"), near)
        ran = stage == "ids" or asked.has(stage)
        stages.append({"stage": stage, "ran": ran, "in": left, **found})
        left -= found["removed"]
    if left != kept:
        raise Memory3Error(
            f"{read:,} documents were read and {read - left:,} removed, but {kept:,} are left: the work in {folder.path} is "
            "damaged. Remove the folder and begin anew"
        )
    languages = {key[3:]: number for key, number in first.get("language", Counter()).items() if key.startswith("is_")}
    notes = [*skipped, *_notes(folder.inside("notes"), tasks)]
    about = None if judge is None else {name: value for name, value in asdict(judge).items() if name != "weights"}
    return Report(
        read=read,
        kept=kept,
        skipped={"count": len(notes), "first": [{"place": place, "reason": reason} for place, reason in notes[:_NAMED]]},
        stages=stages,
        languages=dict(sorted(languages.items(), key=lambda pair: (-pair[1], pair[0]))),
        masked=last.get("personal", Counter())["masked"],
        judge=None if about is None else {**about, "least_grade": least},
        settings=asked.to_dict() | {"stages": [stage for stage in STAGES if asked.has(stage)]},
    )


def _removed(folder: Path, mask: bool, near: dict[int, str]) -> dict[str, Any]:
    """Counts and samples of what a stage removed. The samples are those whose ids have the smallest hashes: by chance, and the
    same every time.
    """
    reasons: Counter[str] = Counter()

    def drawn() -> Iterator[tuple[bytes, str, dict[str, Any]]]:
        for path in sorted(folder.glob("part-*.jsonl.gz")):
            for line in lines_of(path):
                reasons[line.get(FILTER_REASON, "near-duplicate")] += 1
                digest = hashlib.blake2b(line["id"].encode("utf-8", "surrogatepass"), digest_size=8).digest()
                yield digest, line["id"], line

    lines = [line for _, _, line in heapq.nsmallest(SAMPLES, drawn(), key=lambda one: one[:2])]
    format_ = Personal().format if mask else str
    samples = [
        {
            "id": line["id"],
            "source": line["source"],
            "reason": line.get(FILTER_REASON, "near-duplicate"),
            "text": format_(line["text"])[:_SHOWN],
            **({"near": near.get(line[NEAR], "")} if NEAR in line else {}),
        }
        for line in lines
    ]
    return {"removed": reasons.total(), "reasons": dict(sorted(reasons.items())), "samples": samples}


def _near(folder: Path) -> dict[int, str]:
    """Which document of each group was kept."""
    return {int(group): id_ for path in folder.glob("*.json") for group, id_ in json.loads(path.read_bytes()).items()}


def _notes(folder: Path, tasks: int) -> Iterator[tuple[str, str]]:
    for task in range(tasks):
        yield from json.loads((folder / f"{task:05d}.json").read_bytes())
