"""What a table's folder may hold before Lance, which follows links and trusts lengths, is let near it.

- Folders and regular files, nothing else: a link could lead a write, a removal or a read out of the bank; a pipe never ends.
- Deletion files that can be read: Lance takes their lengths as they stand, and the whole process ends where one asks for a
  petabyte.

What cannot be seen from here: docs/bank-format.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from memory3.errors import BankCorrupt
from memory3.files import UnsafeFile, read_bounded

__all__ = ["MOST_BYTES", "deletion_fault", "deletion_faults", "require_plain", "require_sound"]

#: Row numbers of a fragment, at most 2^32 of 4 bytes; beyond this they are no list but a bitmap.
MOST_BYTES = 1 << 30


def require_sound(folder: Path) -> None:
    """Raise BankCorrupt unless a table's folder is plain and its deletion files can be read."""
    require_plain(folder)
    fault = next(deletion_faults(folder), None)
    if fault is not None:
        raise BankCorrupt(f"{fault}: restore the bank from a copy, or remove it and write the documents anew")


def require_plain(folder: Path) -> None:
    """Raise BankCorrupt if a folder or anything in it is a link, a pipe, a socket or a device."""
    if folder.is_symlink():
        raise _foreign(str(folder), "a symbolic link")
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        raise _foreign(entry.path, "a symbolic link" if entry.is_symlink() else "no regular file")
        except (FileNotFoundError, NotADirectoryError):
            continue  # a writer has just removed it


def deletion_faults(folder: Path) -> Iterator[str]:
    """One line for each deletion file of a table that cannot be read."""
    for path in sorted((folder / "_deletions").glob("*")):
        try:
            fault = deletion_fault(str(path), read_bounded(path, MOST_BYTES))
        except FileNotFoundError:
            continue  # a writer has just removed it
        except UnsafeFile as error:
            fault = f"{path} {error.strerror}"
        if fault:
            yield fault


def deletion_fault(path: str, data: bytes) -> str:
    """What is wrong with the deletion file ``path`` that holds ``data``; "" if nothing."""
    try:
        if path.endswith(".arrow"):
            _check_list(data)
        elif path.endswith(".bin"):
            _check_bitmap(data)
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        return f"the deletion file {path} is damaged ({(str(error).splitlines() or ['unreadable'])[0][:200]})"
    return ""


def _check_list(data: bytes) -> None:
    """An Arrow file of one column of row numbers."""
    with pa.ipc.open_file(pa.py_buffer(data)) as file:
        if [str(field.type) for field in file.schema] != ["uint32"]:
            raise ValueError(f"its columns are {file.schema.names}")
        rows = 0
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            batch.validate(full=True)
            rows += batch.num_rows
            if batch.column(0).null_count:
                raise ValueError("it has row numbers that are missing")
    if not rows:
        raise ValueError("it has no row numbers")


def _check_bitmap(data: bytes) -> None:
    """A Roaring bitmap: https://github.com/RoaringBitmap/RoaringFormatSpec.

    Containers with the sizes that its head says, and no more.
    """
    cookie = int.from_bytes(data[:4], "little")
    with_runs = cookie & 0xFFFF == 12347
    if not with_runs and cookie != 12346:
        raise ValueError("it is no Roaring bitmap")
    count = (cookie >> 16) + 1 if with_runs else int.from_bytes(data[4:8], "little")
    place = 4 if with_runs else 8
    runs = data[place : place + (count + 7) // 8] if with_runs else b""
    place += len(runs)
    if not 0 < count <= 1 << 16 or len(data) < place + 4 * count:
        raise ValueError("it is cut short")
    heads = [data[place + 4 * n : place + 4 * n + 4] for n in range(count)]
    place += 4 * count + (4 * count if not with_runs or count >= 4 else 0)
    for number, head in enumerate(heads):
        if with_runs and runs[number // 8] >> number % 8 & 1:
            place += 2 + 4 * int.from_bytes(data[place : place + 2], "little")
        else:
            place += min(2 * (int.from_bytes(head[2:], "little") + 1), 8192)
    if place != len(data):
        raise ValueError(f"it has {len(data)} bytes, its containers {place}")


def _foreign(path: str, what: str) -> BankCorrupt:
    return BankCorrupt(
        f"{path} is {what}: nothing in a bank's folder may lead out of it. "
        "Remove it if you did not put it there, or restore the bank from a copy"
    )
