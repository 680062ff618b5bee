"""`Opened`: an answer that grows inside vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memory3.asking import Asked, cite
from memory3.choosing import Choice
from memory3.errors import Memory3Error
from memory3.recall.request import RequestMemory
from memory3.serving.answering import Answering
from memory3.serving.stretches import GrowingText
from memory3.types import Citation
from memory3.vllm.reader import Reader

__all__ = ["Opened", "choice_of"]


class Opened(Answering):
    """An answer inside vLLM.

    Attributes:
        options: of ``SamplingParams``.
        ends: ids that end it.
        reader: of what it reads, once that is known; None: it reads nothing.
        error: why it cannot be answered.
        count: takes the request's id inside vLLM, and gives the attention that was paid to each reference since it was called
            last, by token counted from the request's first. None: nobody counts.
    """

    shares = "retrieval"

    def __init__(self, asked: Asked, text: GrowingText, options: dict[str, Any], ends: set[int]) -> None:
        super().__init__(asked, text)
        self.options = options
        self.ends = ends
        self.reader: Reader | None = None
        self.error: Memory3Error | None = None
        self.count: Callable[[str], Mapping[int, dict[str, float]]] | None = None
        self._ids: list[int] = []
        self._paid: dict[int, dict[str, float]] = {}  # attention, by token counted from the request's first

    @property
    def ids(self) -> list[int]:
        """Token ids of the answer so far."""
        return self._ids

    @property
    def memory(self) -> RequestMemory | None:
        """What it reads; None: no memories."""
        return self.reader.follower.memory if self.reader is not None and self.reader.follower is not None else None

    def citations(self, first: int, last: int) -> list[Citation]:
        """Of the answer's tokens from ``first`` to before ``last``. Where no attention was counted, shares are by the scores
        of retrieval.
        """
        reader = self.reader
        if reader is None or reader.follower is None:
            return []
        if self.count is not None:
            self._paid.update(self.count(reader.request.request_id))  # a token that was computed again pays once
        if self._paid:
            self.shares = "attention"
        start = len(self.asked.tokens) - 1  # the prompt's last token chooses the answer's first
        reads = reader.follower.between(start + first, start + last)
        names = list(dict.fromkeys(name for _, _, ids in reads for name in ids))
        scores = {name: reader.follower.memory.scores.get(name, 0.0) for name in names}
        weights = dict.fromkeys(names, 0.0)
        for at in range(start + first, start + last):
            for name, mass in self._paid.get(at, {}).items():
                weights[name] += mass
        if not sum(weights.values()):
            weights = {name: max(score, 0.0) for name, score in scores.items()}
        if not sum(weights.values()):
            weights = dict.fromkeys(names, 1.0)  # references that were named and not found
        total = sum(weights.values())
        names.sort(key=lambda name: -weights[name])
        return [cite(reader.texts[name], weights[name] / total, scores[name]) for name in names]

    def all_citations(self) -> list[Citation]:
        """Of the whole answer, largest share first."""
        return self.citations(0, len(self.ids) + 1)  # with the token that chose its end


def choice_of(token: int, logprobs: Any, wanted: int | None) -> Choice:
    """A token as vLLM gives it.

    Args:
        token: its id.
        logprobs: vLLM's, by token; None where none were asked for.
        wanted: how many of the likeliest are told.
    """
    if logprobs is None:
        return Choice(token)
    likeliest = sorted(((each, one.logprob) for each, one in logprobs.items()), key=lambda pair: -pair[1])
    return Choice(token, logprobs[token].logprob, likeliest[: wanted or 0])
