"""`StoredFiles`: the files that tenants have uploaded, as they came.

<tenant>/files/.upload-<random>     one that is still coming; a server that starts removes it
<tenant>/files/file-<hex><suffix>   the bytes; the suffix is one of those that our readers know, or none
<tenant>/files/file-<hex>.state     what is known of it: written last, so that a file is there when this is

A file goes the other way: first its state says that it goes, last its state goes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from memory3.files import flush_folder, read_json, remove
from memory3.serving.data_folder import (
    STATE_BYTES,
    DataFolder,
    NotStored,
    StorageFull,
    is_id,
    new_id,
    saving,
    write_state,
)
from memory3.text.readers.foreign import SUFFIXES
from memory3.text.readers.read import READERS

__all__ = ["PURPOSES", "Arriving", "StoredFile", "StoredFiles"]

PURPOSES = ("assistants", "user_data")

_STATE = ".state"
_PARTIAL = ".upload-"
_NAME_CHARACTERS = 255
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef]")


@dataclass(frozen=True)
class StoredFile:
    """What is known of a file.

    Attributes:
        id: ours.
        filename: the client's name of it, to be shown.
        purpose: one of `PURPOSES`.
        bytes: its size.
        created: nanoseconds since 1970.
        suffix: that tells our readers its format; empty where they know none.
        going: it is being deleted.
    """

    id: str
    filename: str
    purpose: str
    bytes: int
    created: int
    suffix: str
    going: bool = False


class Arriving:
    """A file that is coming in, in chunks. Use it as a context: what was not kept by its end leaves nothing behind."""

    def __init__(self, files: StoredFiles, tenant: str, folder: Path) -> None:
        self._files = files
        self._tenant = tenant
        self._folder = folder
        with saving():
            handle, self._name = tempfile.mkstemp(dir=folder, prefix=_PARTIAL)
        self._file: BinaryIO = os.fdopen(handle, "wb", buffering=1 << 18)
        self.size = 0
        self._kept = False

    def __enter__(self) -> Arriving:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            with suppress(OSError):  # what was buffered may not fit either
                self._file.close()
            Path(self._name).unlink(missing_ok=True)
            self._files.give_back(self._tenant, self.size)

    def write(self, data: bytes) -> None:
        """More of it.

        Raises:
            StorageFull: it is too large, the tenant has no room for it, or the disk has none.
        """
        self._files.take(self._tenant, self.size, len(data))
        self.size += len(data)
        with saving():
            self._file.write(data)

    def keep(self, filename: str, purpose: str) -> StoredFile:
        """It is whole. When this returns it is on the disk, and known.

        Args:
            filename: the client's name of it.
            purpose: one of `PURPOSES`.

        Raises:
            StorageFull: the disk is full.
        """
        about = StoredFile(
            new_id("file-"), shown_name(filename), purpose, self.size, time.time_ns(), readable_suffix(filename)
        )
        place = self._folder / (about.id + about.suffix)
        with saving():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._name, place)
            try:
                write_state(self._folder / (about.id + _STATE), asdict(about))
            except BaseException:
                place.unlink(missing_ok=True)
                raise
        self._kept = True
        self._files.arrived(self._tenant, about)
        return about


class StoredFiles:
    """The files of all tenants. Safe to call from any thread."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._files: dict[str, dict[str, StoredFile]] = {}  # by the name of the tenant's folder
        self._bytes: dict[str, int] = {}
        for folder, _ in data.tenants():
            found = _found(folder / "files")
            self._files[folder.name] = found
            self._bytes[folder.name] = sum(file.bytes for file in found.values())

    def arriving(self, tenant: str) -> Arriving:
        """Begin to take a file of a tenant.

        Raises:
            StorageFull: the tenant has as many files as may be, or the disk is full.
        """
        folder = self._data.tenant(tenant)
        with self._lock:
            most = self._data.limits.tenant_files
            if len(self._files.get(folder.name, ())) >= most:
                raise StorageFull(f"There are {most:,} files, which is the most: delete some.")
        return Arriving(self, tenant, folder / "files")

    def take(self, tenant: str, size: int, more: int) -> None:
        """Make room for more of a file.

        Args:
            tenant: whose it is.
            size: bytes that it has.
            more: bytes that come.

        Raises:
            StorageFull: there is none.
        """
        limits, folder = self._data.limits, self._data.tenant(tenant)
        if size + more > limits.file_bytes:
            raise StorageFull(f"The file has more than {limits.file_bytes:,} bytes, which is the most: split it.", "file")
        if limits.free_bytes and shutil.disk_usage(folder).free < limits.free_bytes + more:
            raise StorageFull
        with self._lock:
            there = self._bytes.get(folder.name, 0)
            if there + more > limits.tenant_bytes:
                raise StorageFull(
                    f"All files together would have more than {limits.tenant_bytes:,} bytes, which is the most: delete some."
                )
            self._bytes[folder.name] = there + more

    def give_back(self, tenant: str, size: int) -> None:
        """So many bytes were not kept, or are gone.

        Args:
            tenant: whose they were.
            size: how many.
        """
        folder = self._data.tenant(tenant)
        with self._lock:
            self._bytes[folder.name] = self._bytes.get(folder.name, 0) - size

    def arrived(self, tenant: str, file: StoredFile) -> None:
        """A file is there.

        Args:
            tenant: whose it is.
            file: what is known of it.
        """
        folder = self._data.tenant(tenant)
        with self._lock:
            self._files.setdefault(folder.name, {})[file.id] = file

    def all(self, tenant: str) -> list[StoredFile]:
        """The files of a tenant, oldest first."""
        folder = self._data.tenant(tenant)
        with self._lock:
            there = list(self._files.get(folder.name, {}).values())
        return sorted((file for file in there if not file.going), key=lambda file: (file.created, file.id))

    def get(self, tenant: str, file_id: str) -> StoredFile:
        """One file.

        Args:
            tenant: who asks.
            file_id: from a client.

        Raises:
            NotStored: the tenant has none of that id.
        """
        folder = self._data.tenant(tenant)
        with self._lock:
            file = self._files.get(folder.name, {}).get(file_id)
        if file is None or file.going:
            raise NotStored("file", file_id)
        return file

    def held(self, tenant: str) -> tuple[int, int]:
        """How many files a tenant has, and their bytes; also those that are being deleted."""
        folder = self._data.tenant(tenant)
        with self._lock:
            return len(self._files.get(folder.name, ())), self._bytes.get(folder.name, 0)

    def size(self, tenant_folder: str, file_id: str) -> int:
        """Bytes of a file; 0: it is not there.

        Args:
            tenant_folder: name of the folder.
            file_id: of the file.
        """
        with self._lock:
            file = self._files.get(tenant_folder, {}).get(file_id)
        return 0 if file is None else file.bytes

    def path(self, tenant: str, file: StoredFile) -> Path:
        """Where a file's bytes are.

        Args:
            tenant: whose it is.
            file: of `get`.
        """
        return self._data.tenant(tenant) / "files" / (file.id + file.suffix)

    def begin_deletion(self, tenant: str, file_id: str) -> None:
        """From now on a file is not there for its tenant; its bytes still are. Survives a restart.

        Args:
            tenant: who asks.
            file_id: from a client.

        Raises:
            NotStored: the tenant has none of that id.
        """
        file, folder = self.get(tenant, file_id), self._data.tenant(tenant)
        gone = StoredFile(**{**asdict(file), "going": True})
        write_state(folder / "files" / (file.id + _STATE), asdict(gone))
        with self._lock:
            self._files[folder.name][file.id] = gone

    def going(self) -> list[tuple[str, StoredFile]]:
        """Files whose deletion has begun, each behind the name of its tenant's folder."""
        with self._lock:
            return [(folder, file) for folder, files in self._files.items() for file in files.values() if file.going]

    def finish_deletion(self, tenant_folder: str, file: StoredFile) -> None:
        """Remove a file's bytes, then what is known of it.

        Args:
            tenant_folder: name of the folder.
            file: whose deletion has begun.
        """
        folder = self._data.path / tenant_folder / "files"
        remove(folder / (file.id + file.suffix))
        remove(folder / (file.id + _STATE))
        flush_folder(folder, files=False)
        with self._lock:
            if self._files[tenant_folder].pop(file.id, None):
                self._bytes[tenant_folder] = self._bytes.get(tenant_folder, 0) - file.bytes


