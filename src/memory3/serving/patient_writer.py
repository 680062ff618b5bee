"""`PatientWriter`: a model that encodes in small steps, so that answers go first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from memory3.bank.protocol import MemoryWriter
from memory3.types import Memory, Reference

__all__ = ["PatientWriter"]

#: References that are encoded in one go.
_AT_ONCE = 2


class PatientWriter:
    """A `MemoryWriter` that encodes few references at once, and lets others go first.

    Attributes:
        name, config, shape, fingerprint, token_vectors, split: of the model.
        batch_size: references at once.
        before: called before every batch by the thread that writes; others do not know of it.
    """

    def __init__(self, m3: MemoryWriter, batch_size: int = _AT_ONCE) -> None:
        """
        Args:
            m3: the model.
            batch_size: references at once.
        """
        self.name = m3.name
        self.config = m3.config
        self.shape = m3.shape
        self.fingerprint = m3.fingerprint
        self.token_vectors = m3.token_vectors
        self.split = m3.split
        self.batch_size = batch_size
        self.before: Callable[[float], None] = lambda seconds: None
        self._m3 = m3
        self._seconds = 0.0

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        """One memory for each reference, made after `before` has returned, which is told how long the last batch took."""
        self.before(self._seconds)
        started = time.perf_counter()
        try:
            return self._m3.encode(references)
        finally:
            self._seconds = time.perf_counter() - started
