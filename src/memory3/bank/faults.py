"""What Lance and the file system raise, turned into memory3's errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from memory3.errors import BankCorrupt, BankError, BankFull, Memory3Error

__all__ = ["is_full", "reading", "writing"]

_LANCE_ERRORS = (RuntimeError, OSError, ValueError, pa.ArrowException)
_FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = ("no space left on device", "os error 28", "quota exceeded", "os error 122")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Failures to read are damage: files missing or cut short."""
    try:
        yield
    except Memory3Error:
        raise
    except _LANCE_ERRORS as error:
        raise BankCorrupt(
            f"{path}: the bank's files cannot be read ({_first_line(error)}). "
            "Restore the folder from a copy, or remove it and write the documents anew"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failures to write: a full disk above all. Lance commits by renaming, so what was committed before stays whole."""
    try:
        yield
    except Memory3Error:
        raise
    except _LANCE_ERRORS as error:
        if is_full(error):
            raise BankFull(
                f"{path}: no space left on the device. What was committed before is intact: free some space and run the "
                "same command again to go on"
            ) from error
        raise BankError(f"{path}: the bank cannot be written ({_first_line(error)})") from error


def is_full(error: BaseException | None) -> bool:
    """Does an error, or what caused it, say that the disk is full?"""
    while error is not None:
        text = str(error).lower()
        if getattr(error, "errno", None) in _FULL_ERRNO or any(part in text for part in _FULL_TEXT):
            return True
        error = error.__cause__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