def _found(folder: Path) -> dict[str, StoredFile]:
    """The files that are whole. What an interruption left is removed."""
    found: dict[str, StoredFile] = {}
    for path in folder.glob("file-*" + _STATE):
        if is_id("file-", path.name.removesuffix(_STATE)):
            file = StoredFile(**read_json(path, STATE_BYTES))
            if file.going or (folder / (file.id + file.suffix)).is_file():
                found[file.id] = file
    wanted = {file.id + ending for file in found.values() for ending in (file.suffix, _STATE)}
    for path in folder.iterdir():
        ours = path.name.startswith((_PARTIAL, ".file-")) or is_id("file-", path.name.partition(".")[0])
        if ours and path.name not in wanted:
            remove(path)
    return found


def shown_name(filename: str) -> str:
    """The client's name of a file as text that can be shown: its last part, without what cannot be shown, bounded."""
    last = PurePosixPath(_UNSHOWN.sub("", filename).replace("\\", "/")).name
    return last[-_NAME_CHARACTERS:].strip() or "file"


def readable_suffix(filename: str) -> str:
    """The end of a client's file name if it is one that our readers know, such as ``.pdf`` or ``.jsonl.gz``, or know not to
    read, such as ``.docx``; else nothing.
    """
    name = shown_name(filename).lower()
    zipped = ".gz" if name.endswith(".gz") else ""
    kind = PurePosixPath(name.removesuffix(".gz")).suffix
    return (kind if kind in READERS or kind in SUFFIXES else "") + zipped
