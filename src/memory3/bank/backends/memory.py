"""`MemoryBackend`: a bank in RAM, for as long as the object lives.

The twin of the folder: what a bank does must not depend on which it has.
"""

# ruff: noqa: D102 - what the methods promise is said once, in `base`.

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING

from memory3.bank.backends.base import Backend
from memory3.errors import BankBusy
from memory3.files import SMALL_BYTES, UnsafeFile

if TYPE_CHECKING:
    import lancedb
    import pyarrow as pa
    from lancedb.table import Table

__all__ = ["MemoryBackend"]

_numbers = itertools.count(1)


class MemoryBackend(Backend):
    """See `Backend`.

    Files lie in a dict, tables in LanceDB's own store in RAM. Of one process: give the object itself to `Bank.open`.
    """

    def __init__(self) -> None:
        import lancedb

        self.location = f"memory://{next(_numbers)}"
        self._files: dict[str, tuple[bytes, float]] = {}
        self._changing = Lock()
        self._writer = Lock()
        self._connection: lancedb.DBConnection = lancedb.connect("memory://")
        #: Each table's number; another under the same name has another.
        self._tables: dict[str, int] = {}

    # ---- small files -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """It is always there."""

    def names(self) -> list[str]:
        with self._changing:
            return sorted([*self._files, *(f"{name}.lance" for name in self._tables)])

    def exists(self, name: str) -> bool:
        return name in self.names()

    def read(self, name: str, limit: int = SMALL_BYTES) -> bytes:
        data = self._file(name)[0]
        if len(data) > limit:
            raise UnsafeFile(errno.EINVAL, f"has more than {limit:,} bytes", self.address(name))
        return data

    def write(self, name: str, content: str | bytes) -> None:
        with self._changing:
            self._files[name] = (content.encode() if isinstance(content, str) else content, time.time())

    def append(self, name: str, content: str) -> int:
        with self._changing:
            data = self._files.get(name, (b"", 0.0))[0] + content.encode()
            self._files[name] = (data, time.time())
        return len(data)

    def remove(self, name: str) -> None:
        with self._changing:
            self._files.pop(name, None)

    def age(self, name: str) -> float:
        return time.time() - self._file(name)[1]

    def sweep(self) -> None:
        """Nothing is ever left over."""

    def _file(self, name: str) -> tuple[bytes, float]:
        try:
            return self._files[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "is not there", self.address(name)) from None

    # ---- the one writer --------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        if not self._writer.acquire(timeout=max(wait_seconds, 0.0)):
            raise BankBusy(f"{self.location}: another thread is writing this bank. Wait for it; reading goes on meanwhile")
        try:
            yield
        finally:
            self._writer.release()

    # ---- tables ----------------------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        return sorted(self._tables)

    def is_table(self, name: str) -> bool:
        return name in self._tables

    def create_table(self, name: str, schema: pa.Schema) -> Table:
        table = self._connection.create_table(name, schema=schema)
        with self._changing:
            self._tables[name] = next(_numbers)
        return table

    def open_table(self, name: str) -> Table:
        return self._connection.open_table(name)

    def remove_table(self, name: str) -> None:
        with self._changing:
            there = self._tables.pop(name, None)
        if there is not None:
            self._connection.drop_table(name)

    def version_mark(self, name: str, version: int) -> str:
        number = self._tables.get(name)
        return "" if number is None else f"{number} {version}"

    def prune(self, name: str, grace: timedelta, passed: range = range(0)) -> None:
        """Old versions are kept: they end with the object."""

    def table_faults(self, name: str) -> Iterator[str]:
        return iter(())

    def table_bytes(self, name: str, age: timedelta = timedelta(0)) -> int:
        return 0 if age else int(self.open_table(name).stats()["total_bytes"])  # type: ignore[index]  # in truth a dict

    def total_bytes(self) -> int:
        files = sum(len(data) for data, _ in self._files.values())
        return files + sum(self.table_bytes(name) for name in self.tables())

    def free_bytes(self) -> int:
        return 1 << 62
