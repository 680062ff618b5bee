"""`Lease`: the one writer of a bank on object storage. An object says who writes, and conditional writes decide who that is.

``writer.lock`` holds the writer's id, which the writer renews while it works, and nothing's once it is done. It is
never deleted: every change of hands is one conditional write, of which the store lets one through. A writer that gave no sign
of life for `SECONDS`, by the store's own clock, is taken for dead, and its place taken.

A writer that was only stopped for so long finds its lease gone when it goes on; what it may still have under way is kept out
by a fence (`memory3.bank.backends.object_store`).
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from threading import Event, Lock, Thread
from typing import Any
from uuid import uuid4

from memory3.bank.backends.objects import Entry, Objects, Tag, boot_clock
from memory3.bank.format.names import LOCK
from memory3.errors import BankBusy, BankError
from memory3.files import UnsafeFile, parse_json

__all__ = ["SECONDS", "Lease"]

#: Without a sign of life for so long, a writer is taken for dead.
SECONDS = 30.0
#: It gives one this many times in that time.
_SIGNS = 6
#: A store tells times in whole seconds: so much earlier a writer takes itself for dead, and so much later others do.
_OWN_MARGIN, _OTHERS_MARGIN = 1.0, 2.0
#: Who waits looks again after about so long.
_LOOK_SECONDS = 1.0


class Lease:
    """Of one writer, once."""

    def __init__(self, objects: Objects, seconds: float = SECONDS) -> None:
        """
        Args:
            objects: of the bank; a request of them must fail well before ``seconds`` have passed.
            seconds: see `SECONDS`; all writers of a bank must have the same.
        """
        self._objects = objects
        self._seconds = seconds
        self._id = uuid4().hex
        self._signs = 0
        self._tag = Tag(None, None)
        self._until = 0.0
        self._holder = "another process"
        self._changing = Lock()
        self._done = Event()
        self._thread = Thread(target=self._renew_on, daemon=True, name="memory3-lease")

    def take(self, wait_seconds: float) -> bool:
        """Become the writer. Returns whether the one before left without giving the lease back. BankBusy."""
        end = boot_clock() + max(wait_seconds, 0.0)
        while (left := self._try()) is None:
            if (rest := end - boot_clock()) <= 0:
                raise BankBusy(
                    f"{self._objects.url}: {self._holder} is writing this bank. Wait for it, or give --wait SECONDS; reading "
                    f"goes on meanwhile. If it was killed, its place is free {self._seconds:.0f} s after its last sign of life"
                )
            time.sleep(min(rest, _LOOK_SECONDS * random.uniform(0.5, 1.0), self._seconds / 3))
        self._thread.start()
        return left

    def require(self) -> None:
        """BankBusy: this is no longer the writer, or may not be."""
        if boot_clock() >= self._until:
            raise BankBusy(
                f"{self._objects.url}: this writer gave no sign of life for {self._seconds:.0f} s, and another one may have "
                "taken its place. What was committed before is intact: run the same again to go on"
            )

    def give_back(self) -> None:
        """Let the next one write at once."""
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._changing:
            if boot_clock() < self._until:
                self._until = 0.0
                try:
                    self._objects.replace(LOCK, self._content(""), self._tag)
                except BankError:
                    return  # it falls free by itself

    def _try(self) -> bool | None:
        """Whether the one before left it, having become the writer; None: another one is."""
        sent = boot_clock()
        tag = self._objects.create(LOCK, self._content(self._id))
        if tag is not None:
            self._hold(tag, sent)
            return False
        found = self._read()
        if found is None:
            return None
        about, entry = found
        owner, left = about.get("owner"), False
        if owner == self._id:  # created by the request above, whose answer was lost
            self._hold(entry.tag, sent)
            return False
        if owner != "":
            left = self._objects.now() - entry.modified > self._seconds + _OTHERS_MARGIN
            if not left:
                self._holder = f"another process ({str(about.get('who', 'unknown'))[:80]!r})"
                return None
        sent = boot_clock()
        tag = self._objects.replace(LOCK, self._content(self._id), entry.tag) or self._ours()
        if tag is None:
            return None
        self._hold(tag, sent)
        return left

    def _hold(self, tag: Tag, sent: float) -> None:
        """Renewed by a request that was sent then: the store's time of it is no earlier."""
        self._tag, self._until = tag, sent + self._seconds - _OWN_MARGIN

    def _renew_on(self) -> None:
        while not self._done.wait(self._seconds / _SIGNS):
            with self._changing:
                sent = boot_clock()
                if sent >= self._until:
                    return
                try:
                    tag = self._objects.replace(LOCK, self._content(self._id), self._tag) or self._ours()
                except BankError:
                    continue  # the next one may come through
                if tag is None:
                    self._until = 0.0
                    return
                self._hold(tag, sent)

    def _ours(self) -> Tag | None:
        """Its tag, where the lease says that this is the writer: of a write whose answer was lost."""
        found = self._read()
        return found[1].tag if found is not None and found[0].get("owner") == self._id else None

    def _read(self) -> tuple[dict[str, Any], Entry] | None:
        try:
            data, entry = self._objects.read(LOCK)
        except (FileNotFoundError, UnsafeFile):
            return None
        try:
            about = parse_json(data)
        except ValueError:
            about = None
        return (about if isinstance(about, dict) else {}), entry

    def _content(self, owner: str) -> bytes:
        """Never twice the same: an S3 tag is a hash of the content."""
        self._signs += 1
        who = f"{socket.gethostname()} {os.getpid()}" if owner else ""
        return json.dumps({"owner": owner, "who": who, "sign": f"{self._id}-{self._signs}"}).encode()
