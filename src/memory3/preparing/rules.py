"""Rules that tell rubbish from text (paper, section 5; the repetition rule is that of Gopher, arXiv 2112.11446, table A1)."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import regex
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from memory3.preparing.documents import LinesWriter
from memory3.preparing.settings import PrepareSettings
from memory3.preparing.tokens import SpaceTokenizer, tokens

__all__ = ["Rules", "entropy", "mean_word_length", "non_alphabetic", "proper_words"]

_LETTERS = regex.compile(r"[\p{L}\p{M}]+")
_AROUND = regex.compile(r"^[^\p{L}\p{M}\p{N}]+|[^\p{L}\p{M}\p{N}]+$")
_REPETITION = {
    "dup_line_frac": "repeated lines",
    "dup_para_frac": "repeated paragraphs",
    "empty": "empty",
}


def proper_words(text: str) -> list[str]:
    """Words with a letter or digit in them, without the punctuation around them."""
    return [word for token in tokens(text) if (word := _AROUND.sub("", token))]


def mean_word_length(words: list[str]) -> float:
    """Characters a word; 0 without words."""
    return sum(map(len, words)) / len(words) if words else 0.0


def non_alphabetic(text: str) -> float:
    """Share of the characters, spaces left out, that are no letters and no marks on letters; 1 without characters."""
    everything = sum(map(len, text.split()))
    return 1 - sum(map(len, _LETTERS.findall(text))) / everything if everything else 1.0


def entropy(words: list[str]) -> float:
    """Of a word drawn from the text, in nats: ``-sum p log p`` over its different words, in small letters."""
    counts = Counter(word.lower() for word in words)
    return -sum(n / len(words) * math.log(n / len(words)) for n in counts.values()) if words else 0.0


class Rules(BaseFilter):
    """Removes a document at the first rule that it breaks, in the order of `memory3.preparing.PrepareSettings`."""

    name = "rules"

    def __init__(self, settings: PrepareSettings, removed: Path) -> None:
        """
        Args:
            settings: with the thresholds.
            removed: folder for what is removed.
        """
        super().__init__(LinesWriter(removed))
        self._settings = settings
        share = settings.max_repeated_lines
        self._repetition = GopherRepetitionFilter(
            share, share, None, None, top_n_grams=(), dup_n_grams=(), language=SpaceTokenizer()
        )

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document stays, or why not."""
        asked = self._settings
        words = proper_words(doc.text)
        if len(words) < asked.min_words:
            return False, "too few words"
        if mean_word_length(words) > asked.max_word_length:
            return False, "words too long"
        if non_alphabetic(doc.text) > asked.max_non_alphabetic:
            return False, "too few letters"
        if entropy(words) < asked.min_entropy:
            return False, "entropy too low"
        found = self._repetition.filter(doc)
        return True if found is True else (False, _REPETITION[found[1]])
