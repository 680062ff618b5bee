"""Cloze questions, which a text answers by itself: one of its sentences with a name, number or date left out.

For texts nobody has asked anything about. What is left out begins with a capital or a digit and does not begin its sentence,
as names and dates do in many languages. It stands once in the text, so there is one answer. Half of the questions are the
sentence with a gap, half break off before it:

    Teutberga was a queen of ____ by marriage to Lothair II.   ->   Lotharingia
    Teutberga was a queen of Lotharingia by marriage to ...    ->   Lothair II
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from memory3.training.records import Question

__all__ = ["GAP", "cloze_questions"]

#: What stands for what is left out.
GAP = "____"

#: Characters of a sentence that is asked about: shorter ones say too little, longer ones are lists.
_SENTENCE = (40, 300)
#: Characters in front of what is left out: enough to tell which sentence it is.
_BEFORE = 20
#: Characters of an answer.
_ANSWER = (3, 60)
#: Where sentences part: a full stop behind a word of three letters or more, not behind Dr. or an initial.
_END = re.compile(r"(?<=[^\W\d_]{3}[.!?])\s+|(?<=[\d)\]][.!?])\s+|\n+")
_WORD = re.compile(r"[^\s()\[\]\"“”«»,;:]+")


def cloze_questions(texts: Sequence[str], most: int, *, seed: int = 0) -> Iterator[Question]:
    """``most`` questions of each text, or as many as it has sentences that can be asked about.

    Args:
        texts: are the passages of their questions.
        most: of one text.
        seed: of what is left out.
    """
    rng = random.Random(seed)
    for text in texts:
        yield from islice(_asked(text, rng), most)


def _asked(text: str, rng: random.Random) -> Iterator[Question]:
    """One question of every sentence that can be asked about, in random order."""
    sentences = [part.strip() for part in _END.split(text)]
    rng.shuffle(sentences)
    for sentence in sentences:
        found = _left_out(sentence, text) if _SENTENCE[0] <= len(sentence) <= _SENTENCE[1] else []
        if found:
            start, end = rng.choice(found)
            rest = f" {GAP}{sentence[end:]}" if rng.random() < 0.5 else " ..."
            yield Question(text, sentence[:start].rstrip() + rest, sentence[start:end])


def _left_out(sentence: str, text: str) -> list[tuple[int, int]]:
    """Where runs of names and numbers begin and end that can be asked for."""
    runs: list[tuple[int, int]] = []
    for word in _WORD.finditer(sentence):
        start, end = word.start(), word.end() - (word.end() == len(sentence) and word.group()[-1] in ".!?")
        if start and (word.group()[0].isupper() or word.group()[0].isdigit()):
            if runs and sentence[runs[-1][1] : start] == " ":
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    low, high = _ANSWER
    return [(a, b) for a, b in runs if a >= _BEFORE and low <= b - a <= high and text.count(sentence[a:b]) == 1]
