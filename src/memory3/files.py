"""Files of folders that may come from elsewhere: read within bounds and through no link, written whole or not at all.

A folder from a stranger can hold anything under the names we use: links to files of the user, pipes that never end,
devices, JSON a million brackets deep. So every small file is opened here.
"""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

__all__ = [
    "UnsafeFile",
    "append",
    "flush_folder",
    "json_lines",
    "open_unzipped",
    "parse_json",
    "read_bounded",
    "read_json",
    "remove",
    "write_atomically",
]

#: Of JSON files that people and programs keep settings in.
SMALL_BYTES = 4 << 20

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


#: What the process's user wants others not to have, asked once: asking sets it for a moment.
_UMASK = _umask()


class UnsafeFile(OSError):
    """A link, a pipe, a device or a folder where a file is wanted, or a file that is too large to be what it should be."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """The whole content or nothing, whatever happens; text as UTF-8. A link at ``path`` is replaced, not followed. Raises
    OSError.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_bounded(path: Path, limit: int = SMALL_BYTES) -> bytes:
    """The bytes of a regular file that is no link. Never waits for a pipe.

    Args:
        path: of the file.
        limit: bytes it may have.

    Raises:
        OSError: it cannot be read; UnsafeFile: it is no such file, or has more bytes.
    """
    handle = _open(path, os.O_RDONLY)
    with os.fdopen(handle, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnsafeFile(errno.EINVAL, f"has more than {limit:,} bytes", str(path))
    return data


def append(path: Path, content: str) -> int:
    """Add text to the end of a regular file that is no link, made if missing. Returns its size. Raises OSError.

    A file of several names (hard links) is replaced by its longer copy, so that none of the others changes.

    Args:
        path: of the file.
        content: written in UTF-8.
    """
    handle = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with os.fdopen(handle, "ab") as file:
        about = os.fstat(file.fileno())
        if about.st_nlink <= 1:
            file.write(content.encode())
            return file.tell()
    data = read_bounded(path, about.st_size) + content.encode()
    write_atomically(path, data)
    return len(data)


def open_unzipped(path: Path) -> BinaryIO:
    """A file's bytes to read; those of a ``.gz`` unzipped. Raises OSError, here and while it is read; what is zipped and
    damaged also EOFError and zlib.error.
    """
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def flush_folder(folder: Path, *, files: bool = True) -> None:
    """Bring a folder's names to the disk, and the content of all ``files`` below it, so that a power cut after it is renamed
    finds them whole. Raises OSError.
    """
    for path in folder.rglob("*") if files else ():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it; what links lead to stays. Nothing there is fine. Raises
    OSError.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """JSON as the standard has it: no NaN, no infinity, no key twice in an object, no nesting beyond Python's. Raises
    ValueError.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_lines(data: bytes) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines, each with the number of its line, from 1. Blank lines have none.

    Args:
        data: UTF-8, of a file that a person named.

    Raises:
        ValueError: a line is not JSON.
    """
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, json.loads(line.decode("utf-8-sig"))


def read_json(path: Path, limit: int = SMALL_BYTES) -> Any:
    """`parse_json` of a file, `read_bounded`. Raises OSError and ValueError.

    Args:
        path: of the file.
        limit: bytes it may have.
    """
    return parse_json(read_bounded(path, limit))


def _open(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags | _SAFE, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise UnsafeFile(error.errno, "is a symbolic link, which is not followed", str(path)) from None
        if error.errno == errno.ENXIO:  # a pipe without a reader, a socket
            raise UnsafeFile(error.errno, "is no regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnsafeFile(errno.EINVAL, "is no regular file", str(path))
    return handle


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} is there twice")
        found[key] = value
    return found
