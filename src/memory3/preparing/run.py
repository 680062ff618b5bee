"""A preparation from its beginning to its end, or on from where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from memory3.errors import ConfigError, InputError, MissingDependency, setting
from memory3.files import read_json
from memory3.preparing.settings import PrepareSettings
from memory3.text.readers.prepared import REPORT, part_name

try:
    import datatrove  # noqa: F401
    import lxml_html_clean  # noqa: F401
    import py3langid  # noqa: F401
    import trafilatura  # noqa: F401
    import warcio  # noqa: F401
except ImportError as error:
    raise MissingDependency(str(error.name or "datatrove"), "prepare", "memory3 prepare") from None

from memory3.preparing import reading
from memory3.preparing.documents import lines_of
from memory3.preparing.folder import PrepareFolder
from memory3.preparing.grading import embedder, least_grade
from memory3.preparing.language import check_languages
from memory3.preparing.page import page
from memory3.preparing.pipelines import PASSES, Pass
from memory3.preparing.processes import Workers, one_thread
from memory3.preparing.quality import Judge, fit_file
from memory3.preparing.report import report
from memory3.preparing.shards import deal
from memory3.preparing.tasks import done

__all__ = ["Tell", "prepare"]

#: Called with what is done, tasks done, tasks there are, and more in words.
Tell = Callable[[str, int, int, str], None]


def prepare(
    paths: Sequence[str | Path],
    out: str | Path,
    settings: PrepareSettings | None = None,
    *,
    workers: int = 1,
    tell: Tell = lambda what, done, total, more: None,
) -> dict[str, Any]:
    """Turn raw text into the documents that are worth a memory, in a folder that `memory3.read_documents` reads.

    Killed and called again, it goes on where it stopped. The same files and settings give the same bytes, whatever ``workers``
    is. A folder that is finished stays as it is.

    Args:
        paths: files, folders and patterns.
        out: a new or empty folder, or one that was begun with the same paths and settings.
        settings: which stages, with which thresholds.
        workers: processes.
        tell: is called as it goes on.

    Returns:
        the report (docs/prepare.md), with ``seconds`` and ``documents_per_second`` of this call.

    Raises:
        InputError: a path or a file cannot be used as given, or the folder is another's.
        ConfigError: a setting is out of range.
        MissingDependency: the extra is not installed.
    """
    started = time.monotonic()
    asked = settings or PrepareSettings()
    if workers < 1:
        raise ConfigError(f"{setting('workers', workers)} must be at least 1")
    if asked.languages:
        check_languages(asked.languages)
    folder = PrepareFolder(Path(out))
    named = tuple(map(str, paths))
    shards = deal(named, folder.path)
    tasks = len(shards.tasks)
    with folder.held(asked, named, shards):
        if not folder.is_finished:
            with Workers(workers, folder.inside("workers")) as pool:
                _run(folder, asked, tasks, pool, tell)
            _finish(folder, asked, tasks, shards.skipped)
        found: dict[str, Any] = read_json(folder.path / REPORT)
        folder.clear()
    seconds = time.monotonic() - started
    return {**found, "seconds": round(seconds, 3), "documents_per_second": round(found["read"] / seconds, 1)}


def _run(folder: PrepareFolder, asked: PrepareSettings, tasks: int, pool: Workers, tell: Tell) -> None:
    first = Pass("read", folder.work, asked, tasks)
    _all(first, pool, tell)
    name = partial(_named, folder.inside("read"))
    reading.find_same(folder.inside("marks"), tasks, name, folder.inside("same"))
    if asked.has("duplicates"):
        for step in ("signatures", "buckets", "groups"):
            _all(replace(first, name=step), pool, tell)
    least = 0.0
    if asked.has("quality"):
        path = folder.inside("judge.json")
        if not path.is_file():
            tell("fitting the judge of quality", 0, 0, "")
            with one_thread():
                fit_file(asked.graded, asked.embedder, embedder(asked.embedder).encode).save(path)
        _all(replace(first, name="grading"), pool, tell)
        least = _least(folder, asked, tasks)
    _all(replace(first, name="write", least=least), pool, tell)


def _least(folder: PrepareFolder, asked: PrepareSettings, tasks: int) -> float:
    """The grade from which on documents are kept."""
    if asked.keep_best is None:
        assert asked.min_grade is not None
        return asked.min_grade
    grades = [np.load(folder.inside("grades", f"{task:05d}.npy"), allow_pickle=False) for task in range(tasks)]
    return least_grade(grades, asked.keep_best)


def _all(work: Pass, pool: Workers, tell: Tell) -> None:
    """The tasks of a pass that are not done yet."""
    ended = done(work.log)
    what = PASSES[work.name]

    def told(number: int, read: int) -> None:
        tell(what, len(ended) + number, work.count, f"{read:,} documents" if work.name == "read" else "")

    told(0, 0)
    pool.run(work, [task for task in range(work.count) if task not in ended], told)


def _named(folder: Path, task: int, number: int) -> tuple[str, str]:
    """Id and source of a document, by its place."""
    line = next(islice(lines_of(folder / part_name(task)), number, None))
    return line["id"], line["source"]


def _finish(folder: PrepareFolder, asked: PrepareSettings, tasks: int, skipped: Sequence[tuple[str, str]]) -> None:
    judge = Judge.load(folder.inside("judge.json")) if asked.has("quality") else None
    least = _least(folder, asked, tasks) if judge else None
    path = folder.inside("made", REPORT)
    if not path.is_file():  # before anything is moved, so that a kill between leaves all that it needs
        report(folder, asked, tasks, skipped, judge, least).save(path)
    found = read_json(path, 64 << 20)
    if not found["read"]:
        first = next((f"{one['place']}: {one['reason']}" for one in found["skipped"]["first"]), "the files are empty")
        raise InputError(f"no document was read. First reason: {first}")
    folder.publish(tasks, asked.keep_removed)
    folder.finish(found, page(found))
