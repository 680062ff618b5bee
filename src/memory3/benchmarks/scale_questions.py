"""Questions to a bank, one after the other: how long each takes until its memories are decoded, and in which tier they were.

Half of them follow Zipf's law (question r is asked as often as 1/r says), half were never asked before. Over time, in
windows: whether a bank that was asked much is slower, holds more, or finds less.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memory3.bank import Bank
from memory3.benchmarks.synthetic import question

__all__ = ["ask", "questions"]

_WINDOWS, _K = 10, 5


def questions(kind: str, count: int, rows: int, seed: int = 0) -> Iterator[str]:
    """Questions about a bank of `memory3.benchmarks.synthetic.noise_documents`.

    Args:
        kind: ``"zipf"``: of so many kinds as the bank has rows, the r-th most frequent as often as 1/r; ``"new"``: each about
            a document that was drawn anew, and never the same words.
        count: how many.
        rows: of the bank.
        seed: of the drawing.
    """
    random = np.random.default_rng(seed)
    if kind == "new":
        for number, about in enumerate(random.integers(0, rows, count).tolist()):
            yield question(f"new {number}", about)
        return
    shares = np.cumsum(1 / np.arange(1, rows + 1))
    ranks = np.searchsorted(shares, random.random(count) * shares[-1])
    about = random.permutation(rows)  # what is asked often lies anywhere
    for rank in ranks.tolist():
        yield question("again", int(about[rank]))


def ask(bank: Bank, kind: str, count: int, rows: int) -> dict[str, Any]:
    """Milliseconds of a question, and the share of its memories that each tier had, in all and over time.

    A question is embedded (by a stand-in), searched for, and its five memories are read and decoded. What a model does
    after that takes as long whatever the bank is.

    Args:
        bank: of `memory3.benchmarks.synthetic`, open with the bounds that are to be measured.
        kind, count, rows: as of `questions`.
    """
    windows: list[dict[str, Any]] = []
    seconds: list[float] = []
    whole = before = _found(bank)
    size = max(1, -(-count // _WINDOWS))
    for number, text in enumerate(questions(kind, count, rows), 1):
        started = time.perf_counter()
        (hits,) = bank.search([text], _K)
        bank.memories([hit.reference_id for hit in hits])
        seconds.append(time.perf_counter() - started)
        if number % size == 0 or number == count:
            now = _found(bank)
            windows.append({**_times(seconds[len(windows) * size :]), **_shares(before, now), "resident_mib": _resident()})
            before = now
    told = bank.tiers.statistics()
    return {
        "questions": count,
        **_times(seconds),
        **_shares(whole, before),
        "ram_bytes": told.ram.bytes,
        "ram_capacity": told.ram.capacity,
        # The second window: in the first, caches fill and code is imported.
        "last_p50_of_second": windows[-1]["p50_ms"] / windows[1]["p50_ms"] if len(windows) > 2 else None,
        "windows": windows,
    }


def _found(bank: Bank) -> tuple[int, int, int, int]:
    told = bank.tiers.statistics()
    return told.device.hits, told.ram.hits, told.disk.hits, told.bank


def _shares(before: tuple[int, ...], now: tuple[int, ...]) -> dict[str, float]:
    each = [after - then for then, after in zip(before, now, strict=True)]
    read = max(1, sum(each))
    return {name: number / read for name, number in zip(("device", "ram", "disk", "bank"), each, strict=True)}


def _times(seconds: list[float]) -> dict[str, float]:
    return {f"p{part}_ms": 1e3 * float(np.percentile(seconds, part)) for part in (50, 99)}


def _resident() -> float | None:
    """MiB of this process now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
