"""The contamination guard: references that give a question away, because they hold it, are not read.

It is that of arXiv 2407.01178, section 6.

A reference is dropped when it overlaps the question by more than a threshold, 2/3 by default. Overlap is that of eq. 6
(`memory3.overlap`), in one of two directions: how much of the *reference* stands in the question (the paper's; it catches
references that are little but the question), or how much of the *question* stands in the reference (it also catches a passage
that quotes the question, as a textbook's own exercises do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory3.errors import ConfigError
from memory3.overlap import exceeds

__all__ = ["DIRECTIONS", "Guard"]

DIRECTIONS = ("reference", "question", "either")


@dataclass(frozen=True)
class Guard:
    """Which references may not be read.

    Attributes:
        threshold: overlap above which one is dropped; None: nothing is dropped.
        of: of what the overlap is a share: ``"reference"``, ``"question"``, or ``"either"``, whichever is more.
    """

    threshold: float | None = 2 / 3
    of: str = "reference"

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"guard {self.threshold}: a threshold of overlap lies between 0 and 1")
        if self.of not in DIRECTIONS:
            raise ConfigError(f"guard of {self.of!r} is unknown: use one of {', '.join(DIRECTIONS)}")

    @classmethod
    def parse(cls, text: str, of: str = "reference") -> Guard:
        """``"2/3"``, ``"0.8"``, ``"80%"`` or ``"none"``.

        Args:
            text: the threshold.
            of: of what the overlap is a share, as for the class.

        Raises:
            ConfigError: ``text`` is no threshold.
        """
        if text.strip().lower() == "none":
            return cls(None, of)
        number, slash, below = text.strip().rstrip("%").partition("/")
        try:
            value = float(number) / (float(below) if slash else 100.0 if text.strip().endswith("%") else 1.0)
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"guard {text!r} is no threshold: write 2/3, 0.8, 80% or none") from None
        return cls(value, of)

    def drops(self, question: Sequence[int], reference: Sequence[int]) -> bool:
        """Whether a reference of these tokens must not be read for a question of those."""
        if self.threshold is None:
            return False
        quoted = self.of != "question" and exceeds(question, reference, self.threshold)
        return quoted or (self.of != "reference" and exceeds(reference, question, self.threshold))

    def __str__(self) -> str:
        return "none" if self.threshold is None else f"{self.threshold:.4g} of {self.of}"
