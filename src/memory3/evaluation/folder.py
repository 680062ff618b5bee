"""A folder of results: every item's outcome as it comes, so that a run that dies goes on where it was.

``items.jsonl`` grows by one batch at a time, written whole and synced; a batch cut short by a crash is cut off at the next
opening. Every row carries the hash of all settings that its outcome depends on, and is read only by a run of the same
settings: results of different settings never mix.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memory3.errors import ConfigError, InputError

__all__ = ["ResultsFolder", "settings_key"]

ITEMS = "items.jsonl"


def settings_key(settings: Mapping[str, Any]) -> str:
    """16 hex digits that differ when any setting does."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class ResultsFolder:
    """Rows by settings key. One writer at a time; use as a context.

    Raises:
        InputError: the path is no folder or cannot be written.
        ConfigError: another evaluation is writing it.
    """

    def __init__(self, path: str | os.PathLike[str], reuse: Sequence[str | os.PathLike[str]] = ()) -> None:
        """``reuse``: other folders, whose rows are read as if they were here."""
        self.path = Path(path)
        self._reuse = [Path(other) for other in reuse]
        for other in self._reuse:
            if not (other / ITEMS).is_file():
                raise InputError(f"{other}: has no {ITEMS}, so there is nothing to reuse")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be a results folder: {error.strerror}") from None
        self._lock = FileLock(self.path / ".lock")
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}

    def __enter__(self) -> ResultsFolder:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"{self.path}: another evaluation is writing this folder: wait for it, or name another"
            ) from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from None
        for other in self._reuse:
            self._load(other / ITEMS)
        self._mend()
        self._load(self.path / ITEMS)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def rows(self, key: str) -> dict[str, dict[str, Any]]:
        """What was measured under these settings, by item."""
        return self._rows.get(key, {})

    def append(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch; each row has its item's ``id``. On return it is on the disk.

        Args:
            key: of the settings (`settings_key`).
            rows: one per item.

        Raises:
            InputError: the file cannot be written.
        """
        lines = "".join(json.dumps({"key": key, **row}, ensure_ascii=False, allow_nan=True) + "\n" for row in rows)
        try:
            with (self.path / ITEMS).open("ab") as file:
                file.write(lines.encode("utf-8", "surrogatepass"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path / ITEMS}: cannot be written: {error.strerror}") from None
        for row in rows:
            self._rows.setdefault(key, {})[str(row["id"])] = dict(row)

    def _mend(self) -> None:
        """Cut off a batch that a crash cut short."""
        path = self.path / ITEMS
        if path.exists():
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                with path.open("r+b") as file:
                    file.truncate(whole)

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        for number, line in enumerate(path.read_bytes().decode("utf-8", "surrogatepass").split("\n")[:-1], 1):
            try:
                row = json.loads(line)
                self._rows.setdefault(row["key"], {})[str(row["id"])] = {k: v for k, v in row.items() if k != "key"}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(f"{path}, line {number}: is no result; delete the line, or name another folder") from None
