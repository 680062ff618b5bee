"""The language of a text, by py3langid: offline, from a model of 5 MB that comes with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from memory3.errors import ConfigError, setting
from memory3.preparing.documents import LinesWriter

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

__all__ = ["Language", "check_languages"]

#: What it looks at: more changes nothing, and it takes a second for a megabyte.
_BEGINNING = 4000


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_languages(languages: tuple[str, ...]) -> None:
    """Raise ConfigError for a code that is not known."""
    known = _identifier().labels
    for code in languages:
        if code not in known:
            raise ConfigError(f"{setting('language', code)} is not known; known are {', '.join(sorted(known))}")


class Language(BaseFilter):
    """Counts languages, and removes documents that are surely of another one than is wanted.

    Of a short text it is often unsure; that one stays. A text without language (``zxx``) is surely of another.
    """

    name = "language"

    def __init__(self, languages: tuple[str, ...], threshold: float, removed: Path) -> None:
        """
        Args:
            languages: that are kept; none: all.
            threshold: least probability at which it is sure, 0 to 1.
            removed: folder for what is removed.
        """
        super().__init__(LinesWriter(removed))
        self._languages, self._threshold = set(languages), threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document stays, or why not."""
        best, probability = _identifier().classify(doc.text[:_BEGINNING])
        found = best if probability >= self._threshold else "unsure"
        self.stat_update(f"is_{found}")
        if not self._languages or found == "unsure" or found in self._languages:
            return True
        return False, found
