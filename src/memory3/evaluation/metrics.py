"""What an answer is worth: exact match, containment, token F1, and how well a score separates two kinds of questions.

Plain functions of text and numbers.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

__all__ = ["auroc", "contains", "exact_match", "f1", "normalise"]


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and doubled spaces: SQuAD's rule."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1.0 when the text is one of the answers and nothing else, as far as `normalise` tells."""
    said = normalise(text)
    return float(any(said == normalise(a) for a in answers))


def contains(text: str, answers: Sequence[str]) -> float:
    """1.0 when one of the answers stands in the text as whole words."""
    words = f" {normalise(text)} "
    return float(any(normalise(a) and f" {normalise(a)} " in words for a in answers))


def f1(text: str, answers: Sequence[str]) -> float:
    """Best token F1, from 0 to 1, over the right answers.

    Args:
        text: the answer given.
        answers: right ones.
    """
    best, said = 0.0, normalise(text).split()
    for answer in answers:
        wanted = normalise(answer).split()
        common = sum((collections.Counter(said) & collections.Counter(wanted)).values())
        if common:
            best = max(best, 2 * common / (len(said) + len(wanted)))
    return best


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a score of ``positive`` is above one of ``negative``, ties counting half (Mann-Whitney)."""
    if not len(positive) or not len(negative):
        return float("nan")
    low = np.sort(np.asarray(negative, dtype=float))
    wanted = np.asarray(positive, dtype=float)
    below = np.searchsorted(low, wanted, side="left") + np.searchsorted(low, wanted, side="right")
    return float(below.mean() / 2 / len(low))
