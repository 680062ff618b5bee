"""`ObjectBackend`: a bank on object storage, below a URL such as ``s3://bucket/bank``.

<url>/CURRENT, policy.json, ...     small objects; one request puts one whole
<url>/references-1.lance/           a Lance table, whose commits are conditional writes (If-None-Match)
<url>/references-1.removed          that table was removed: what is left of it is not to be opened
<url>/writer.lock                   who writes: `memory3.bank.backends.lease`

A writer that was stopped for so long that another took its place may go on at any moment, in the midst of a commit. So who
takes a place over first makes a fence: it restores each table's newest version, with which, by Lance's rules, no commit that
was begun before is compatible, and writes CURRENT anew, with which no exchange of tables that was begun before is.
"""

# ruff: noqa: D102 - what the methods promise is said once, in `base`.

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from threading import get_ident
from typing import TYPE_CHECKING

import pyarrow as pa

from memory3.bank.address import checked_store_url
from memory3.bank.backends.base import Backend
from memory3.bank.backends.lance_folder import MOST_BYTES, deletion_fault
from memory3.bank.backends.lance_versions import manifest_names, prune
from memory3.bank.backends.lease import SECONDS, Lease
from memory3.bank.backends.object_table import ObjectTable
from memory3.bank.backends.objects import Entry, Objects, Tag
from memory3.bank.faults import reading, writing
from memory3.bank.format.names import CURRENT, LOCK, is_ours
from memory3.errors import BankBusy, BankCorrupt, BankRefused, InputError
from memory3.files import SMALL_BYTES, UnsafeFile

if TYPE_CHECKING:
    import lancedb
    from lancedb.table import Table

__all__ = ["ObjectBackend"]

#: Lance tries the whole of an operation some times again beyond these, so an outage ends in an error after a minute or two.
_OPTIONS = {"client_max_retries": "5", "client_retry_timeout": "30"}
_RETRIES, _RETRY_SECONDS = 6, 30.0
_REMOVED = ".removed"
_BLANKS = b" \t"
#: Deletion files that are looked at, at once.
_AT_ONCE = 8
_APPENDS = 20
_LEFT_SECONDS = 60
_LONG = timedelta(days=1)


