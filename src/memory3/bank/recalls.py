"""Recall statistics of a bank: ``recalls.jsonl`` in its folder, appended now and then, so that reading is not slowed down.

One JSON object per line. ``{"at": seconds, "recalls": {reference id: count}}`` adds recalls of about one moment;
``{"heats": {reference id: [count, heat]}}``, written when many lines are made one, is their sum (heat: the log weight of
`memory3.retention`, with its half-life). Counts not yet written are lost when a process is killed; a line that cannot be
read, cut short by that, is passed over. Several processes append to one file; what one adds while another sums it up may be
lost.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

from memory3.bank.backends.base import Backend
from memory3.errors import BankError
from memory3.files import parse_json
from memory3.retention import RecallCounts

__all__ = ["RecallLog"]

FILE = "recalls.jsonl"
#: Recalls counted in RAM before they are written, which is what a killed process loses at most.
FLUSH_EVERY = 1000
#: A larger file is summed up.
SUM_BYTES = 16 << 20
#: A file that is larger still is none of ours: ten million references have less.
_MOST_BYTES = 512 << 20
#: A log weight is half-lives since 1970 and a little: far below.
_LARGEST = 1e9


class RecallLog:
    """Counts recalls in RAM, and on disk from time to time. Safe to share between threads."""

    def __init__(
        self,
        files: Backend,
        lock: Callable[[], AbstractContextManager[None]] = nullcontext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``files``: where the bank lies. ``lock``: the writer's, held while a file that has grown large is summed up."""
        self._files = files
        self._clock = clock
        self._writing = lock
        self._lock = Lock()
        self._new: Counter[str] = Counter()
        self._count = 0
        self._limit = SUM_BYTES
        self._counts: RecallCounts | None = None

    def add(self, reference_ids: Collection[str]) -> None:
        """Count one recall of each."""
        with self._lock:
            self._new.update(reference_ids)
            self._count += 1
            if self._counts is not None:
                now = self._clock()
                for id_ in reference_ids:
                    self._counts.add(id_, now)
            due = self._count >= FLUSH_EVERY
        if due:
            self.flush()

    @property
    def counts(self) -> RecallCounts:
        """All recalls known to this process: those on disk when it first asked, and its own since. It goes on counting."""
        with self._lock:
            if self._counts is None:
                self._counts = self._read()
                now = self._clock()
                for id_, count in self._new.items():
                    self._counts.add(id_, now, count)
            return self._counts

    def totals(self) -> dict[str, int]:
        """Recalls by reference id, those of other processes included as far as they were written."""
        with self._lock:
            read = Counter(self._read().recalls)
            read.update(self._new)
        return dict(read)

    def flush(self) -> None:
        """Write what is not written yet. Where that cannot be, as in a read-only folder, the counts are given up."""
        with self._lock:
            new, self._new, self._count = self._new, Counter(), 0
        if not new:
            return
        # A line break first: what a killed process left of a line must not spoil this one.
        line = "\n" + json.dumps({"at": round(self._clock(), 3), "recalls": new}, separators=(",", ":")) + "\n"
        try:
            if self._files.append(FILE, line) > self._limit:
                with self._writing():
                    self.sum_up()
        except (OSError, BankError):
            return

    def sum_up(self, known: Callable[[str], bool] = lambda id_: True) -> None:
        """Make one line of many, of the references that are ``known``. Needs the writer's lock."""
        try:
            counts = self._read()
            summed = {id_: [n, round(counts.log_weights[id_], 6)] for id_, n in counts.recalls.items() if known(id_)}
            if not counts.recalls:
                return
            text = json.dumps({"heats": summed}, separators=(",", ":")) + "\n"
            self._files.write(FILE, text)
            self._limit = max(SUM_BYTES, 2 * len(text))
        except OSError:
            return

    def _read(self) -> RecallCounts:
        counts = RecallCounts()
        try:
            lines = self._files.read(FILE, _MOST_BYTES).splitlines()
        except OSError:
            return counts  # never written, or not to be read: then nothing is known
        for line in lines:
            if line.strip():
                _merge(counts, line.decode("utf-8", "replace"))
        return counts


def _merge(counts: RecallCounts, line: str) -> None:
    """Add a line of the file; one that is damaged is passed over."""
    try:
        fields: Any = parse_json(line)
        if "heats" in fields:
            summed = [(id_, _count(count), float(weight)) for id_, (count, weight) in fields["heats"].items()]
        else:
            at = float(fields["at"]) / counts.half_life
            summed = [(id_, _count(count), at + math.log2(count)) for id_, count in fields["recalls"].items()]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return
    for id_, count, log_weight in summed:
        if abs(log_weight) < _LARGEST:
            counts.merge(id_, count, log_weight)


def _count(number: Any) -> int:
    if not isinstance(number, int | float) or not 1 <= number < 2**53:
        raise ValueError(f"{number!r:.40} is no number of recalls")
    return int(number)
