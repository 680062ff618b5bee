"""Words for counting and comparing: split at spaces, and character by character in scripts that put none between words."""

from __future__ import annotations

import re

from datatrove.utils.word_tokenizers import WordTokenizer

__all__ = ["SpaceTokenizer", "tokens"]

#: Thai to Burmese, Khmer, Japanese and Chinese.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")


def tokens(text: str) -> list[str]:
    """In order, punctuation left where it stands."""
    return _TOKEN.findall(text)


class SpaceTokenizer(WordTokenizer):
    """`tokens`, as datatrove's steps ask for them. Its own tokenizers of words need spaCy and a model."""

    def __init__(self, least: int = 0) -> None:
        """
        Args:
            least: shorter texts get empty words behind, so that texts of fewer words than an n-gram have one.
        """
        super().__init__()
        self._least = least

    def word_tokenize(self, text: str) -> list[str]:
        """Words in order, filled up to the least number."""
        found = tokens(text)
        return found + [""] * (self._least - len(found)) if found else []

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences are not told apart: the text."""
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """The text's own span."""
        return [(0, len(text))]
