"""`Backend`: what a bank needs of the place where it lies. A folder fulfils it; an object store or a server can, too.

A bank is a flat set of small files and of Lance tables, each under a name (`memory3.bank.format.names`). A backend moves bytes
and opens
tables. It does not know what a row, a document or a manifest is, nor which table is in force.

Unless a method says otherwise, it raises what the place raises: OSError for files (FileNotFoundError,
`memory3.files.UnsafeFile`), Lance's
errors for tables. `memory3.bank.faults` turns them into memory3's errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

from memory3.files import SMALL_BYTES

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import Table

__all__ = ["Backend"]


class Backend(ABC):
    """Small files, tables, and a lock, at one place. Safe to share between threads.

    Attributes:
        location: where it is: a path or a URI, for messages and for opening it again.
        disk_bytes: of this machine's disk, that may keep what was read from here; 0 where reading is as quick.
    """

    location: str
    disk_bytes: int = 0

    def __eq__(self, other: object) -> bool:
        """Whether both are the same place."""
        return type(other) is type(self) and isinstance(other, Backend) and other.location == self.location

    def __hash__(self) -> int:
        return hash((type(self), self.location))

    def address(self, name: str) -> str:
        """Where a file lies, for messages."""
        return f"{self.location}/{name}"

    def table_address(self, name: str) -> str:
        """Where a table lies, for messages."""
        return self.address(f"{name}.lance")

    # ---- small files -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Make the place, if it is not there.

        Nothing else needs it to have been made, but `write`, `append`, `lock` and `create_table`.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all files and tables, sorted; a table's with ``.lance`` at its end.

        Others' files are among them. Empty where nothing is.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether something lies under the name, readable or not."""

    @abstractmethod
    def read(self, name: str, limit: int = SMALL_BYTES) -> bytes:
        """The whole content, of one moment: what one `write` gave, never a mixture of two.

        Never waits for what is no file, and never reads on beyond ``limit`` bytes. FileNotFoundError, UnsafeFile.

        Args:
            name: of a file.
            limit: bytes it may have at most.
        """

    @abstractmethod
    def write(self, name: str, content: str | bytes) -> None:
        """Put content under the name, in place of what is there: whole or not at all, whenever process or machine stop.

        Once it returns, the content is there for every reader and outlives a power cut. Text is UTF-8.
        """

    @abstractmethod
    def append(self, name: str, content: str) -> int:
        """Add text at the end of a file, made if missing, and return the file's bytes.

        It is for statistics: the last text may be lost or cut short by a power cut, and of two that append at once one
        may be lost.

        Args:
            name: of a file.
            content: the text to add, in UTF-8.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete what lies under the name. Nothing there is fine."""

    @abstractmethod
    def age(self, name: str) -> float:
        """Seconds since a file was written. FileNotFoundError."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what interrupted writes and removals of this backend left over. Needs the lock."""

    # ---- the one writer --------------------------------------------------------------------------------------------------

    @abstractmethod
    def lock(self, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
        """Be the only one that writes, within ``with``, among all processes. It ends with the process. Not reentrant.

        Reading needs no lock. BankBusy: another has held it for ``wait_seconds``.
        """

    # ---- tables ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def tables(self) -> list[str]:
        """Names of all tables, sorted, also of those whose making was interrupted."""

    @abstractmethod
    def is_table(self, name: str) -> bool:
        """Whether a table of this name can be opened: its making was completed."""

    @abstractmethod
    def create_table(self, name: str, schema: pa.Schema) -> Table:
        """An empty table. A killed process leaves it whole, or such that `is_table` is False. Needs the lock, and that
        nothing has its name.

        Args:
            name: of the table, without ``.lance``.
            schema: its columns.
        """

    @abstractmethod
    def open_table(self, name: str) -> Table:
        """A table at its newest version. A change to it is one commit, whole or not at all; other handles stay as they are.

        BankCorrupt: it holds what must not be given to Lance.
        """

    @abstractmethod
    def remove_table(self, name: str) -> None:
        """Delete a table with all its versions, if it is there.

        Interrupted, it leaves nothing that can be opened. Needs the lock.
        """

    @abstractmethod
    def version_mark(self, name: str, version: int) -> str:
        """What tells this version of a table from any other that ever has its name and number. "" once the version is gone."""

    @abstractmethod
    def prune(self, name: str, grace: timedelta, passed: range = range(0)) -> None:
        """Remove the versions of a table made longer than ``grace`` ago, and every file that no remaining version needs.

        The newest version stays. Versions numbered in ``passed`` go whatever their age: one job made them on its way to the
        newest.
        A place where old versions cost nothing may keep them. Needs the lock.

        Args:
            name: of the table.
            grace: how old a version must be to go.
            passed: numbers of versions that go whatever their age.
        """

    @abstractmethod
    def table_faults(self, name: str) -> Iterator[str]:
        """One line for each file of a table that must not be given to Lance: its lengths would end the whole process."""

    @abstractmethod
    def table_bytes(self, name: str, age: timedelta = timedelta(0)) -> int:
        """Size of the data files of a table, of all its versions, that were written at least ``age`` ago.

        Args:
            name: of the table.
            age: how long ago a file must have been written to count; by default all count.
        """

    @abstractmethod
    def total_bytes(self) -> int:
        """Size of everything at this place."""

    @abstractmethod
    def free_bytes(self) -> int:
        """How much more fits here. A place without a bound says a very large number."""
