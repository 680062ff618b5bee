"""What is fetched ahead: of the chunks of an answer, how many find all that they read in RAM, by what is guessed and when.

Answers are stretches of text that the bank does not hold, about what it does hold: of each document of Python's help, every
second reference is in the bank, and the others, one after the other, are read as an answer is written. Every 64 tokens what
was written since is the query. No language model is run: what is found depends on words alone. RAM keeps all that an answer
read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memory3.bank.embedder import Embedder
from memory3.evaluation.intervals import interval
from memory3.models.catalogue import DEFAULT_EMBEDDER, DEFAULT_MODEL
from memory3.models.load import load_tokenizer
from memory3.text import split
from memory3.types import Document

__all__ = ["OPTIONS", "run"]

#: ``chunk`` tokens between two lookups; ``before`` so many tokens before the next one its search is guessed.
OPTIONS: dict[str, Any] = {"chunk": 64, "before": 8, "k": 5, "gap": 0.1, "renewals": 600}


def run(chunk: int, before: int, k: int, gap: float, renewals: int) -> dict[str, Any]:
    """Shares of renewals that found all references in RAM.

    Args:
        chunk: tokens of one.
        before: tokens before a renewal at which it is guessed.
        k: references of a chunk.
        gap: only those are read whose cosine is within this of the best one's.
        renewals: of all answers together, at most.
    """
    from pydoc_data.topics import topics

    tokenizer, embedder = load_tokenizer(DEFAULT_MODEL), Embedder.load(DEFAULT_EMBEDDER)
    bank: list[str] = []
    answers: list[list[int]] = []
    for name, text in sorted(topics.items()):
        references = list(split(Document(name, text), tokenizer, 128))
        bank += [one.text for one in references[::2]]
        answers.append([token for one in references[1::2] for token in one.token_ids])
    vectors = embedder.encode(bank)

    def found(tokens: Sequence[int]) -> list[tuple[int, float]]:
        scores = vectors @ embedder.encode([tokenizer.decode(list(tokens))])[0]
        best = np.argsort(-scores, kind="stable")[: 2 * k]
        return [(int(place), float(scores[place])) for place in best]

    def read(hits: Sequence[tuple[int, float]]) -> set[int]:
        return {place for place, score in hits[:k] if score >= hits[0][1] - gap}

    count, hit = 0, {name: list[float]() for name in ("nothing", "below", "guess", "guess and below")}
    fetched = dict.fromkeys(hit, 0)
    for answer in answers:
        seen: set[int] = set()
        last: list[tuple[int, float]] | None = None
        for at in range(chunk, len(answer) + 1, chunk):
            if count == renewals:
                break
            hits = found(answer[at - chunk : at])
            wanted = read(hits)
            if last is not None:
                guess = found(answer[at - chunk : at - before])
                ahead = {
                    "nothing": set[int](),
                    "below": {place for place, _ in last},
                    "guess": {place for place, _ in guess[:k]},
                    "guess and below": {place for place, _ in guess},
                }
                for name, places in ahead.items():
                    hit[name].append(float(wanted <= seen | places))
                    fetched[name] += len(places - seen)
                count += 1
            seen |= wanted
            last = hits
    return {
        "bank": len(bank),
        "renewals": count,
        "all_in_ram": {name: {"share": sum(each) / count, "interval": interval(each)} for name, each in hit.items()},
        "fetched_for_each_renewal": {name: n / count for name, n in fetched.items()},
    }
