"""Whether a bank holds what was asked: a score of a search's result, and the threshold below which it is "not found".

A logistic regression of a few signals that are at hand when a question is answered: cosines, and how many of the question's
words stand in one of the references that are read. No language model is asked: research/log.md says what its signals brought.

    <cache folder>/presence/<embedder>.json        as a person fitted it
    models/calibrated/presence/<embedder>.json     as memory3 brings it

A file is of one embedder and one way to search, and used for no other. Knows no bank and no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from memory3.errors import ConfigError
from memory3.files import parse_json
from memory3.models.calibrated import calibrated
from memory3.text.words import COMMON, has_words, stem, words

__all__ = ["SIGNALS", "Presence", "PresenceWeights", "find_presence_weights", "signals"]

VERSION = 1
#: What is weighed, each to be high when the bank holds the answer.
SIGNALS = ("cosine", "margin", "words", "missed", "pairs")
_NAME = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Presence:
    """What is thought of one question.

    Attributes:
        score: 0 to 1; of as many questions with an answer in the bank as without, about the share with.
        found: whether it is at least the threshold.
    """

    score: float
    found: bool


@dataclass(frozen=True)
class PresenceWeights:
    """A fitted score: log-odds = sum of weight * (signal - mean) / spread, + bias.

    Attributes:
        embedder, dimension: whose cosines these are.
        reference_length: tokens of a reference at most.
        k, gap: how references were looked up and read, as `memory3.recall.retrieval.Retrieval` has them.
        mean, spread, weights: of each of `SIGNALS`, in order.
        bias: of log-odds.
        threshold: score below which the bank is said not to hold the answer.
        about: what it was fitted on, and what was measured. Decides nothing.
    """

    embedder: str
    dimension: int
    reference_length: int
    k: int
    gap: float
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    about: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, embedder: str, dimension: int, reference_length: int, k: int, gap: float) -> bool:
        """Whether it may be used for a bank of this ``embedder`` that is searched so."""
        mine = (self.embedder, self.dimension, self.reference_length, self.k, self.gap)
        return mine == (embedder, dimension, reference_length, k, gap)

    def judge(self, question: str, cosines: Sequence[float], texts: Sequence[str]) -> Presence | None:
        """What is thought of a question; None where the signals say nothing: fewer than k references were found, or a question
        without words, or of a script that puts no spaces between them.

        Args:
            question: text.
            cosines: of the k references that were found, best first.
            texts: of those of them that are read.
        """
        if len(cosines) < self.k or not texts or not has_words(question):
            return None
        found = signals(question, cosines, texts)
        parts = zip((found[name] for name in SIGNALS), self.mean, self.spread, self.weights, strict=True)
        odds = self.bias + sum(w * (x - mean) / spread for x, mean, spread, w in parts)
        score = 1 / (1 + math.exp(-max(-30.0, min(30.0, odds))))
        return Presence(score, score >= self.threshold)


def signals(question: str, cosines: Sequence[float], texts: Sequence[str]) -> dict[str, float]:
    """`SIGNALS` of a search.

    ``cosine``: of the best reference. ``margin``: by how much it is above the mean of the others. ``words``: share of the
    question's words that stand in one reference, common words left out, the largest of all read. ``missed``: minus the
    logarithm of 1 and the fewest words that one of them lacks. ``pairs``: as words, of two words side by side.

    Args:
        question: text with at least one word.
        cosines: of the references that were found, best first, at least two.
        texts: of those that are read, at least one.
    """
    every = [stem(word) for word in dict.fromkeys(words(question))]
    asked = [stem(word) for word in dict.fromkeys(words(question)) if word not in COMMON] or every[:1]
    beside = list(pairwise(every))
    share = missed = pairs = 0.0
    for n, text in enumerate(texts):
        there = [stem(word) for word in words(text)]
        apart = set(there)
        has = sum(word in apart for word in asked)
        lacks = len(asked) - has
        both = set(pairwise(there))
        share = max(share, has / len(asked))
        missed = lacks if n == 0 else min(missed, lacks)
        pairs = max(pairs, sum(pair in both for pair in beside) / max(1, len(beside)))
    rest = cosines[1:]
    return {
        "cosine": cosines[0],
        "margin": cosines[0] - sum(rest) / len(rest),
        "words": share,
        "missed": -math.log1p(missed),
        "pairs": pairs,
    }


def find_presence_weights(embedder: str) -> PresenceWeights | None:
    """What was fitted to an embedder of this name, if anything.

    Raises:
        ConfigError: the file there cannot be used.
    """
    path = calibrated("presence", f"{embedder}.json") if _NAME.fullmatch(embedder) else None
    if path is None:
        return None
    state = path.stat()
    return _read(path, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=8)
def _read(path: Path, state: tuple[int, ...]) -> PresenceWeights:
    """The weights of a file that was in this state: every question asks for them."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        names, version = data["signals"], data["version"]
        numbers = [tuple(float(x) for x in data[name]) for name in ("mean", "spread", "weights")]
        found = PresenceWeights(
            str(data["embedder"]),
            int(data["dimension"]),
            int(data["reference_length"]),
            int(data["k"]),
            float(data["gap"]),
            numbers[0],
            numbers[1],
            numbers[2],
            float(data["bias"]),
            float(data["threshold"]),
            dict(data["about"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error!r}): delete it") from error
    sizes = {len(some) for some in numbers}
    sound = all(math.isfinite(x) for some in numbers for x in (*some, found.bias)) and min(found.spread, default=0.0) > 0
    if version != VERSION or names != list(SIGNALS) or sizes != {len(SIGNALS)} or not sound or not 0 < found.threshold < 1:
        raise ConfigError(
            f"{path} is version {version!r} of the signals {names!r}, wanted are version {VERSION} of {SIGNALS}: delete it"
        )
    return found
