"""What the C library's allocator does with large buffers once they are freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["freed_at_once"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
#: Where glibc's own threshold ends once buffers of this size were freed, on 64 bits (DEFAULT_MMAP_THRESHOLD_MAX).
_GLIBC_MOST = 32 << 20


@contextmanager
def freed_at_once(least: int = 1 << 20) -> Iterator[None]:
    """Meanwhile, buffers of ``least`` bytes or more go back to the system when they are freed.

    By itself glibc raises this threshold to the largest buffer ever freed, up to 32 MB. Smaller ones then come from heaps, one
    for several threads, which fragment: a process that moves wide rows by many threads grows with every portion (mallopt(3)).
    Afterwards the threshold is where glibc's own would have ended. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, least)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _GLIBC_MOST)
        mallopt(_M_TRIM_THRESHOLD, 2 * _GLIBC_MOST)
