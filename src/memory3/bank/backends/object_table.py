"""The files of one Lance table on object storage, as one listing has them, for `memory3.bank.backends.lance_versions`."""

# ruff: noqa: D102 - what the methods promise is said once, in `TableFiles`.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from memory3.bank.backends.lance_folder import MOST_BYTES
from memory3.bank.backends.objects import Objects

__all__ = ["ObjectTable"]


class ObjectTable:
    """Listed when it is made; what is written later is not seen. `memory3.bank.backends.lance_versions.TableFiles`."""

    def __init__(self, objects: Objects, table: str, allowed: Callable[[], None]) -> None:
        """
        Args:
            objects: of the bank.
            table: name of the table's folder.
            allowed: called before each request that deletes; raises where this is no longer the writer.
        """
        self._objects = objects
        self._table = table
        self._allowed = allowed
        self._names: dict[str, dict[str, float]] = defaultdict(dict)
        listing = objects.below(table)
        for entry in listing:
            parts = entry.name.removeprefix(f"{table}/").split("/")
            for depth in range(min(len(parts), 2)):
                self._names["/".join(parts[:depth])][parts[depth]] = entry.modified
        self._all = [entry.name for entry in listing]

    def entries(self, folder: str) -> list[tuple[str, float]]:
        return list(self._names.get(folder, {}).items())

    def read(self, path: str) -> bytes:
        return self._objects.read(f"{self._table}/{path}", MOST_BYTES)[0]

    def remove(self, paths: Sequence[str]) -> None:
        wanted = {f"{self._table}/{path}" for path in paths}
        names = [name for name in self._all if name in wanted or name.rpartition("/")[0] in wanted]
        self._objects.remove(names, self._allowed)

    def now(self) -> float:
        return self._objects.now()
