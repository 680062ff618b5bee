"""`Opened`: a request inside vLLM as `VllmEngine` knows it: its answer so far, and what that was read from."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from memory3.answer import Usage
from memory3.asking import Asked, cite
from memory3.choosing import Choice
from memory3.errors import Memory3Error
from memory3.serving.handle import Handle
from memory3.serving.job import Finished
from memory3.serving.stretches import GrowingText
from memory3.types import Citation
from memory3.vllm.follower import Follower

__all__ = ["Opened", "choice_of"]


@dataclass
class Opened:
    """A request inside vLLM.

    Attributes:
        handle: of who asked.
        asked: its prompt.
        text: of its answer so far.
        options: of ``SamplingParams``.
        ends: ids that end it.
        source: the bank that it reads, as it was when it came; None: it reads none.
        ids: of its answer so far.
        known: references that it has read, by id.
        follower: of what it reads, once that is known.
        error: why it cannot be answered.
    """

    handle: Handle
    asked: Asked
    text: GrowingText
    options: dict[str, Any]
    ends: set[int]
    source: Any = None
    ids: list[int] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    follower: Follower | None = None
    error: Memory3Error | None = None

    @property
    def name(self) -> str:
        """What vLLM knows it by."""
        return str(self.handle.number)

    def citations(self, first: int, last: int) -> list[Citation]:
        """Of the answer's tokens from ``first`` to before ``last``: what they read, largest share first. Shares are by the
        scores of retrieval.
        """
        if self.follower is None:
            return []
        start = len(self.asked.tokens) - 1  # the prompt's last token chooses the answer's first
        reads = self.follower.between(start + first, start + last)
        names = list(dict.fromkeys(name for _, _, ids in reads for name in ids))
        new = [name for name in names if name not in self.known]
        self.known.update(zip(new, self.source.references(new) if new else (), strict=True))
        scores = {name: self.follower.memory.scores.get(name, 0.0) for name in names}
        weights = {name: max(score, 0.0) for name, score in scores.items()}
        if not sum(weights.values()):
            weights = dict.fromkeys(names, 1.0)  # references that were named and not found
        total = sum(weights.values())
        names.sort(key=lambda name: -weights[name])
        return [cite(self.known[name], weights[name] / total, scores[name]) for name in names]

    def finished(self, reason: str) -> Finished:
        """The answer, as far as it goes.

        Args:
            reason: why it ended.
        """
        asked, handle, said = self.asked, self.handle, len(self.ids)
        prompt, citations = len(asked.tokens), list(asked.passages or [])
        usage = Usage(prompt, said)
        if self.follower is not None:
            did = self.follower.memory.statistics
            usage = Usage(prompt, said, did.recalls, did.references, did.bytes_read)
            citations = self.citations(0, max(said, 1))
        elif asked.passages is not None:
            read = sum(len(citation.text.encode()) for citation in citations)
            usage = Usage(prompt, said, 1, len(citations), read)
        now = time.perf_counter()
        first = (handle.first or now) - handle.came
        return Finished(reason, self.text.text, citations, usage, asked.note, self.ids, first, now - handle.came, "retrieval")


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
