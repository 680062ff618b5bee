"""Errors of workers, raised here as they were there."""

from __future__ import annotations

from memory3 import errors
from memory3.errors import ConfigError, Memory3Error

__all__ = ["same_everywhere"]

#: Errors that another worker would meet, too.
_KINDS: dict[str, type[Memory3Error]] = {
    kind.__name__: kind
    for kind in (errors.BankFull, errors.ConfigError, errors.DownloadError, errors.InputError, errors.ModelError)
}


def same_everywhere(name: str, message: str) -> Memory3Error | None:
    """The error of a worker, if another worker would meet it, too. None: it may be the worker's own.

    Args:
        name: of the error's class.
        message: the error's.
    """
    if name == "FingerprintMismatch":
        return ConfigError(f"a worker holds another model than the bank's: {message[:1000]}")
    if name == "MissingDependency":
        return ConfigError(f"on a worker: {message[:1000]}")
    return _KINDS[name](message) if name in _KINDS else None