class ObjectBackend(Backend):
    """See `Backend`. Tables are looked at before Lance is let near them, as a folder's are."""

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, str] | None = None,
        *,
        disk_bytes: int = 4 << 30,
        lease_seconds: float = SECONDS,
    ) -> None:
        """
        Args:
            url: ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.
            storage_options: keys, endpoint and region as Lance takes them, such as ``{"aws_endpoint": "http://..."}``. What
                is not there comes from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...).
            disk_bytes: of this machine's disk, that may keep memories that were read; all banks that lie elsewhere share them.
            lease_seconds: a writer that gives no sign of life for so long is taken for dead. All writers must have the same.

        Raises:
            InputError: it is no such URL.
            MissingDependency: obstore is not installed.
        """
        checked = checked_store_url(url)
        if checked is None:
            raise InputError(f"{url!r:.200} is no URL of an object store: write s3://bucket/bank")
        self.location = checked
        self.disk_bytes = disk_bytes
        self._options = {**_OPTIONS, **(storage_options or {})}
        self._lease_seconds = lease_seconds
        self._objects = Objects(checked, self._options, retries=_RETRIES, seconds=_RETRY_SECONDS)
        self._hasty = Objects(checked, self._options, retries=3, seconds=lease_seconds / 6)
        self._lease: Lease | None = None
        self._writer = 0
        self._is_conditional = False
        self._sound: set[str] = set()

    # ---- small files -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """A prefix is there as soon as something has it."""

    def names(self) -> list[str]:
        objects, folders = self._objects.top()
        removed = {entry.name.removesuffix(_REMOVED) for entry in objects if entry.name.endswith(_REMOVED)}
        hidden = {f"{name}{end}" for name in removed for end in (_REMOVED, ".lance")}
        return sorted({*(entry.name for entry in objects), *folders} - hidden)

    def exists(self, name: str) -> bool:
        return self._objects.find(name) is not None or bool(name.endswith(".lance") and self._objects.below(name))

    def read(self, name: str, limit: int = SMALL_BYTES) -> bytes:
        if name != CURRENT:
            return self._objects.read(name, limit)[0]
        data = self._objects.read(name)[0].rstrip(_BLANKS)
        if len(data) > limit:
            raise UnsafeFile(errno.EINVAL, f"has more than {limit:,} bytes", self.address(name))
        return data

    def write(self, name: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        if name == CURRENT:
            self._put_current(data)
        else:
            self._objects.write(name, data)

    def append(self, name: str, content: str) -> int:
        for _ in range(_APPENDS):
            try:
                data, entry = self._objects.read(name, MOST_BYTES)
            except FileNotFoundError:
                data, entry = b"", None
            whole = data + content.encode()
            if (
                self._objects.create(name, whole) if entry is None else self._objects.replace(name, whole, entry.tag)
            ) is not None:
                return len(whole)
        raise BankBusy(f"{self.address(name)}: too many write to it at once. Try again")

    def remove(self, name: str) -> None:
        self._objects.remove([name])

    def age(self, name: str) -> float:
        entry = self._objects.find(name)
        if entry is None:
            raise FileNotFoundError(name)
        return self._objects.now() - entry.modified

    def sweep(self) -> None:
        for entry in self._objects.top()[0]:
            if entry.name.endswith(_REMOVED):
                self.remove_table(entry.name.removesuffix(_REMOVED))
            elif entry.name.startswith(".") and is_ours(entry.name) and self._objects.now() - entry.modified > _LEFT_SECONDS:
                self.remove(entry.name)  # of a clock that was not read

    def _put_current(self, data: bytes) -> None:
        """Exchange CURRENT, unless another writer has come between.

        Behind it stand 64 blanks and tabs that no other had: an S3 tag is a hash of the content, and nobody reads them.
        """
        self._require()
        content = data.rstrip(_BLANKS) + bytes(secrets.choice(_BLANKS) for _ in range(64))
        try:
            entry = self._objects.read(CURRENT)[1]
        except FileNotFoundError:
            entry = None
        self._require()
        if entry is None:
            done = self._objects.create(CURRENT, content) is not None
        else:
            done = self._objects.replace(CURRENT, content, entry.tag) is not None
        if not done and self._objects.read(CURRENT)[0] != content:  # else its answer was lost
            raise BankBusy(f"{self.location}: another writer has taken this bank over. Run the same again to go on")

    # ---- the one writer --------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        lease = Lease(self._hasty, self._lease_seconds)
        left = lease.take(wait_seconds)
        self._lease, self._writer = lease, get_ident()
        try:
            self._require_conditions()
            if left:
                self._fence()
            yield
        finally:
            self._lease = None
            lease.give_back()

    def _require_conditions(self) -> None:
        """A store that takes a conditional write for a plain one must not hold a bank: asked once."""
        if not self._is_conditional:
            if self._hasty.create(LOCK, b"") is not None or self._hasty.replace(LOCK, b"", Tag('"none"', "1")) is not None:
                raise BankRefused(
                    f"{self.location}: this store does not honour conditional writes (If-None-Match, If-Match), without which "
                    "two writers would destroy each other's work. Use one that does, such as Amazon S3"
                )
            self._is_conditional = True

    def _fence(self) -> None:
        for name in self.tables():
            if self.is_table(name):
                with writing(self.location):
                    table = self.open_table(name)
                    table.restore(table.version)
        if self._objects.find(CURRENT) is not None:
            self._put_current(self.read(CURRENT))

    def _require(self) -> None:
        """Within `lock`, by its thread: that it is still the writer."""
        lease = self._lease
        if lease is not None and self._writer == get_ident():
            lease.require()

    # ---- tables ----------------------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        return [name.removesuffix(".lance") for name in self.names() if name.endswith(".lance")]

    def is_table(self, name: str) -> bool:
        versions = self._objects.below(f"{name}.lance/_versions")
        return any(entry.name.endswith(".manifest") for entry in versions) and self._objects.find(name + _REMOVED) is None

    def create_table(self, name: str, schema: pa.Schema) -> Table:
        self._require()
        if self._objects.find(name + _REMOVED) is None:
            return self._connection.create_table(name, schema=schema)
        table = self._connection.create_table(name, schema=schema, mode="overwrite")
        self._objects.remove([name + _REMOVED])
        return table

    def open_table(self, name: str) -> Table:
        self._require()
        if name not in self._sound:
            fault = next(self.table_faults(name), None)
            if fault is not None:
                raise BankCorrupt(f"{fault}: restore the bank from a copy, or remove it and write the documents anew")
            self._sound.add(name)
        return self._connection.open_table(name)

    def remove_table(self, name: str) -> None:
        """What a stopped writer may still commit to it would bring it back, without its files. So an empty version stays,
        with which no commit that was begun before is compatible, and the object that says that there is no table.
        """
        self._sound.discard(name)
        found = [entry.name for entry in self._objects.below(f"{name}.lance")]
        is_marked = self._objects.find(name + _REMOVED) is not None
        if not found or (is_marked and not any("/data/" in path for path in found)):
            return
        self._require()
        self._objects.write(name + _REMOVED, b"")
        try:
            with reading(self.location):
                self._connection.create_table(name, schema=pa.schema([("removed", pa.bool_())]), mode="overwrite")
        except BankCorrupt:  # nobody can have it open
            self._objects.remove([*found, name + _REMOVED], self._require)
            return
        prune(ObjectTable(self._objects, f"{name}.lance", self._require), -_LONG, range(0), 0)

    def version_mark(self, name: str, version: int) -> str:
        for manifest in manifest_names(version):
            entry = self._objects.find(f"{name}.lance/{manifest}")
            if entry is not None:
                return f"{entry.tag.e_tag} {entry.tag.version} {entry.modified} {entry.size}"
        return ""

    def prune(self, name: str, grace: timedelta, passed: range = range(0)) -> None:
        with reading(self.location):
            fragments = self.open_table(name).stats()["fragment_stats"]["num_fragments"]  # type: ignore[index]  # in truth a dict
        files = ObjectTable(self._objects, f"{name}.lance", self._require)
        # What was listed before this moment was written by this writer or before it: no other has come since.
        self._require()
        prune(files, grace, passed, fragments)

    def table_faults(self, name: str) -> Iterator[str]:
        entries = self._objects.below(f"{name}.lance/_deletions")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from filter(None, pool.map(self._deletion_fault, entries))

    def _deletion_fault(self, entry: Entry) -> str:
        try:
            return deletion_fault(self.address(entry.name), self._objects.read(entry.name, MOST_BYTES)[0])
        except FileNotFoundError:
            return ""  # a writer has just removed it
        except UnsafeFile as error:
            return f"{self.address(entry.name)} {error.strerror}"

    def table_bytes(self, name: str, age: timedelta = timedelta(0)) -> int:
        entries = self._objects.below(f"{name}.lance/data")
        before = self._objects.now() - age.total_seconds() if age and entries else float("inf")
        return sum(entry.size for entry in entries if entry.modified <= before)

    def total_bytes(self) -> int:
        return sum(entry.size for entry in self._objects.below(""))

    def free_bytes(self) -> int:
        return 1 << 62

    @cached_property
    def _connection(self) -> lancedb.DBConnection:
        import lancedb

        return lancedb.connect(self.location, storage_options=self._options)
