"""The folder of a bank: Lance tables, the name of the one in force, the writer's lock.

- ``CURRENT``: name of the table in force, one line; replaced by renaming.
- ``references-1.lance/``: the rows; the number rises when a bank is rebuilt for another model.
- ``references-1-staging.lance/``: rows of a large document that is not complete yet.
- ``policy.json``, ``recalls.jsonl``: what becomes of cold rows, and how often each was recalled (`keeping`, `recalls`).
- ``codec-<fingerprint>.safetensors``: codebook of the tables whose manifest names it.
- ``writer.lock``: held by the one process that writes; the system releases it when that process ends.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import lancedb
from filelock import FileLock, Timeout
from lancedb.table import Table

from memory3.bank.codebooks import book_name, write_book
from memory3.bank.faults import disk_fault, reading, writing
from memory3.bank.folder import require_sound
from memory3.bank.manifest import METADATA_KEY, BankManifest
from memory3.bank.rows import row_schema
from memory3.bank.snapshot import Snapshot
from memory3.codec import Codebook
from memory3.errors import BankBusy, BankCorrupt, BankNotFound
from memory3.files import UnsafeFile, parse_json, read_bounded, remove, write_atomically

if TYPE_CHECKING:
    import torch

__all__ = ["GRACE", "Store"]

#: Readers keep the version they opened; what they read is not removed before this long after it was replaced.
GRACE = timedelta(minutes=10)

_OWN = re.compile(r"\.?(references-|codec-|writer\.lock$|CURRENT|policy\.json|recalls\.)")
#: A bank is rebuilt fewer times than that; and so a number is short enough for a file's name.
_TABLE = re.compile(r"references-([1-9][0-9]{0,8})")
#: Of the manifest in a table's schema.
_MANIFEST_BYTES = 1 << 20


class Store:
    """A bank's folder. Opens and creates tables; knows nothing of documents."""

    def __init__(self, path: str | os.PathLike[str], token_vectors: torch.Tensor | None = None) -> None:
        """``token_vectors``: of the model at hand, if any, for codecs that predict."""
        self.path = Path(path).expanduser().absolute()
        self.token_vectors = token_vectors
        self._sound: set[str] = set()

    def exists(self) -> bool:
        """Whether a bank was created here."""
        return os.path.lexists(self.path / "CURRENT")

    def current(self) -> str:
        """Name of the table in force."""
        try:
            name = read_bounded(self.path / "CURRENT", 4096).decode("utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            raise BankNotFound(
                f"no bank at {self.path}{self._instead()}. Make one with `memory3 write DOCUMENTS --bank {self.path}`"
            ) from None
        except (UnsafeFile, UnicodeDecodeError) as error:
            raise BankCorrupt(f"{self.path / 'CURRENT'} cannot be read: {error}") from error
        except OSError as error:
            raise disk_fault(self.path, error) from error
        if not _TABLE.fullmatch(name):
            raise BankCorrupt(f"{self.path / 'CURRENT'} says {name[:80]!r}, which is no table's name")
        return name

    def _instead(self) -> str:
        tables = self.tables()
        return f", though {', '.join(tables)} lies there: its file CURRENT is missing and should name it" if tables else ""

    def tables(self) -> list[str]:
        """Names of all tables of rows, oldest first."""
        names = (entry.name.removesuffix(".lance") for entry in self.path.glob("references-*.lance"))
        return sorted((name for name in names if _TABLE.fullmatch(name)), key=_number)

    def open(self, name: str) -> tuple[Table, BankManifest]:
        """A table at its newest version, and its manifest."""
        folder = self.path / f"{name}.lance"
        if not folder.is_dir():
            raise BankCorrupt(f"{folder} is missing: restore it from a copy, or remove {self.path} and write anew")
        with reading(self.path):
            table = self._open(name)
            schema = table.schema
        metadata = schema.metadata or {}
        if METADATA_KEY not in metadata:
            raise BankCorrupt(f"{folder} has no memory3 manifest in its schema: memory3 did not write it")
        manifest = BankManifest.from_json(metadata[METADATA_KEY])
        wanted = row_schema(manifest)
        if schema.names != wanted.names:
            raise BankCorrupt(f"{folder} has columns {schema.names}: memory3 did not write it")
        odd = [name for name in wanted.names if schema.field(name).type != wanted.field(name).type]
        if odd:
            raise BankCorrupt(
                f"{folder} has the column {odd[0]!r} as {schema.field(odd[0]).type}, its manifest says {wanted.field(odd[0]).type}: "
                "restore the bank from a copy"
            )
        return table, manifest

    def snapshot(self) -> Snapshot:
        """The newest version of the table in force."""
        name = self.current()
        return Snapshot(self.path, name, *self.open(name), self.token_vectors)

    def create(self, manifest: BankManifest, book: Codebook | None = None) -> None:
        """Make an empty bank, in a new or empty folder or one where making a bank was interrupted."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with self.lock(wait_seconds=30.0):
            if self.exists():
                return  # another process was faster
            foreign = sorted(entry.name for entry in self.path.iterdir() if not _OWN.match(entry.name))
            if foreign:
                raise BankNotFound(
                    f"{self.path} is no bank, and not empty ({foreign[0]!r} lies there): give a new or an empty folder"
                )
            tables = (self.find_table(name) for name in self.tables())
            if any(len(table) for table in tables if table is not None):
                self.current()  # says that the file CURRENT is missing
            self.add_book(book)
            self.add_table("references-1", manifest)
            self.switch("references-1")

    def add_book(self, book: Codebook | None) -> None:
        """Put a codebook beside the tables, before the table that names it."""
        if book is not None:
            write_book(self.path / book_name(book.fingerprint), book)

    def add_table(self, name: str, manifest: BankManifest) -> Table:
        """An empty table beside the others, in place of what an interruption may have left under that name."""
        self.remove_table(name)
        with writing(self.path):
            return self._connect().create_table(name, schema=row_schema(manifest, uuid4().hex))

    def find_table(self, name: str) -> Table | None:
        """A table by name at its newest version. None if there is none, or its making was interrupted."""
        versions = self.path / f"{name}.lance" / "_versions"
        if not versions.is_dir() or not any(versions.glob("*.manifest")):
            return None
        with reading(self.path):
            return self._open(name)

    def _open(self, name: str) -> Table:
        """A table, its folder looked at before Lance does, once for each of this object."""
        if name not in self._sound:
            require_sound(self.path / f"{name}.lance")
            self._sound.add(name)
        return self._connect().open_table(name)

    def next_name(self) -> str:
        """The name of the table after the one in force."""
        name = f"references-{_number(self.current()) + 1}"
        if not _TABLE.fullmatch(name):
            raise BankCorrupt(
                f"{self.path}: after {self.current()} there is no name for another table: copy the bank's documents into a new one"
            )
        return name

    def switch(self, name: str) -> None:
        """Put a table in force: readers see it when they refresh."""
        with writing(self.path):
            write_atomically(self.path / "CURRENT", name + "\n")

    def remove_table(self, name: str) -> None:
        """Delete a table, if it is there. It is renamed first, so that an interruption leaves no half of it to be opened."""
        with writing(self.path):
            self._sound.discard(name)
            folder = self.path / f"{name}.lance"
            if os.path.lexists(folder):
                os.replace(folder, self.path / f"{name}.removed-{time.time_ns()}")
            for remains in self.path.glob("references-*.removed-*"):
                with suppress(OSError):
                    remove(remains)

    def remove_superseded(self, grace: timedelta | None = None) -> None:
        """Delete the tables that were in force before, once readers have had time (`GRACE`) to move on. Needs the lock."""
        age = time.time() - (self.path / "CURRENT").stat().st_mtime
        if grace == timedelta(0) or age > (grace or GRACE).total_seconds():
            self._remove(lambda number, current: number < current)

    def remove_unfinished(self) -> None:
        """Delete what an interrupted rebuild and an interrupted large document left. Needs the lock."""
        self._remove(lambda number, current: number > current)
        self.remove_table(f"{self.current()}-staging")
        for path in self.path.glob(".*"):
            with suppress(OSError):  # it may have got its place this very moment
                if (
                    _OWN.match(path.name) and time.time() - path.lstat().st_mtime > 60
                ):  # of a small file that was being written
                    remove(path)

    def _remove(self, unwanted: Callable[[int, int], bool]) -> None:
        current = _number(self.current())
        for name in self.tables():
            if unwanted(_number(name), current):
                self.remove_table(name)
                self.remove_table(f"{name}-staging")
        self._remove_books()

    def _remove_books(self) -> None:
        """Delete the codebooks that no table names."""
        books = list(self.path.glob("codec-*.safetensors"))
        tables = [table for table in map(self.find_table, self.tables()) if table is not None] if books else []
        named = [_code_book((table.schema.metadata or {}).get(METADATA_KEY, b"")) for table in tables]
        for book in books:
            if book.name not in [book_name(name) for name in named if name]:
                with writing(self.path):
                    remove(book)

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Be the one writer, or raise BankBusy after ``wait_seconds``."""
        path = self.path / "writer.lock"
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

    def data_bytes(self, name: str, before: float) -> int:
        """Size of the files with rows of a table, of all its versions, that are older than ``before``, in seconds since 1970."""
        total = 0
        try:
            with os.scandir(self.path / f"{name}.lance" / "data") as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    total += about.st_size if about.st_mtime <= before else 0
        except FileNotFoundError:
            pass  # nothing written yet
        return total

    def bytes(self) -> int:
        """Size of the whole folder on disk."""
        total = 0
        for folder, _, files in os.walk(self.path):
            for file in files:
                try:
                    total += os.path.getsize(os.path.join(folder, file))
                except FileNotFoundError:
                    continue  # a writer has just removed it
        return total

    def _connect(self) -> lancedb.DBConnection:
        return lancedb.connect(self.path)


def _code_book(manifest: bytes) -> Any:
    """What a manifest says of its codebook; "" where it says nothing that can be read."""
    try:
        return parse_json(manifest[:_MANIFEST_BYTES]).get("code_book", "")
    except (ValueError, AttributeError):
        return ""


def _number(name: str) -> int:
    match = _TABLE.fullmatch(name)
    assert match is not None, name
    return int(match[1])
