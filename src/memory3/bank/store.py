"""The tables of a bank: which is in force, opening, making and removing them, and the codebooks beside them.

What lies under which name is told in `memory3.bank.format.names`, what a place can do in `memory3.bank.backends`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from memory3.bank.backends.base import Backend
from memory3.bank.backends.places import backend_of
from memory3.bank.codebooks import write_codebook
from memory3.bank.faults import disk_fault, reading, writing
from memory3.bank.format.manifest import METADATA_KEY, BankManifest
from memory3.bank.format.names import (
    CURRENT,
    codebook_name,
    is_codebook,
    is_ours,
    is_table,
    staging_name,
    table_name,
    table_number,
)
from memory3.bank.format.rows import row_schema
from memory3.bank.format.versions import new_table_id
from memory3.bank.snapshot import Snapshot
from memory3.codec import Codebook
from memory3.errors import BankCorrupt, BankNotFound
from memory3.files import UnsafeFile, parse_json

if TYPE_CHECKING:
    import torch
    from lancedb.table import Table

__all__ = ["GRACE", "Store"]

#: Readers keep the version they opened; what they read is not removed before this long after it was replaced.
GRACE = timedelta(minutes=10)

#: Of the manifest in a table's schema.
_MANIFEST_BYTES = 1 << 20


class Store:
    """The tables of a bank and its small files. Knows nothing of documents, nor of disks.

    Attributes:
        backend: where the bank lies.
        path: the same in words, for messages.
        token_vectors: of the model at hand, if any.
    """

    def __init__(self, place: str | os.PathLike[str] | Backend, token_vectors: torch.Tensor | None = None) -> None:
        """``place``: a folder, the URL of an object store, or another backend.

        ``token_vectors``: of the model at hand, if any, for codecs that predict.
        """
        self.backend = backend_of(place)
        self.path = self.backend.location
        self.token_vectors = token_vectors

    def exists(self) -> bool:
        """Whether a bank was created here."""
        return self.backend.exists(CURRENT)

    def current(self) -> str:
        """Name of the table in force."""
        try:
            name = self.backend.read(CURRENT, 4096).decode("utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            raise BankNotFound(
                f"no bank at {self.path}{self._instead()}. Make one with `memory3 write DOCUMENTS --bank {self.path}`"
            ) from None
        except (UnsafeFile, UnicodeDecodeError) as error:
            raise BankCorrupt(f"{self.backend.address(CURRENT)} cannot be read: {error}") from error
        except OSError as error:
            raise disk_fault(self.path, error) from error
        if not is_table(name):
            raise BankCorrupt(f"{self.backend.address(CURRENT)} says {name[:80]!r}, which is no table's name")
        return name

    def _instead(self) -> str:
        tables = self.tables()
        return f", though {', '.join(tables)} lies there: its file CURRENT is missing and should name it" if tables else ""

    def tables(self) -> list[str]:
        """Names of all tables of rows, oldest first."""
        return sorted(filter(is_table, self.backend.tables()), key=table_number)

    def open(self, name: str) -> tuple[Table, BankManifest]:
        """A table at its newest version, and its manifest."""
        folder = self.backend.table_address(name)
        if name not in self.backend.tables():
            raise BankCorrupt(f"{folder} is missing: restore it from a copy, or remove {self.path} and write anew")
        with reading(self.path):
            table = self.backend.open_table(name)
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
                f"{folder} has the column {odd[0]!r} as {schema.field(odd[0]).type}, "
                f"its manifest says {wanted.field(odd[0]).type}: restore the bank from a copy"
            )
        return table, manifest

    def snapshot(self) -> Snapshot:
        """The newest version of the table in force."""
        name = self.current()
        return Snapshot(self.backend, name, *self.open(name), self.token_vectors)

    def create(self, manifest: BankManifest, book: Codebook | None = None) -> None:
        """Make an empty bank, in a new or empty folder or one where making a bank was interrupted.

        Args:
            manifest: of the new bank.
            book: codebook of its codec; None where it has none.

        Raises:
            BankNotFound: the folder holds something else.
        """
        with writing(self.path):
            self.backend.prepare()
        with self.lock(wait_seconds=30.0):
            if self.exists():
                return  # another process was faster
            foreign = [name for name in self.backend.names() if not is_ours(name)]
            if foreign:
                raise BankNotFound(
                    f"{self.path} is no bank, and not empty ({foreign[0]!r} lies there): give a new or an empty folder"
                )
            tables = (self.find_table(name) for name in self.tables())
            if any(len(table) for table in tables if table is not None):
                self.current()  # says that the file CURRENT is missing
            self.add_codebook(book)
            self.add_table(table_name(1), manifest)
            self.switch(table_name(1))

    def add_codebook(self, book: Codebook | None) -> None:
        """Put a codebook beside the tables, before the table that names it."""
        if book is not None:
            write_codebook(self.backend, book)

    def add_table(self, name: str, manifest: BankManifest) -> Table:
        """An empty table beside the others, in place of what an interruption may have left under that name.

        Args:
            name: of the table.
            manifest: kept in its schema.
        """
        self.remove_table(name)
        with writing(self.path):
            return self.backend.create_table(name, row_schema(manifest, new_table_id()))

    def find_table(self, name: str) -> Table | None:
        """A table by name at its newest version. None if there is none, or its making was interrupted."""
        if not self.backend.is_table(name):
            return None
        with reading(self.path):
            return self.backend.open_table(name)

    def next_name(self) -> str:
        """The name of the table after the one in force."""
        current = self.current()
        try:
            return table_name(table_number(current) + 1)
        except ValueError:
            raise BankCorrupt(
                f"{self.path}: after {current} there is no name for another table: copy the bank's documents into a new one"
            ) from None

    def switch(self, name: str) -> None:
        """Put a table in force: readers see it when they refresh."""
        with writing(self.path):
            self.backend.write(CURRENT, name + "\n")

    def remove_table(self, name: str) -> None:
        """Delete a table, if it is there."""
        with writing(self.path):
            self.backend.remove_table(name)

    def remove_superseded(self, grace: timedelta | None = None) -> None:
        """Delete the tables that were in force before, once readers have had time (`GRACE`) to move on. Needs the lock."""
        if grace == timedelta(0) or self.backend.age(CURRENT) > (grace or GRACE).total_seconds():
            self._remove(lambda number, current: number < current)

    def remove_unfinished(self) -> None:
        """Delete what an interrupted rebuild and an interrupted large document left. Needs the lock."""
        self._remove(lambda number, current: number > current)
        self.remove_table(staging_name(self.current()))
        self.backend.sweep()

    def _remove(self, unwanted: Callable[[int, int], bool]) -> None:
        current = table_number(self.current())
        for name in self.tables():
            if unwanted(table_number(name), current):
                self.remove_table(name)
                self.remove_table(staging_name(name))
        self._remove_books()

    def _remove_books(self) -> None:
        """Delete the codebooks that no table names."""
        books = [name for name in self.backend.names() if is_codebook(name)]
        tables = [table for table in map(self.find_table, self.tables()) if table is not None] if books else []
        named = [_code_book((table.schema.metadata or {}).get(METADATA_KEY, b"")) for table in tables]
        for book in books:
            if book not in [codebook_name(name) for name in named if name]:
                with writing(self.path):
                    self.backend.remove(book)

    def lock(self, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
        """Be the one writer, or raise BankBusy after ``wait_seconds``."""
        return self.backend.lock(wait_seconds)


def _code_book(manifest: bytes) -> Any:
    """What a manifest says of its codebook; "" where it says nothing that can be read."""
    try:
        return parse_json(manifest[:_MANIFEST_BYTES]).get("code_book", "")
    except (ValueError, AttributeError):
        return ""
