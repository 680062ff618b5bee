"""What a preparation is asked to do: the stages, and their thresholds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from memory3.errors import ConfigError, setting

__all__ = ["STAGES", "PrepareSettings"]

#: In the order in which a document meets them.
STAGES = ("extraction", "language", "rules", "duplicates", "quality", "personal")


@dataclass(frozen=True)
class PrepareSettings:
    """Everything that decides which documents are left and what they look like. How many processes do it is none of it.

    Attributes:
        without: stages that are left out, of `STAGES`.
        languages: that are kept, as ISO 639-1 codes; empty: all are kept, and counted.
        language_threshold: least probability at which a document is of another language and goes, 0 to 1.
        min_words: fewer words, and a document goes (paper: 50).
        max_word_length: mean number of characters of its words (paper: 10).
        max_non_alphabetic: share of its characters, without spaces, that are no letters (paper: 0.7).
        min_entropy: of its words, in nats. The paper names the rule without a number.
        max_repeated_lines: share of lines, and of paragraphs, that were there before in the document.
        graded: file of graded examples, for the quality stage; empty: there is none.
        keep_best: share of the documents that the quality stage keeps, 0 to 1; None: `min_grade` decides.
        min_grade: least predicted grade that it keeps.
        embedder: whose vectors the grades are predicted from.
        keep_removed: whether what was removed is kept beside the result.
        text_field, id_field, encoding, max_bytes: as `memory3.text.readers.read_documents` has them.
    """

    without: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    language_threshold: float = 0.65
    min_words: int = 50
    max_word_length: float = 10.0
    max_non_alphabetic: float = 0.7
    min_entropy: float = 2.5
    max_repeated_lines: float = 0.3
    graded: str = ""
    keep_best: float | None = None
    min_grade: float | None = None
    embedder: str = "all-minilm-l6-v2"
    keep_removed: bool = False
    text_field: str | None = None
    id_field: str | None = None
    encoding: str | None = None
    max_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name in self.without:
            if name not in STAGES:
                raise ConfigError(f"{setting('without', name)}: there is no such stage; there are {', '.join(STAGES)}")
        for name in ("language_threshold", "max_non_alphabetic", "max_repeated_lines", "keep_best"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{setting(name, value)} is a share: it must lie between 0 and 1")
        for name in ("max_word_length", "min_entropy", "min_words", "min_grade"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (value >= 0 or name == "min_grade")):
                raise ConfigError(f"{setting(name, value)} must be a number that is not negative")
        if self.max_bytes < 1:
            raise ConfigError(f"{setting('max_bytes', self.max_bytes)} must be at least 1")
        if self.languages and "language" in self.without:
            raise ConfigError(f"{setting('languages')} are named and the stage language is left out: give one of both")
        if self.graded and "quality" in self.without:
            raise ConfigError(f"{setting('graded')} is given and the stage quality is left out: give one of both")
        if self.graded and (self.keep_best is None) == (self.min_grade is None):
            raise ConfigError(f"{setting('graded')} needs one of {setting('keep_best')} and {setting('min_grade')}")
        if not self.graded and (self.keep_best is not None or self.min_grade is not None):
            raise ConfigError(f"{setting('keep_best')} and {setting('min_grade')} need examples: give {setting('graded')}")

    def has(self, stage: str) -> bool:
        """Whether a stage does anything."""
        return stage not in self.without and (stage != "quality" or bool(self.graded))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as the folder keeps them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}
