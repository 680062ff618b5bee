"""Whole writes into new banks: references per second end to end, CPU seconds of every stage, and the peak of memory.

An arm is a number format of the weights and a number of threads that encode (0: the thread that writes does it all, with
torch's threads in every product, as releases before 30 November 2026 did). Every turn writes the same documents into a bank
of its own. Arms take turns in one process. Stages are CPU seconds of the threads that did them, torch's own threads left out;
``other`` is what the process used beside: reading, splitting, committing, and torch's threads.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from memory3.bank import Bank
from memory3.bank.embedder import Embedder
from memory3.benchmarks.measure import alternate, forget_peak, peak_bytes, python_documents, ratio
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_ADAPTED, DEFAULT_EMBEDDER

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_ADAPTED,
    "references": 48,
    "encoders": "0,2",
    "dtypes": "float32,bfloat16",
    "repeats": 3,
}


class _Timed:
    """CPU seconds of a stage, by whichever threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its seconds noted."""

        def timed(*given: Any, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return work(*given, **options)
            finally:
                with self._lock:
                    self.seconds += time.thread_time() - started

        return timed


class _Writer:
    """A model with so many threads that encode, its `encode` timed. All else is the model's."""

    def __init__(self, m3: Memory3, encoders: int, stage: _Timed) -> None:
        self._m3, self.encoders = m3, max(1, encoders)
        self.encode = stage.around(m3.encode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._m3, name)


class _Embedder:
    """An embedder, timed."""

    def __init__(self, embedder: Any, stage: _Timed) -> None:
        self._embedder = embedder
        self.encode = stage.around(embedder.encode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)


@contextmanager
def _packing(bank: Bank, stage: _Timed) -> Iterator[None]:
    """`encode_many` of the kind of codec that the bank has, timed for the length of the block."""
    kind: Any = type(bank.pin().codec)
    plain = kind.encode_many
    kind.encode_many = stage.around(plain)
    try:
        yield
    finally:
        kind.encode_many = plain


def run(model: str, references: int, encoders: str, dtypes: str, repeats: int) -> dict[str, Any]:
    """Figures of every arm, and its ratio to the first.

    Args:
        model: name or path.
        references: written by an arm, at least.
        encoders: numbers of threads that encode, between commas.
        dtypes: number formats of weights, between commas.
        repeats: turns measured.
    """
    embedder = Embedder.load(DEFAULT_EMBEDDER)
    models = {dtype: Memory3.from_pretrained(model, dtype=dtype) for dtype in dtypes.split(",")}
    documents = python_documents(next(iter(models.values())), references)
    noted: dict[str, list[dict[str, float]]] = {}

    def arm(name: str, m3: Memory3, threads: int) -> Callable[[], float]:
        def write() -> float:
            stages = {stage: _Timed() for stage in ("encoding", "embedding", "packing")}
            writer: Any = _Writer(m3, threads, stages["encoding"])
            embeds: Any = _Embedder(embedder, stages["embedding"])
            with (
                tempfile.TemporaryDirectory(prefix="memory3-bench-") as folder,
                Bank.open(Path(folder) / "bank", writer, embedder=embeds) as bank,
                _packing(bank, stages["packing"]),
            ):
                forget_peak()
                used, started = time.process_time(), time.perf_counter()
                report = bank.write(documents)
                seconds, used = time.perf_counter() - started, time.process_time() - used
            of = report.references
            each = {stage: timed.seconds / of for stage, timed in stages.items()}
            each |= {"other": used / of - sum(each.values()), "peak_mib": peak_bytes() / 2**20, "cpu": used / of}
            noted.setdefault(name, []).append(each)
            return of / seconds

        return write

    arms = {
        f"{dtype}, {threads} encoders": arm(f"{dtype}, {threads} encoders", m3, int(threads))
        for dtype, m3 in models.items()
        for threads in encoders.split(",")
    }
    figures = alternate(arms, repeats)
    first = next(iter(arms))
    results: dict[str, Any] = {"references": references, "threads": torch.get_num_threads(), "first": first}
    for name in arms:
        turns = noted[name][1:]  # the first warms up
        results[name] = {
            "references_per_second": ratio(figures, name, first) if name != first else statistics.median(figures[name]),
            "seconds_a_reference": {
                stage: statistics.median(turn[stage] for turn in turns) for stage in turns[0] if stage != "peak_mib"
            },
            "peak_mib": max(turn["peak_mib"] for turn in turns),
        }
    return results
