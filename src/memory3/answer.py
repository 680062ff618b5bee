"""`Answer`: what a model said, from what, and what that took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memory3.types import Citation

__all__ = ["Answer", "Timings", "Usage"]


@dataclass(frozen=True)
class Usage:
    """What an answer took.

    Attributes:
        prompt_tokens: tokens the model encoded before it answered.
        answer_tokens: tokens generated, end-of-text not counted.
        recalls: chunks that looked for memories (mode memory).
        references: references read, over all recalls.
        bytes_read: size of the memories read, as the bank stores them (mode memory), or of the passages as UTF-8 (mode text).
            Each is counted once per recall.
    """

    prompt_tokens: int
    answer_tokens: int
    recalls: int = 0
    references: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds. Of a batch: of all its answers together.

    Attributes:
        first_token: from the call to the first answer token, retrieval included.
        total: from the call to the last token.
        tokens_per_second: answer tokens after the first, per second, all rows of the batch together.
    """

    first_token: float
    total: float
    tokens_per_second: float

    @classmethod
    def of(cls, started: float, tokens: Sequence[float], finished: float, said: Sequence[Sequence[int]]) -> Timings:
        """From the moments of a generation.

        Args:
            started, finished: of the call.
            tokens: when each token of the longest row was chosen.
            said: the tokens of every answer.
        """
        first = (tokens[0] if tokens else finished) - started
        spent = (tokens[-1] - tokens[0]) if len(tokens) > 1 else 0.0
        return cls(first, finished - started, sum(max(len(ids) - 1, 0) for ids in said) / spent if spent else 0.0)


@dataclass(frozen=True)
class Answer:
    """What the model said, and from what.

    Attributes:
        text: the answer.
        citations: references it was read from, largest share of attention first.
        usage, timings: see there.
        token_ids: of the answer.
        note: why nothing was read of the bank that was asked; empty where something was, or where no bank was asked.
        found: whether the bank is thought to hold the answer, by what its search found (`memory3.presence`); None where
            nobody can tell.
        found_score: by which that was decided, 0 to 1.
    """

    text: str
    citations: list[Citation]
    usage: Usage
    timings: Timings
    token_ids: list[int] = field(repr=False, default_factory=list)
    note: str = ""
    found: bool | None = None
    found_score: float | None = None

    def __str__(self) -> str:
        return self.text
