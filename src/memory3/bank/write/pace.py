"""How many references one commit of a write holds: about what the model encodes in ten seconds, within bounds."""

from __future__ import annotations

import time

__all__ = ["Pace", "most_references"]

#: A commit holds about what is encoded in this time, which is what an interruption can cost,
COMMIT_SECONDS = 10.0
#: but not more than this, so that RAM stays bounded.
COMMIT_BYTES = 64 << 20
COMMIT_REFERENCES = 1024

#: A commit has at most so many times the references of the one before.
_GROWTH = 8


def most_references(record_bytes: int) -> int:
    """References that one commit may hold, of memories that take so many bytes each."""
    return max(1, min(COMMIT_REFERENCES, COMMIT_BYTES // record_bytes))


class Pace:
    """Learns how fast the model is.

    Attributes:
        most: see `most_references`.
        size: references of the next commit.
    """

    def __init__(self, record_bytes: int, batch_size: int, fixed: int | None = None) -> None:
        """
        Args:
            record_bytes: of a memory.
            batch_size: what the model encodes at once, with which it begins.
            fixed: references of every commit, whatever the time: the same documents are then cut at the same places again.
        """
        self.most = most_references(record_bytes)
        self.size = min(self.most, fixed or batch_size)
        self._batch_size = batch_size
        self._is_fixed = fixed is not None
        self._committed = time.monotonic()

    def is_due(self, references: int) -> bool:
        """Whether so many references are enough for a commit, or the last commit is long ago."""
        is_late = not self._is_fixed and time.monotonic() - self._committed >= COMMIT_SECONDS
        return references >= self.size or is_late

    def encoded(self, references: int, seconds: float) -> None:
        """Encoding so many took so long. What the first few take, and one odd measurement, say little of those to come.

        Args:
            references: how many were encoded.
            seconds: what that took.
        """
        if self._is_fixed:
            return
        rate = references / max(seconds, 1e-6)
        most = min(int(rate * COMMIT_SECONDS), _GROWTH * references, self.most)
        self.size = max(most, min(self._batch_size, self.most))

    def committed(self) -> None:
        """A commit was made now."""
        self._committed = time.monotonic()
