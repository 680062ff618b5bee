"""Progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from memory3.cli.output import duration, err, message, size

if TYPE_CHECKING:
    from memory3.bank import MemoryWriter, WriteProgress
    from memory3.types import Document, Memory, Reference

__all__ = ["StepMeter", "WriteMeter", "progress_bar", "still_at"]

#: Seconds between two lines in a log.
_LOG_EVERY = 15.0


class Metered:
    """A `MemoryWriter` that counts the bytes of text it encodes; where others encode, of the references it split first."""

    def __init__(self, m3: MemoryWriter, *, elsewhere: bool = False) -> None:
        self.name = m3.name
        self.config = m3.config
        self.shape = m3.shape
        self.fingerprint = m3.fingerprint
        self.whole_model = getattr(m3, "whole_model", None)
        self.token_vectors = m3.token_vectors
        self.batch_size = m3.batch_size
        self.encoders = getattr(m3, "encoders", 1)
        self.text_bytes = 0
        self._waiting: deque[int] | None = deque() if elsewhere else None
        self._m3, self._lock = m3, threading.Lock()

    def split(self, document: Document) -> Iterator[Reference]:
        """As the model does it."""
        for reference in self._m3.split(document):
            if self._waiting is not None:
                self._waiting.append(len(reference.text.encode()))
            yield reference

    def encoded_elsewhere(self, references: int) -> None:
        """So many more references came back, in the order in which they were split."""
        for _ in range(min(references, len(self._waiting or ()))):
            assert self._waiting is not None
            self.text_bytes += self._waiting.popleft()

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        """As the model does it."""
        memories = self._m3.encode(references)
        with self._lock:  # several threads encode
            self.text_bytes += sum(len(reference.text.encode()) for reference in references)
        return memories


class WriteMeter:
    """How far a write is, in bytes of source text, and how long it will take.

    Give the bank `writer` instead of the model, `reading(documents)` instead of the documents, and the meter as progress.

    Attributes:
        writer: the model, counting.
        total: bytes of text there are; None if nobody knows.
    """

    def __init__(self, m3: MemoryWriter, total: int | None, *, lazy: bool = False, elsewhere: bool = False) -> None:
        self.writer = Metered(m3, elsewhere=elsewhere)
        self.total = total
        self._lazy = lazy
        self._document = self._documents = self._unchanged = self._references = 0
        self._free = self._stored = 0
        self._started = time.monotonic()
        self._told = self._started
        self._bar: Progress | None = None

    def reading(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, their sizes noted."""
        for document in documents:
            self._document = len(document.text.encode("utf-8", "surrogatepass"))
            yield document

    @property
    def done(self) -> int:
        """Bytes of text that are encoded, or were found unchanged."""
        return self._free + (self._stored if self._lazy else self.writer.text_bytes)

    def __call__(self, progress: WriteProgress) -> None:
        """What the bank calls after each document and each batch."""
        if progress.unchanged > self._unchanged:
            self._free += self._document
        elif progress.documents > self._documents:
            self._stored += self._document
        self.writer.encoded_elsewhere(progress.references - self._references)
        self._documents, self._unchanged = progress.documents, progress.unchanged
        self._references = progress.references
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, status=self.status(progress))
        elif time.monotonic() - self._told >= _LOG_EVERY:
            self._told = time.monotonic()
            message(self.status(progress))

    def status(self, progress: WriteProgress) -> str:
        """``120 references, 2.1/s, 48.0 KB of 169.2 KB, 58 s left``."""
        rate = progress.references / progress.seconds if progress.seconds else 0.0
        of = f" of {size(self.total)}" if self.total else ""
        parts = [f"{progress.references:,} references", f"{rate:.1f}/s", f"{size(self.done)}{of}"]
        work = self.done - self._free
        if self.total and work > 0:
            left = max(self.total - self.done, 0) * (time.monotonic() - self._started) / work
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    @contextmanager
    def shown(self) -> Iterator[WriteMeter]:
        """Show the progress on stderr while the block runs."""
        self._started = self._told = time.monotonic()
        if not err.is_terminal:
            yield self
            return
        with progress_bar() as bar:
            bar.add_task("", total=self.total, status="")
            self._bar = bar
            try:
                yield self
            finally:
                self._bar = None


class StepMeter:
    """How far work in several stretches is.

    Use as a context; call it with what is done, how much of how much, and what to say of it.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._what, self._started, self._from, self._told = "", 0.0, 0, 0.0

    def __enter__(self) -> StepMeter:
        if err.is_terminal:
            self._bar = progress_bar()
            self._bar.__enter__()
            self._bar.add_task("", total=None, status="starting")
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def __call__(self, what: str, done: int, total: int, more: str) -> None:
        """``total`` 0: nobody knows."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._started, self._from, self._told = what, now, max(done - 1, 0), 0.0
        work = done - self._from
        left = (now - self._started) / work * (total - done) if total and work > 1 else 0.0
        parts = [f"{what} {done:,} of {total:,}" if total else what, more, f"{duration(left)} left" if left > 2 else ""]
        status = ", ".join(part for part in parts if part)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, status=status)
        elif now - self._told >= _LOG_EVERY or done == total:
            self._told = now
            message(status)


@contextmanager
def still_at(what: str) -> Iterator[None]:
    """Say that work goes on which tells nothing of itself: a spinner on a terminal, a line now and then in a log.

    Args:
        what: is done, such as ``measuring decode``.
    """
    if err.is_terminal:
        with err.status(what):
            yield
        return
    began, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        while not ended.wait(_LOG_EVERY):
            message(f"{what}: {duration(time.monotonic() - began)} so far")

    thread = threading.Thread(target=tell, name="memory3-still-at", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def progress_bar() -> Progress:
    """A bar that disappears when it is done: the summary says what was done."""
    columns = (SpinnerColumn(), BarColumn(16), TextColumn("{task.fields[status]}", markup=False))
    return Progress(*columns, console=err, transient=True)
