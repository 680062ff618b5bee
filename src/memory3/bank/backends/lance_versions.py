"""Versions of a Lance table in a folder: telling them apart, and removing the old ones with the files that only they need.

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
from uuid import UUID

from memory3.files import read_bounded, remove

__all__ = ["prune", "version_mark"]

#: Lance counts versions from 1 up. Newer tables name a manifest by this number less the version, so that the newest is listed
#: first.
_LAST = 2**64 - 1
_MANIFEST = re.compile(r"([0-9]{1,20})\.manifest")
#: ``<fragment>-<version>-<random number>``: row numbers of a fragment that are deleted.
_DELETIONS = re.compile(r"[0-9]+-[0-9]+-([0-9]+)\.(arrow|bin)")
_MOST_BYTES = 1 << 30


def version_mark(folder: Path, version: int) -> str:
    """Which file lists what a version holds; "" where there is none. Another that takes its place has another mark.

    Args:
        folder: of the Lance table.
        version: number of the version.
    """
    for number in (_LAST - version, version):
        try:
            about = (folder / "_versions" / f"{number}.manifest").lstat()
        except OSError:
            continue
        return f"{about.st_ino} {about.st_mtime_ns} {about.st_size}"
    return ""


def prune(folder: Path, grace: timedelta, passed: range, fragments: int) -> None:
    """Remove old versions of a table and the files that no remaining one needs. Needs the lock.

    Each of the newest version's ``fragments`` has a data file of its own; where fewer are found, nothing is removed.
    Manifests go first: a reader that misses a file then finds its version gone, and looks for a newer one.

    Args:
        folder: of the Lance table.
        grace: how old a version must be to go.
        passed: versions that go whatever their age.
        fragments: how many the newest version has.
    """
    manifests = _manifests(folder)
    if manifests is None or not manifests:
        return
    newest, since = max(manifests), time.time() - grace.total_seconds()
    kept = {n for n, path in manifests.items() if path.lstat().st_mtime > since and n not in passed} | {newest}
    texts = {number: read_bounded(manifests[number], _MOST_BYTES) for number in kept}
    if len(_named(folder / "data", ".lance", [texts[newest]])) < fragments:
        return  # manifests are written otherwise than is known here, or data files are missing
    for number in manifests.keys() - kept:
        manifests[number].unlink(missing_ok=True)
    for path in _unneeded(folder, list(texts.values())):
        remove(path)


def _manifests(folder: Path) -> dict[int, Path] | None:
    """The manifest of each version.

    None where there is more to a table than its versions: tags and branches, which memory3 never makes.
    """
    if any((folder / name).exists() for name in ("_refs", "tree")):
        return None
    found: dict[int, Path] = {}
    for path in _entries(folder / "_versions"):
        match = _MANIFEST.fullmatch(path.name)
        if match is not None:
            number = int(match[1])
            found[_LAST - number if number > _LAST // 2 else number] = path
        elif path.suffix == ".manifest":
            return None
    return found


def _unneeded(folder: Path, manifests: Sequence[bytes]) -> Iterator[Path]:
    """Files that none of the manifests names, and manifests that were never put in place."""
    for name, suffix in (("data", ".lance"), ("_transactions", ".txn")):
        needed = _named(folder / name, suffix, manifests)
        yield from (path for path in _entries(folder / name) if path.suffix == suffix and path.name not in needed)
    for path in _entries(folder / "_deletions"):
        match = _DELETIONS.fullmatch(path.name)
        if match is not None and not _is_in(_varint(int(match[1])), manifests):
            yield path
    for path in _entries(folder / "_indices"):
        try:
            number = UUID(path.name)
        except ValueError:
            continue
        if not _is_in(number.bytes, manifests):
            yield path
    yield from (path for path in _entries(folder / "_versions") if path.name.startswith(".tmp"))


def _named(folder: Path, suffix: str, manifests: Sequence[bytes]) -> set[str]:
    """Names of files in a folder that some manifest has in it."""
    names = {path.name for path in _entries(folder) if path.suffix == suffix}
    lengths = {len(name.encode()) for name in names}
    found: set[bytes] = set()
    for text in manifests:
        for match in re.finditer(re.escape(suffix.encode()), text):
            found.update(text[max(0, match.end() - length) : match.end()] for length in lengths)
    return {name for name in names if name.encode() in found}


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_in(number: bytes, manifests: Sequence[bytes]) -> bool:
    return any(number in text for text in manifests)


def _varint(number: int) -> bytes:
    """A number as manifests have it: 7 bits a byte, the lowest first, the highest bit says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
