"""The folder that a server keeps what its clients upload in: one server at a time, a folder per tenant, nothing half written.

<data>/server.lock                  locked by the one server; the system releases the lock when its process ends
<data>/<tenant>/files/              files as they came, and what is known of each
<data>/<tenant>/stores/<store>/     a vector store: what is known of it and of its files, and its bank

All names are ours. What a client calls a file is text in a state file and never part of a path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memory3.errors import ServingError
from memory3.files import flush_folder, read_json, write_atomically
from memory3.serving.errors import Refused

__all__ = [
    "STATE_BYTES",
    "DataFolder",
    "NotStored",
    "StorageFull",
    "StorageLimits",
    "is_id",
    "new_id",
    "saving",
    "write_state",
]

#: What a state file may have: names and a few attributes.
STATE_BYTES = 1 << 20

_ID = re.compile(r"(file-|vs_|vsfb_)[0-9a-f]{32}")
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class NotStored(Refused):
    """404: no file, store or batch of this tenant has this id. Of another tenant's the same is said."""

    def __init__(self, what: str, id_: str, param: str | None = None) -> None:
        """
        Args:
            what: was looked for.
            id_: as the client said it.
            param: the field that named it.
        """
        message = f"The {what} {id_!r:.200} does not exist or you do not have access to it."
        super().__init__(404, message, param=param, code=f"{what.replace(' ', '_')}_not_found")


class StorageFull(Refused):
    """413: it exceeds what a tenant may keep; 507: the disk is full. Nothing of it was kept."""

    def __init__(self, message: str = "", param: str | None = None) -> None:
        """
        Args:
            message: which bound; empty: the disk is full.
            param: the field that is to blame.
        """
        if message:
            super().__init__(413, message, param=param, code="storage_limit")
        else:
            full = "The server's disk is full: nothing of this was kept. Delete files, or ask later."
            super().__init__(507, full, kind="server_error", code="disk_full")


@dataclass(frozen=True)
class StorageLimits:
    """What clients may leave on the server.

    Attributes:
        file_bytes: of one file.
        tenant_bytes: of all files of a tenant.
        tenant_files: files of a tenant.
        tenant_stores: vector stores of a tenant.
        store_files: files of a vector store.
        free_bytes: that uploads leave free on the disk, so that what is being encoded has room.
        read_seconds: to turn one file into text.
        text_bytes: of the text of one file, unzipped.
    """

    file_bytes: int = 64 << 20
    tenant_bytes: int = 10 << 30
    tenant_files: int = 10_000
    tenant_stores: int = 100
    store_files: int = 10_000
    free_bytes: int = 0
    read_seconds: float = 120.0
    text_bytes: int = 64 << 20


def new_id(kind: str) -> str:
    """An id that nobody can guess, such as ``file-3f...``. ``kind``: ``"file-"``, ``"vs_"`` or ``"vsfb_"``."""
    return kind + secrets.token_hex(16)


def is_id(kind: str, text: str) -> bool:
    """Whether a text from a client is an id as `new_id` makes them, so that it may be a name in a folder.

    Args:
        kind: of the id.
        text: from anywhere.
    """
    found = _ID.fullmatch(text)
    return found is not None and found[1] == kind


@contextmanager
def saving() -> Iterator[None]:
    """What the file system refuses while a client's data is written, as `StorageFull`: of the disk, or of our own bounds."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull from error


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """A state file, whole or not at all, and on the disk when this returns. Raises `StorageFull`, OSError.

    Args:
        path: of the file.
        state: plain values.
    """
    with saving():
        write_atomically(path, json.dumps(state))
        flush_folder(path.parent, files=False)


class DataFolder:
    """The folder, locked for this server.

    Attributes:
        path: of the folder.
        limits: what clients may leave in it.
    """

    def __init__(self, path: str | os.PathLike[str], limits: StorageLimits | None = None) -> None:
        """
        Args:
            path: made if missing.
            limits: what clients may leave in it.

        Raises:
            ServingError: another server uses it, or it cannot be made.
        """
        self.path = Path(path).expanduser().absolute()
        self.limits = limits or StorageLimits()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ServingError(f"{self.path} cannot be used for uploads: {error.strerror}") from error
        self._lock = FileLock(self.path / "server.lock", thread_local=False)  # another thread may close it
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ServingError(f"{self.path}: another server keeps its uploads here: give each its own --files") from None

    def close(self) -> None:
        """Let another server have it."""
        self._lock.release()

    def tenant(self, name: str) -> Path:
        """The folder of a tenant, made if missing. Its name is a hash: a tenant may be called anything. Raises StorageFull."""
        path = self.path / f"tenant-{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
        with saving():
            for folder in (path, path / "files", path / "stores"):
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True, mode=0o700)
                    flush_folder(folder.parent, files=False)
            if not (path / "tenant.json").is_file():
                write_state(path / "tenant.json", {"name": name, "since": time.time_ns()})
        return path

    def tenants(self) -> Iterator[tuple[Path, str]]:
        """The folders of all tenants who ever left something, with the names of these tenants."""
        for path in sorted(self.path.glob("tenant-*")):
            told = path / "tenant.json"
            if not path.is_symlink() and told.is_file() and (path / "stores").is_dir():
                yield path, str(read_json(told, STATE_BYTES)["name"])
