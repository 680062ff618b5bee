"""What all benchmarks share: arms that alternate, medians, a bank of real text."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from memory3.bank import Bank
from memory3.llm import Memory3
from memory3.types import Document, Memory

__all__ = [
    "Distinct",
    "alternate",
    "bank_references",
    "forget_peak",
    "peak_bytes",
    "progress",
    "python_documents",
    "ratio",
    "temporary_bank",
]

#: Seconds between two lines of progress in a log.
LINE_SECONDS = 15.0


def progress(items: Sequence[Any], text: str) -> Iterator[Any]:
    """Iterate with a bar on standard error, or where that is no terminal with a line now and then.

    Args:
        items: what to go through.
        text: what the bar says.
    """
    console = Console(stderr=True)
    return iter(track(items, description=text, console=console, transient=True) if console.is_terminal else _told(items, text))


def _told(items: Sequence[Any], text: str) -> Iterator[Any]:
    told = -math.inf
    for number, item in enumerate(items, 1):
        if time.monotonic() - told >= LINE_SECONDS:
            told = time.monotonic()
            print(f"{text}: {number} of {len(items)}", file=sys.stderr, flush=True)
        yield item


def alternate(arms: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each arm once to warm up, then in turn, ``repeats`` times; each tells its own figure.

    Args:
        arms: by name; each runs once and returns its figure.
        repeats: turns after the first.
    """
    for arm in arms.values():
        arm()
    figures: dict[str, list[float]] = {name: [] for name in arms}
    for turn in progress(range(repeats), "measuring"):
        names = list(arms)
        # Who goes first alternates too.
        for name in names if turn % 2 == 0 else reversed(names):
            figures[name].append(arms[name]())
    return figures


def ratio(figures: Mapping[str, Sequence[float]], above: str, below: str) -> dict[str, Any]:
    """Medians of two arms, and the median of their ratios turn by turn, with the middle half of them.

    Args:
        figures: of each arm, turn by turn.
        above, below: names of the arms that are divided.
    """
    turns = sorted(a / b for a, b in zip(figures[above], figures[below], strict=True))
    quarters = statistics.quantiles(turns, n=4) if len(turns) > 1 else [turns[0]] * 3
    return {
        above: statistics.median(figures[above]),
        below: statistics.median(figures[below]),
        "ratio": statistics.median(turns),
        "ratio_middle_half": [quarters[0], quarters[2]],
        "repeats": len(turns),
    }


def python_documents(m3: Memory3, references: int) -> list[Document]:
    """The Python language reference, which every installation carries, until it makes so many references.

    Args:
        m3: splits documents into references.
        references: how many are needed.
    """
    from pydoc_data.topics import topics

    documents, count = [], 0
    for topic, text in sorted(topics.items()):
        document = Document(topic, text, source=f"pydoc_data.topics/{topic}")
        documents.append(document)
        count += sum(1 for _ in m3.split(document))
        if count >= references:
            break
    return documents


@contextmanager
def temporary_bank(m3: Memory3, references: int, cache_bytes: int = 0) -> Iterator[Bank]:
    """A real bank of real text, gone afterwards.

    Args:
        m3: encodes its memories.
        references: at least so many.
        cache_bytes: RAM for memories that were read.
    """
    with tempfile.TemporaryDirectory(prefix="memory3-bench-") as folder:
        bank = Bank.open(Path(folder) / "bank", m3, cache_bytes=cache_bytes)
        with Console(stderr=True).status(f"writing {references} references"):
            bank.write(python_documents(m3, references))
        yield bank
        bank.close()


class Distinct:
    """The worst case of the paper: every recall searches the bank, and gets references that none got before."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.seconds = 0.0
        self._names = itertools.cycle([r.id for r in bank_references(bank)])

    def search(self, queries: Sequence[str], k: int, where: Any = None) -> list[list[Any]]:
        """What the bank finds, under names that no search gave before.

        Args:
            queries: texts.
            k: hits per query at most.
            where: metadata that references must have.
        """
        started = time.perf_counter()
        found = [
            [type(hit)(next(self._names), hit.document_id, hit.score) for hit in hits]
            for hits in self.bank.search(queries, k, where=where)
        ]
        self.seconds += time.perf_counter() - started
        return found

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """Memories, in order, read from disk every time.

        Args:
            reference_ids: that `search` gave.
            use_cache: makes no difference.
            device: where keys and values are made.
        """
        started = time.perf_counter()
        read = self.bank.memories(reference_ids, use_cache=False, device=device)
        self.seconds += time.perf_counter() - started
        return read

    def references(self, reference_ids: Sequence[str]) -> Any:
        """References with their texts, as the bank gives them."""
        return self.bank.references(reference_ids)

    def count(self, where: Any = None) -> int:
        """How many references the bank has with the metadata ``where``."""
        return self.bank.count(where)


def bank_references(bank: Bank) -> list[Any]:
    """Every reference of a bank, in order of its documents."""
    ids = [f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references)]
    return list(bank.references(ids))


def forget_peak() -> None:
    """Let the peak of memory begin anew: of a GPU where there is one, else of this process (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of resident memory starts anew
    except OSError:
        return


def peak_bytes() -> int:
    """Bytes at most since `forget_peak`; 0 where the system does not tell."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
