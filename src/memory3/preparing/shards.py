"""The files to read, dealt out to tasks: the same for the same files, however many processes read them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from memory3.errors import InputError
from memory3.files import read_json, write_atomically
from memory3.text.readers.listing import FileSource, locate
from memory3.text.readers.source import ReadOptions

__all__ = ["FoundPath", "Shards", "deal"]

#: A task is what is done again after a kill, and what a process takes. One that reads many small files is as good.
_MOST_TASKS = 256
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class FoundPath:
    """A file to read.

    Attributes:
        path: as it is reached.
        id: of its document, or what the ids of its documents begin with.
        strict: whether it was named by the caller, so that it must be readable.
        size: bytes.
        changed: time of its last change, in nanoseconds.
    """

    path: str
    id: str
    strict: bool
    size: int
    changed: int


@dataclass(frozen=True)
class Shards:
    """Files by task, in order.

    Attributes:
        tasks: the files of each.
        skipped: place and reason of what was passed over while they were listed.
    """

    tasks: Sequence[Sequence[FoundPath]]
    skipped: Sequence[tuple[str, str]]

    @property
    def digest(self) -> str:
        """Tells whether files were added, removed or changed."""
        state = hashlib.blake2b(digest_size=16)
        for files in self.tasks:
            state.update(json.dumps([list(asdict(file).values()) for file in files]).encode())
        return state.hexdigest()

    def save(self, folder: Path) -> None:
        """One file for each task. Raises OSError."""
        folder.mkdir(exist_ok=True)
        for number, files in enumerate(self.tasks):
            write_atomically(folder / f"{number:05d}.json", json.dumps([asdict(file) for file in files]))


def load(folder: Path, task: int) -> list[FoundPath]:
    """What `Shards.save` wrote for a task. Raises OSError and ValueError."""
    return [FoundPath(**file) for file in read_json(folder / f"{task:05d}.json", _MOST_BYTES)]


def deal(paths: Sequence[str], out: Path) -> Shards:
    """List the files behind ``paths`` and deal them to tasks of about equal size, without changing their order.

    Args:
        paths: files, folders and patterns.
        out: the folder that is written to, which is never read.

    Raises:
        InputError: a path is missing or holds no files.
    """
    skipped: list[tuple[str, str]] = []
    files = list(_listed(paths, out.resolve(), skipped))
    if not files:
        raise InputError(f"nothing to read in {', '.join(paths)}")
    count = min(len(files), _MOST_TASKS)
    total = sum(file.size + 1 for file in files)
    tasks: list[list[FoundPath]] = [[]]
    passed = 0
    for number, file in enumerate(files):
        left = len(files) - number
        if tasks[-1] and len(tasks) < count and (passed >= total * len(tasks) / count or left <= count - len(tasks)):
            tasks.append([])
        tasks[-1].append(file)
        passed += file.size + 1
    return Shards(tasks, skipped)


def _listed(paths: Sequence[str], out: Path, skipped: list[tuple[str, str]]) -> Iterator[FoundPath]:
    options = ReadOptions(None, None, 1, lambda place, reason: skipped.append((place, reason)))
    seen: set[Path] = set()
    for path in paths:
        if path == "-":
            raise InputError("standard input cannot be read twice, as resuming must: save it as a file and give that")
        source = locate(path)
        for file in source.files(options):
            resolved = file.path.resolve()
            if out == resolved.parent or out in resolved.parents:
                continue
            if resolved in seen:
                options.report(str(file.path), "is named before, or reached another way")
                continue
            seen.add(resolved)
            about = os.stat(file.path)
            yield FoundPath(str(file.path), file.id, isinstance(source, FileSource), about.st_size, about.st_mtime_ns)
