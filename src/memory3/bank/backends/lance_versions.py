"""Versions of a Lance table: telling them apart, and removing the old ones with the files that only they need.

LanceDB removes old versions only together with a compaction that merges the whole table anew (lancedb#2325). So it is done
here, by what is known
of Lance's folders alone: a version is a manifest in ``_versions``, and a manifest names its version's files. Those names are
random numbers. So a file
whose number is in none of the manifests that stay belongs to none of their versions. A file that is wrongly taken for needed
costs space, no more.
Where anything is not as expected, nothing is removed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from uuid import UUID

from memory3.files import read_bounded, remove

__all__ = ["TableFiles", "manifest_names", "prune", "version_mark"]

#: Lance counts versions from 1 up. Newer tables name a manifest by this number less the version, so that the newest is listed
#: first.
_LAST = 2**64 - 1
_MANIFEST = re.compile(r"([0-9]{1,20})\.manifest")
#: ``<fragment>-<version>-<random number>``: row numbers of a fragment that are deleted.
_DELETIONS = re.compile(r"[0-9]+-[0-9]+-([0-9]+)\.(arrow|bin)")
_MOST_BYTES = 1 << 30


class TableFiles(Protocol):
    """The files of one table, wherever it lies."""

    def entries(self, folder: str) -> Sequence[tuple[str, float]]:
        """Names in a folder of the table, and when each was written; empty where there is no such folder."""
        ...

    def read(self, path: str) -> bytes:
        """A file of the table."""
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files, and folders with all in them."""
        ...

    def now(self) -> float:
        """The time by the clock that tells when files were written."""
        ...


class _Folder:
    """`TableFiles` on a disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def entries(self, folder: str) -> list[tuple[str, float]]:
        found = []
        try:
            for path in (self._folder / folder).iterdir():
                found.append((path.name, path.lstat().st_mtime))
        except (FileNotFoundError, NotADirectoryError):
            pass
        return found

    def read(self, path: str) -> bytes:
        return read_bounded(self._folder / path, _MOST_BYTES)

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            remove(self._folder / path)

    def now(self) -> float:
        return time.time()


def manifest_names(version: int) -> tuple[str, str]:
    """Names that the manifest of a version may have in its table."""
    return f"_versions/{_LAST - version}.manifest", f"_versions/{version}.manifest"


def version_mark(folder: Path, version: int) -> str:
    """Which file lists what a version holds; "" where there is none. Another that takes its place has another mark.

    Args:
        folder: of the Lance table.
        version: number of the version.
    """
    for name in manifest_names(version):
        try:
            about = (folder / name).lstat()
        except OSError:
            continue
        return f"{about.st_ino} {about.st_mtime_ns} {about.st_size}"
    return ""


def prune(table: Path | TableFiles, grace: timedelta, passed: range, fragments: int) -> None:
    """Remove old versions of a table and the files that no remaining one needs. Needs the lock.

    Each of the newest version's ``fragments`` has a data file of its own; where fewer are found, nothing is removed.
    Manifests go first: a reader that misses a file then finds its version gone, and looks for a newer one.

    Args:
        table: folder of the Lance table, or its files elsewhere.
        grace: how old a version must be to go.
        passed: versions that go whatever their age.
        fragments: how many the newest version has.
    """
    files = _Folder(table) if isinstance(table, Path) else table
    manifests = _manifests(files)
    if not manifests:
        return
    newest, since = max(manifests), files.now() - grace.total_seconds()
    kept = {n for n, (_, written) in manifests.items() if written > since and n not in passed} | {newest}
    texts = {number: files.read(manifests[number][0]) for number in kept}
    if len(_named(files, "data", ".lance", [texts[newest]])) < fragments:
        return  # manifests are written otherwise than is known here, or data files are missing
    files.remove([manifests[number][0] for number in sorted(manifests.keys() - kept)])
    files.remove(list(_unneeded(files, list(texts.values()))))


def _manifests(files: TableFiles) -> dict[int, tuple[str, float]] | None:
    """The manifest of each version, and when it was written.

    None where there is more to a table than its versions: tags and branches, which memory3 never makes.
    """
    if {name for name, _ in files.entries("")} & {"_refs", "tree"}:
        return None
    found: dict[int, tuple[str, float]] = {}
    for name, written in files.entries("_versions"):
        match = _MANIFEST.fullmatch(name)
        if match is not None:
            number = int(match[1])
            found[_LAST - number if number > _LAST // 2 else number] = f"_versions/{name}", written
        elif name.endswith(".manifest"):
            return None
    return found


def _unneeded(files: TableFiles, manifests: Sequence[bytes]) -> Iterator[str]:
    """Files that none of the manifests names, and manifests that were never put in place."""
    for folder, suffix in (("data", ".lance"), ("_transactions", ".txn")):
        needed = _named(files, folder, suffix, manifests)
        yield from (f"{folder}/{name}" for name, _ in files.entries(folder) if name.endswith(suffix) and name not in needed)
    for name, _ in files.entries("_deletions"):
        match = _DELETIONS.fullmatch(name)
        if match is not None and not _is_in(_varint(int(match[1])), manifests):
            yield f"_deletions/{name}"
    for name, _ in files.entries("_indices"):
        try:
            number = UUID(name)
        except ValueError:
            continue
        if not _is_in(number.bytes, manifests):
            yield f"_indices/{name}"
    yield from (f"_versions/{name}" for name, _ in files.entries("_versions") if name.startswith(".tmp"))


def _named(files: TableFiles, folder: str, suffix: str, manifests: Sequence[bytes]) -> set[str]:
    """Names of files in a folder that some manifest has in it."""
    names = {name for name, _ in files.entries(folder) if name.endswith(suffix)}
    lengths = {len(name.encode()) for name in names}
    found: set[bytes] = set()
    for text in manifests:
        for match in re.finditer(re.escape(suffix.encode()), text):
            found.update(text[max(0, match.end() - length) : match.end()] for length in lengths)
    return {name for name in names if name.encode() in found}


def _is_in(number: bytes, manifests: Sequence[bytes]) -> bool:
    return any(number in text for text in manifests)


def _varint(number: int) -> bytes:
    """A number as manifests have it: 7 bits a byte, the lowest first, the highest bit says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
