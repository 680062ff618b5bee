"""Ending a pass of another thread between two of its layers. Knows no model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopped", "check_stopped", "stoppable"]

_here = threading.local()


class Stopped(Exception):
    """What this thread computes is wanted no longer."""


@contextmanager
def stoppable(stop: threading.Event) -> Iterator[None]:
    """While the block runs, `check_stopped` in this thread heeds ``stop``."""
    _here.stop = stop
    try:
        yield
    finally:
        del _here.stop


def check_stopped() -> None:
    """Called where a long computation may end.

    Raises:
        Stopped: whoever waits for it has given it up.
    """
    stop: threading.Event | None = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped
