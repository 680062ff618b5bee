"""What is asked of an engine, and what it says to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import GenerationConfig

from memory3.answer import Usage
from memory3.choosing import Choice
from memory3.presence import Presence
from memory3.prompt import Prompt
from memory3.recall.retrieval import Retrieval
from memory3.serving.stretches import Stretch
from memory3.types import Citation

__all__ = ["Cited", "Event", "Failed", "Finished", "Job", "Observer", "Text"]


@dataclass(frozen=True)
class Job:
    """What is asked.

    Attributes:
        prompt: a question, the messages of a chat, or the token ids of a whole prompt.
        mode: ``"memory"``, ``"text"`` or ``"none"``.
        bank: where to look; None in mode none.
        retrieval: what to look up there.
        settings: of decoding, as `memory3.decoding.decoding` gives them.
        stop: texts that end the answer and are not part of it.
        seed: of its random numbers, where it samples.
        logprobs: how many of the likeliest tokens to tell beside each chosen one; None: no log-probabilities.
        seconds: after which it is ended where it stands; None: never.
        ignore_eos: go on to the length that was asked for, whatever the model says; for measuring.
    """

    prompt: Prompt | Sequence[int]
    settings: GenerationConfig
    mode: str = "memory"
    bank: Any = None
    retrieval: Retrieval = field(default_factory=lambda: Retrieval(0))
    stop: Sequence[str] = ()
    seed: int | None = None
    logprobs: int | None = None
    seconds: float | None = None
    ignore_eos: bool = False


@dataclass(frozen=True)
class Text:
    """More of the answer.

    Attributes:
        text: to be put behind what was said before; may be empty where a token's text is not certain yet.
        choice: the token that was chosen; None: text that was held back until the end.
    """

    text: str
    choice: Choice | None


@dataclass(frozen=True)
class Cited:
    """What a stretch of the answer was read from.

    Attributes:
        stretch: which part.
        citations: its references, largest share of that stretch's attention first.
    """

    stretch: Stretch
    citations: list[Citation]


@dataclass(frozen=True)
class Finished:
    """The answer is complete.

    Attributes:
        reason: ``"stop"``: the model or a stop text ended it; ``"length"``: it has as many tokens as were asked for;
            ``"time"``: its time was over; ``"cancelled"``.
        text: the whole answer.
        citations: of the whole answer, largest share of attention first.
        usage: what it took.
        note: why nothing was read of the bank that was asked; else empty.
        token_ids: of the answer.
        first_token, total: seconds from `Engine.submit`.
        shares: what the shares of citations are of: ``"attention"``, as it was paid, or ``"retrieval"``, the scores that the
            references were found by.
        presence: whether the bank is thought to hold the answer; None: nobody can tell.
    """

    reason: str
    text: str
    citations: list[Citation]
    usage: Usage
    note: str
    token_ids: list[int]
    first_token: float
    total: float
    shares: str = "attention"
    presence: Presence | None = None


@dataclass(frozen=True)
class Failed:
    """It cannot be answered.

    Attributes:
        error: why.
    """

    error: Exception


Event = Text | Cited | Finished | Failed


class Observer(Protocol):
    """Is told what an engine does, in its threads: it has to be quick."""

    def first_token(self, seconds: float) -> None:
        """A request has its first token, ``seconds`` after it came."""

    def tokens(self, prompt: int, answer: int) -> None:
        """A pass was made over so many tokens of prompts, and chose so many of answers."""

    def looked_up(self, seconds: float, requests: int) -> None:
        """So many requests were given what they read, in one go of ``seconds``."""

    def finished(self, reason: str, usage: Usage | None) -> None:
        """A request has ended: the reason of `Finished`, or ``"failed"``."""
