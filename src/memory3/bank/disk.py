"""`DiskCache`: the tier on this machine's disk: what was fetched from elsewhere, kept in a folder, bounded in bytes.

One file for each entry, named by a hash of its key:

    8 bytes   b"m3cache" and the format's number, 1
    16 bytes  xxh3-128 of all that follows
    4 bytes   length of the key
    key, content

Several processes share a folder. A file is written beside its place and renamed, so a reader finds it whole or not at all;
what is damaged all the same is removed, and counts as missing. How many bytes and entries there are is kept in a file and
changed under a lock, before anything is written: a process that is killed leaves it too high, which the next count puts
right.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from memory3.bank.cache import CacheStatistics
from memory3.files import read_bounded

__all__ = ["DiskCache"]

_MAGIC = b"m3cache\x01"
_FIXED = len(_MAGIC) + 16 + 4
_BLOCK = 4096  # what a file takes at least
#: What a count leaves: not to count again at once.
_LEAVE = 0.9
#: Seconds after which an unfinished file belongs to nobody.
_ABANDONED = 600.0
_LOCK_SECONDS = 5.0


class DiskCache:
    """Least recently used goes first. Safe to share between threads and processes. Where the disk does not do what it
    should, nothing is kept: it is a cache.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        """
        Args:
            folder: of the cache, made if missing.
            capacity: bytes on disk at most; 0 keeps nothing.
        """
        self.folder = folder
        self.capacity = capacity
        if capacity > 0:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = FileLock(folder / "lock", timeout=_LOCK_SECONDS)
        self._evictions = 0

    def get(self, key: str) -> bytes | None:
        """What is kept under ``key``, now the most recently used; None where there is nothing, or nothing whole."""
        if self.capacity <= 0:
            return None
        path = self._path(key)
        try:
            data = read_bounded(path, self.capacity)
        except OSError:
            return None
        content = _content(data, key)
        with contextlib.suppress(OSError):
            if content is None:
                path.unlink()
            else:
                os.utime(path)
        return content

    def put(self, entries: Mapping[str, bytes], *, replace: bool = False) -> None:
        """Keep contents. Those that are larger than the cache are not kept.

        Args:
            entries: contents by key.
            replace: also what is there already, which is the same otherwise.
        """
        files = {self._path(key): _file(key, content) for key, content in entries.items()}
        files = {path: data for path, data in files.items() if _room(len(data)) <= self.capacity}
        with contextlib.suppress(OSError, Timeout):
            for path, data in files.items():
                with self._lock:
                    if not replace and path.exists():
                        continue
                    self._make_room(_room(len(data)), not path.exists())
                    _write(path, data)

    def discard(self, key: str) -> None:
        """Forget what is kept under ``key``: it is not what it should be."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def statistics(self) -> CacheStatistics:
        """What is on disk, of all processes, as it is kept count of: rather too much than too little. What this process put
        out. Hits are for those to count who know what they look for.
        """
        total, entries = self._counted() or (0, 0) if self.capacity > 0 else (0, 0)
        return CacheStatistics(evictions=self._evictions, entries=entries, bytes=total, capacity=max(0, self.capacity))

    def total(self) -> int:
        """Bytes on disk, counted."""
        return sum(room for _, _, room in self._files())

    def _make_room(self, wanted: int, new: bool) -> None:
        """Count ``wanted`` bytes in, and let the least recently used go that do not fit then. Held: the lock."""
        counted = self._counted()
        if counted is None or counted[0] + wanted > self.capacity:
            counted = self._evict(wanted)
        (self.folder / "bytes").write_text(f"{counted[0] + wanted} {counted[1] + new}")

    def _counted(self) -> tuple[int, int] | None:
        """Bytes and entries. Earlier releases counted bytes alone; then both are counted anew."""
        try:
            total, entries = read_bounded(self.folder / "bytes", 64).split()
            return int(total), int(entries)
        except (OSError, ValueError):
            return None

    def _evict(self, wanted: int) -> tuple[int, int]:
        files = sorted(self._files())
        entries = len(files)
        total = sum(room for _, _, room in files)
        aim = total if total + wanted <= self.capacity else int(self.capacity * _LEAVE) - wanted
        for _, path, room in files:
            if total <= max(aim, 0):
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= room
            entries -= 1
            self._evictions += 1
        return total, entries

    def _files(self) -> Iterator[tuple[float, str, int]]:
        """When each was used, its path, and the bytes it takes. What was never finished is removed."""
        old = time.time() - _ABANDONED
        with contextlib.suppress(OSError):
            for part in os.scandir(self.folder):
                if not part.is_dir(follow_symlinks=False):
                    continue
                for entry in os.scandir(part.path):
                    with contextlib.suppress(OSError):
                        about = entry.stat(follow_symlinks=False)
                        if entry.name.startswith(".") and about.st_mtime < old:
                            os.unlink(entry.path)
                        else:
                            yield about.st_mtime, entry.path, _room(about.st_size)

    def _path(self, key: str) -> Path:
        name = xxh3_128_hexdigest(key.encode("utf-8", "surrogatepass"))
        return self.folder / name[:2] / name[2:]


def _room(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _file(key: str, content: bytes) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    rest = b"".join([len(name).to_bytes(4, "little"), name, content])
    return b"".join([_MAGIC, xxh3_128_digest(rest), rest])


def _content(data: bytes, key: str) -> bytes | None:
    """What a file holds for ``key``; None where it is damaged, or another's."""
    name = key.encode("utf-8", "surrogatepass")
    start = _FIXED + len(name)
    if (
        len(data) < start
        or data[: len(_MAGIC)] != _MAGIC
        or xxh3_128_digest(data[_FIXED - 4 :]) != data[len(_MAGIC) : _FIXED - 4]
    ):
        return None
    if int.from_bytes(data[_FIXED - 4 : _FIXED], "little") != len(name) or data[_FIXED:start] != name:
        return None
    return data[start:]


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, but not flushed: what a power cut damages is told by its checksum."""
    path.parent.mkdir(exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
