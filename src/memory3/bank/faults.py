"""What Lance and the file system raise, turned into memory3's errors: of the disk, of the format, of the machine, told apart.

``path`` is where the bank lies, as the message says it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from memory3.bank.address import is_store_url
from memory3.bank.store_faults import store_fault
from memory3.errors import BankCorrupt, BankError, BankFull, Memory3Error
from memory3.files import UnsafeFile

__all__ = ["disk_fault", "is_full", "reading", "writing"]

_LANCE_ERRORS = (RuntimeError, OSError, ValueError, MemoryError, OverflowError, pa.ArrowException)
_FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = ("no space left on device", "os error 28", "quota exceeded", "os error 122")

#: What is wrong with the machine and not with the files: its error numbers, what Lance's messages say of it, what it is and
#: what helps.
_DISK: tuple[tuple[tuple[int, ...], tuple[str, ...], str], ...] = (
    (
        (errno.EMFILE, errno.ENFILE),
        ("too many open files", "os error 24)", "os error 23)"),
        "too many open files: raise the limit with `ulimit -n 4096`, or close banks and processes that are not needed",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        (
            "permission denied",
            "operation not permitted",
            "read-only file system",
            "os error 13)",
            "os error 1)",
            "os error 30)",
        ),
        "no permission: see who owns the folder and its files, and whether the file system is mounted read-only",
    ),
    (
        (errno.ENOMEM,),
        ("cannot allocate memory", "out of memory", "os error 12)", "malloc of size", "realloc of size"),
        "out of memory: close other programs, or read and write less at once",
    ),
    (
        (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT),
        ("input/output error", "stale file handle", "os error 5)", "os error 116)", "os error 107)"),
        "the disk or the network drive fails: try again, and check it before you write to it",
    ),
)


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Failures to read: of the disk, or else damage, such as files missing or cut short."""
    try:
        yield
    except Memory3Error:
        raise
    except BaseException as error:
        if not _is_lances(error):
            raise
        raise disk_fault(path, error) from error


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Failures to write: a full disk above all. Lance commits by renaming, so what was committed before stays whole."""
    try:
        yield
    except Memory3Error:
        raise
    except BaseException as error:
        if not _is_lances(error):
            raise
        if is_store_url(path) and (fault := store_fault(path, error)):
            raise fault from error
        if is_full(error):
            raise BankFull(
                f"{path}: no space left on the device. What was committed before is intact: free some space and run the "
                "same command again to go on"
            ) from error
        remedy = _of_the_machine(error)
        raise BankError(f"{path}: the bank cannot be written ({remedy or _first_line(error)})") from error


def disk_fault(path: object, error: BaseException) -> BankError:
    """The error of a read that failed: BankCorrupt only where nothing but the files can be at fault.

    Args:
        path: of the bank, for the message.
        error: what the read raised.
    """
    if is_store_url(path) and (fault := store_fault(path, error)):
        return fault
    remedy = _of_the_machine(error)
    if remedy is not None:
        return BankError(f"{path}: the bank cannot be read now, and may be whole ({_first_line(error)}): {remedy}")
    return BankCorrupt(
        f"{path}: the bank's files cannot be read ({_first_line(error)}). "
        "Restore the folder from a copy, or remove it and write the documents anew"
    )


def is_full(error: BaseException | None) -> bool:
    """Does an error, or what caused it, say that the disk is full?"""
    return _says(error, _FULL_ERRNO, _FULL_TEXT)


def _is_lances(error: BaseException) -> bool:
    """A panic of Lance's Rust reaches Python as a class of its own, made at run time."""
    return isinstance(error, _LANCE_ERRORS) or type(error).__name__ in ("RustPanic", "PanicException")


def _of_the_machine(error: BaseException) -> str | None:
    if isinstance(error, UnsafeFile):
        return None
    if isinstance(error, MemoryError | pa.ArrowMemoryError):
        return _DISK[2][2]
    return next((remedy for numbers, texts, remedy in _DISK if _says(error, numbers, texts)), None)


def _says(error: BaseException | None, numbers: tuple[int, ...], texts: tuple[str, ...]) -> bool:
    while error is not None:
        text = str(error).lower()
        if getattr(error, "errno", None) in numbers or any(part in text for part in texts):
            return True
        error = error.__cause__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300] or type(error).__name__
