"""One thread at a time works with a model.

A recall and a writing pass change how the model computes while they last, and would be seen by every thread. So each of them, and every generation of
`Memory3`, holds the model; other threads wait.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from weakref import WeakKeyDictionary

import torch

from memory3.errors import RecallError

__all__ = ["Exclusive", "exclusive"]

#: A recall that is open for so many seconds without a forward pass may be waiting for the very thread that waits for it.
IDLE_SECONDS = 60.0


class Exclusive:
    """Holds a model for one thread, which may enter again; others wait. Made by `exclusive`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        self._idle_since: float | None = None

    def __enter__(self) -> Exclusive:
        """Wait until the model is free.

        Raises:
            RecallError: another thread has a recall open and does nothing with it.
        """
        while not self._lock.acquire(timeout=min(1.0, IDLE_SECONDS)):
            since = self._idle_since
            if since is not None and time.monotonic() - since > IDLE_SECONDS:
                raise RecallError(
                    f"another thread has a recall of this model open and has done nothing in it for {IDLE_SECONDS:.0f} seconds: "
                    "leave its `with recall` before other threads use the model"
                )
        self._owner = threading.get_ident()
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = self._idle_since = None
        self._lock.release()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds the model."""
        return self._owner == threading.get_ident()

    def busy(self) -> None:
        """Say that something happens in the recall that the holder has open, however long it takes."""
        self._idle_since = None

    def idle(self) -> None:
        """Say that the holder has an open recall, and that nothing happens in it from now on."""
        self._idle_since = time.monotonic()


_guard = threading.Lock()
_all: WeakKeyDictionary[torch.nn.Module, Exclusive] = WeakKeyDictionary()


def exclusive(base: torch.nn.Module) -> Exclusive:
    """The one `Exclusive` of a model, named by its transformer without the language head, whoever wraps that."""
    with _guard:
        return _all.setdefault(base, Exclusive())
