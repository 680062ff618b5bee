"""`MemoryCache`: recently read memories, bounded in bytes. Neighbouring chunks of a text often want the same ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from threading import Lock

from memory3.types import Memory

__all__ = ["CacheStatistics", "MemoryCache"]


@dataclass(frozen=True)
class CacheStatistics:
    """Counted since the cache was made."""

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
        self._entries: OrderedDict[Hashable, tuple[Memory, int]] = OrderedDict()
        self._lock = Lock()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable) -> Memory | None:
        """The memory kept under ``key``, now the most recently used, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._entries.move_to_end(key)
            self._hits += 1
            return entry[0]

    def put(self, key: Hashable, memory: Memory, nbytes: int) -> None:
        """Keep ``memory``, which holds ``nbytes`` of RAM: a decoded one holds its whole record.

        Args:
            key: under which `get` finds it.
            memory: a decoded memory.
            nbytes: RAM it holds; what is larger than the cache is not kept.
        """
        with self._lock:
            self._drop(key)
            if nbytes > self.capacity:
                return
            self._entries[key] = (memory, nbytes)
            self._bytes += nbytes
            while self._bytes > self.capacity:
                self._bytes -= self._entries.popitem(last=False)[1][1]
                self._evictions += 1

    def discard(self, keys: Iterable[Hashable]) -> None:
        """Forget some memories."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def clear(self) -> None:
        """Forget every memory; the statistics go on."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def statistics(self) -> CacheStatistics:
        """Counts so far."""
        with self._lock:
            return CacheStatistics(self._hits, self._misses, self._evictions, len(self._entries), self._bytes, self.capacity)

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
