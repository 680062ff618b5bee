"""The folder that a preparation writes: whose it is, what lies where, and how it comes to its end."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memory3.errors import InputError, Memory3Error
from memory3.files import flush_folder, read_json, write_atomically
from memory3.preparing.processes import wait_for_workers
from memory3.preparing.settings import PrepareSettings
from memory3.preparing.shards import Shards
from memory3.text.readers.prepared import REPORT, SETTINGS, WORK, part_name

__all__ = ["PACKAGES", "PrepareFolder"]

#: Whose versions decide what is left: a run is not gone on with under others.
PACKAGES = ("datatrove", "trafilatura", "py3langid", "warcio")


class PrepareFolder:
    """``part-*.jsonl.gz``, ``report.json``, ``report.html``, ``removed/`` if asked for, and ``.prepare/`` for the work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path.absolute() / WORK  # fsspec takes one relative path for one place, wherever the process is by then

    def inside(self, *names: str) -> Path:
        """A place of the work."""
        return self.work.joinpath(*names)

    @property
    def is_finished(self) -> bool:
        """Whether the report is there, which is written last."""
        return (self.path / REPORT).is_file()

    @contextmanager
    def held(self, settings: PrepareSettings, paths: tuple[str, ...], shards: Shards) -> Iterator[None]:
        """The folder for this run alone, and for the settings and files that it was begun with.

        Raises:
            InputError: it holds something else, or was begun with others.
            Memory3Error: another process is at it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: give a folder")
        if self.path.is_dir() and not self.work.is_dir() and any(self.path.iterdir()):
            raise InputError(f"{self.path} holds other files: give an empty or a new folder")
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.inside("lock"), timeout=0):
                wait_for_workers(self.inside("workers"))
                self._begin(settings, paths, shards)
                yield
        except Timeout:
            raise Memory3Error(f"another process prepares {self.path}: wait for it, or give another folder") from None

    def _begin(self, settings: PrepareSettings, paths: tuple[str, ...], shards: Shards) -> None:
        asked = {
            "settings": settings.to_dict(),
            "paths": list(paths),
            "files": shards.digest,
            "graded": _state(settings.graded),
            "packages": {name: version(name) for name in PACKAGES},
        }
        path = self.inside(SETTINGS)
        if not path.is_file():
            shards.save(self.inside("shards"))
            write_atomically(path, json.dumps(asked, indent=1))
            return
        begun = read_json(path)
        if begun != asked:
            raise InputError(
                f"{self.path} was begun with {_difference(begun, asked)}: give another folder, or remove this one"
            )

    def publish(self, tasks: int, keep_removed: bool) -> list[str]:
        """Move the finished parts to their place; those without a document are dropped. Can be done again after a kill.

        Returns:
            the names of the parts.
        """
        names = []
        for task in range(tasks):
            name = part_name(task)
            source, target = self.inside("parts", name), self.path / name
            if source.is_file():
                if _is_empty(source):
                    continue
                os.replace(source, target)
            if target.is_file():
                names.append(name)
        if keep_removed and self.inside("removed").is_dir():
            os.replace(self.inside("removed"), self.path / "removed")
        flush_folder(self.path, files=False)
        return names

    def finish(self, report: dict[str, Any], page: str) -> None:
        """Write the report, last of all, and clear the work away."""
        write_atomically(self.path / "report.html", page)
        write_atomically(self.path / REPORT, json.dumps(report, indent=1))
        self.clear()

    def clear(self) -> None:
        """Remove what the work left, but for what says how the folder was made."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def _is_empty(path: Path) -> bool:
    with gzip.open(path) as stream:
        return not stream.read(1)


def _state(path: str) -> list[int]:
    if not path:
        return []
    try:
        about = os.stat(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return [about.st_size, about.st_mtime_ns]


def _difference(begun: Any, asked: dict[str, Any]) -> str:
    """What is not the same, in words."""
    if not isinstance(begun, dict) or not isinstance(begun.get("settings"), dict):
        return "something that is not understood"
    found = [
        f"{name} {begun['settings'].get(name)!r}, not {value!r}"
        for name, value in asked["settings"].items()
        if begun["settings"].get(name) != value
    ]
    found += [f"the paths {', '.join(map(str, begun.get('paths', ())))}"] if begun.get("paths") != asked["paths"] else []
    if not found and begun.get("packages") != asked["packages"]:
        found = [f"other versions of packages ({begun.get('packages')}, not {asked['packages']})"]
    if not found and begun.get("graded") != asked["graded"]:
        found = ["other graded examples: the file was changed"]
    return "; ".join(found) or "other files: some were added, removed or changed since"
