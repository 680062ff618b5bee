"""`FolderBackend`: a bank in a local folder. Nothing in it is followed out of it, and nothing is half written.

<folder>/CURRENT, policy.json, ...      small files: read within bounds and through no link, written beside their place and
renamed
<folder>/references-1.lance/            a Lance table
<folder>/references-1.removed-<time>/   a table that is being removed
<folder>/.CURRENT.<random>              a small file that is being written
<folder>/writer.lock                    locked by the one writer; the system releases the lock when its process ends
"""

# ruff: noqa: D102 - what the methods promise is said once, in `base`.

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from memory3.bank.backends.base import Backend
from memory3.bank.backends.lance_folder import deletion_faults, require_sound
from memory3.bank.backends.lance_versions import prune, version_mark
from memory3.bank.faults import writing
from memory3.bank.format.names import LOCK, is_ours
from memory3.errors import BankBusy, BankCorrupt
from memory3.files import SMALL_BYTES, UnsafeFile, append, read_bounded, remove, write_atomically

if TYPE_CHECKING:
    import lancedb
    import pyarrow as pa
    from lancedb.table import Table

__all__ = ["FolderBackend"]

#: A small file is written in less time than that; what lies half written for longer was left by a process that was killed.
_HALF_WRITTEN_SECONDS = 60


class FolderBackend(Backend):
    """See `Backend`. A table's folder is looked at before Lance is let near it, once for each of these objects."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self.location = str(self.path)
        self._sound: set[str] = set()

    def address(self, name: str) -> str:
        return str(self.path / name)

    # ---- small files -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def read(self, name: str, limit: int = SMALL_BYTES) -> bytes:
        return read_bounded(self.path / name, limit)

    def write(self, name: str, content: str | bytes) -> None:
        write_atomically(self.path / name, content)

    def append(self, name: str, content: str) -> int:
        return append(self.path / name, content)

    def remove(self, name: str) -> None:
        remove(self.path / name)

    def age(self, name: str) -> float:
        return time.time() - (self.path / name).lstat().st_mtime

    def sweep(self) -> None:
        for name in self.names():
            with suppress(OSError):  # it may have got its place this very moment
                if name.startswith(".") and is_ours(name) and self.age(name) > _HALF_WRITTEN_SECONDS:
                    self.remove(name)

    # ---- the one writer --------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        from filelock import FileLock, Timeout

        path = self.path / LOCK
        with writing(self.path):
            if os.path.lexists(path):
                try:
                    read_bounded(path)  # a lock is made by opening it: that is not for a link's target, nor for a pipe
                except UnsafeFile as error:
                    raise BankCorrupt(f"{path} {error.strerror}: remove it, if no other process is writing") from None
            lock = FileLock(path)
            try:
                lock.acquire(timeout=wait_seconds)
            except Timeout:
                raise BankBusy(
                    f"{self.path}: another process is writing this bank. Wait for it, or give --wait SECONDS; "
                    "reading goes on meanwhile"
                ) from None
        try:
            yield
        finally:
            lock.release()

    # ---- tables ----------------------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        return [name.removesuffix(".lance") for name in self.names() if name.endswith(".lance")]

    def is_table(self, name: str) -> bool:
        try:
            return any(entry.endswith(".manifest") for entry in os.listdir(self._folder(name) / "_versions"))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def create_table(self, name: str, schema: pa.Schema) -> Table:
        return self._connect().create_table(name, schema=schema)

    def open_table(self, name: str) -> Table:
        if name not in self._sound:
            require_sound(self._folder(name))
            self._sound.add(name)
        return self._connect().open_table(name)

    def remove_table(self, name: str) -> None:
        self._sound.discard(name)
        folder = self._folder(name)
        if os.path.lexists(folder):  # renamed first, so that an interruption leaves no half of it to be opened
            os.replace(folder, self.path / f"{name}.removed-{time.time_ns()}")
        for remains in self.path.glob("references-*.removed-*"):
            with suppress(OSError):
                remove(remains)

    def version_mark(self, name: str, version: int) -> str:
        return version_mark(self._folder(name), version)

    def prune(self, name: str, grace: timedelta, passed: range = range(0)) -> None:
        fragments = self.open_table(name).stats()["fragment_stats"]["num_fragments"]  # type: ignore[index]  # in truth a dict
        prune(self._folder(name), grace, passed, fragments)

    def table_faults(self, name: str) -> Iterator[str]:
        return deletion_faults(self._folder(name))

    def table_bytes(self, name: str, age: timedelta = timedelta(0)) -> int:
        before = time.time() - age.total_seconds()
        total = 0
        try:
            with os.scandir(self._folder(name) / "data") as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    total += about.st_size if about.st_mtime <= before else 0
        except FileNotFoundError:
            pass  # nothing written yet
        return total

    def total_bytes(self) -> int:
        total = 0
        for folder, _, files in os.walk(self.path):
            for file in files:
                try:
                    total += os.path.getsize(os.path.join(folder, file))
                except FileNotFoundError:
                    continue  # a writer has just removed it
        return total

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free

    def _folder(self, name: str) -> Path:
        return self.path / f"{name}.lance"

    def _connect(self) -> lancedb.DBConnection:
        import lancedb

        return lancedb.connect(self.path)
