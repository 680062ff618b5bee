"""`MemoryCache`: one tier of the cache: what was read lately, bounded in bytes. Neighbouring chunks often want the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

__all__ = ["CacheStatistics", "MemoryCache"]


@dataclass(frozen=True)
class CacheStatistics:
    """Of one tier, counted since it was made.

    Attributes:
        hits, misses: memories that were looked for here, and were found or not.
        evictions: entries that made room for others.
        entries, bytes: that are here now.
        capacity: bytes that may be here.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0
    capacity: int = 0


class MemoryCache:
    """Least recently used goes first. Safe to share between threads; a capacity of 0 keeps nothing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, *keys: Hashable) -> Any | None:
        """What is kept under the first of these keys under which something is, now the most recently used; else None. One hit
        or one miss, however many keys: they are forms of one memory.
        """
        with self._lock:
            found = self._find(keys)
            self._hits += found is not None
            self._misses += found is None
            return found

    def peek(self, *keys: Hashable) -> Any | None:
        """What is kept under the first of these keys that has something, now the most recently used. Nothing is counted."""
        with self._lock:
            return self._find(keys)

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Keep ``value``, which holds ``nbytes``: a decoded memory holds its whole record.

        Args:
            key: under which `get` finds it.
            value: a memory, packed or decoded, or a text.
            nbytes: it holds; what is larger than the cache is not kept.
        """
        with self._lock:
            self._drop(key)
            if nbytes > self.capacity:
                return
            self._entries[key] = (value, nbytes)
            self._bytes += nbytes
            while self._bytes > self.capacity:
                self._bytes -= self._entries.popitem(last=False)[1][1]
                self._evictions += 1

    def discard(self, keys: Iterable[Hashable]) -> None:
        """Forget some."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def clear(self) -> None:
        """Forget everything; the statistics go on."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def statistics(self) -> CacheStatistics:
        """Counts so far."""
        with self._lock:
            return CacheStatistics(self._hits, self._misses, self._evictions, len(self._entries), self._bytes, self.capacity)

    def _find(self, keys: Iterable[Hashable]) -> Any | None:
        """Held: the lock."""
        for key in keys:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        return None

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
