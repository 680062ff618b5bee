"""`Versions`: the versions of banks that other machines are reading, so that one that was replaced answers for a while."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from threading import Lock
from typing import Any

from memory3.bank.format.rows import FIRST_ROWS
from memory3.bank.remote.about import About
from memory3.bank.view import BankView
from memory3.serving.catalogue import Served
from memory3.serving.errors import Refused

__all__ = ["Versions", "version_gone"]

#: Versions of one bank that are kept open: each may have its embeddings in RAM.
KEPT = 3


def version_gone() -> Refused:
    """410: a version that was replaced, and whose files are gone or were let go."""
    return Refused(410, "This version of the bank was replaced: open the newest.", code="version_gone")


class Versions:
    """Of all banks of a server. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[str, tuple[Any, OrderedDict[str, tuple[BankView, About]]]] = {}

    def find(self, served: Served, version: str | None) -> tuple[BankView, About]:
        """A version of a bank, to read from, and what it is.

        Args:
            served: the bank.
            version: as `memory3.bank.format.versions.version_text` says it; None: the newest.

        Raises:
            Refused: 410: it is not there any more; 400: the bank does not lie on this machine.
        """
        view = served.bank.pin()
        if not isinstance(view, BankView):
            raise Refused(400, f"The bank {served.name!r} does not lie on this server: read it where it does.")
        newest = view.version
        with self._lock:
            bank, versions = self._open.get(served.name, (None, OrderedDict()))
            if bank is not served.bank:  # another has the name now: nobody may read the old one by it
                versions = OrderedDict()
                self._open[served.name] = served.bank, versions
            if newest in versions:
                versions.move_to_end(newest)
            found = versions.get(newest if version is None else version)
        if found is not None:
            return found
        if version not in (None, newest):
            raise version_gone()
        snapshot = view.snapshot
        documents = len(snapshot.scan(["document_id"], FIRST_ROWS))
        manifest = dataclasses.replace(snapshot.manifest, references=snapshot.size, documents=documents)
        found = view, About(manifest, newest)
        with self._lock:
            versions[newest] = found
            while len(versions) > KEPT:
                versions.popitem(last=False)
        return found
