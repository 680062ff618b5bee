"""Overlap (arXiv 2407.01178, equation 6) of a text with references: the whole share, and the leak guard's yes or no.

Milliseconds a pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from memory3.benchmarks.measure import alternate, python_documents
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL
from memory3.overlap import exceeds, overlap

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "tokens": 4096,
    "reference": 128,
    "references": 8,
    "threshold": 0.9,
    "repeats": 5,
}


def run(model: str, tokens: int, reference: int, references: int, threshold: float, repeats: int) -> dict[str, Any]:
    """``references`` of ``reference`` tokens against a text of ``tokens``, both of the Python reference manual: texts of
    one subject.
    """
    m3 = Memory3.from_pretrained(model)
    stream = [
        t for d in python_documents(m3, (tokens + references * reference) // 64) for r in m3.split(d) for t in r.token_ids
    ]
    target, rest = stream[:tokens], stream[tokens:]
    others = [rest[n * reference : (n + 1) * reference] for n in range(references)]

    def timed(of: Callable[[Sequence[int], Sequence[int]], Any]) -> Callable[[], float]:
        def arm() -> float:
            started = time.perf_counter()
            for other in others:
                of(target, other)
            return 1000 * (time.perf_counter() - started) / len(others)

        return arm

    arms = {"overlap": timed(overlap), "exceeds": timed(lambda text, other: exceeds(text, other, threshold))}
    figures = alternate(arms, repeats)
    return {
        "milliseconds": {name: sorted(each)[len(each) // 2] for name, each in figures.items()},
        "largest_overlap": max(overlap(target, other) for other in others),
        "tokens": len(target),
        "reference_tokens": [len(other) for other in others],
    }
