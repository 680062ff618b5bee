"""`Streamed`: an answer that grows in a stream of continuous batching."""

from __future__ import annotations

from collections.abc import Sequence

from memory3.asking import Asked, cite
from memory3.recall.batching import Stream
from memory3.recall.request import RequestMemory
from memory3.serving.answering import Answering
from memory3.serving.stretches import GrowingText
from memory3.types import Citation, Reference

__all__ = ["Streamed"]


class Streamed(Answering):
    """An answer and its stream.

    Attributes:
        stream: of its tokens.
        known: the references that it has read, by id.
    """

    shares = "attention"

    def __init__(self, asked: Asked, text: GrowingText, stream: Stream) -> None:
        super().__init__(asked, text)
        self.stream = stream
        self.known: dict[str, Reference] = {}

    @property
    def ids(self) -> list[int]:
        """Token ids of the answer so far."""
        return self.stream.answer

    @property
    def memory(self) -> RequestMemory | None:
        """What it reads; None: no memories."""
        return self.stream.memory

    def citations(self, first: int, last: int) -> list[Citation]:
        """Of the answer's tokens from ``first`` to before ``last``. Shares are of the attention paid, which is counted now."""
        self.stream.settle()
        return self._cited(self.stream.shares(first, last))

    def all_citations(self) -> list[Citation]:
        """Of the whole answer, largest share first."""
        self.stream.settle()
        return [] if self.stream.memory is None else self._cited(self.stream.memory.shares())

    def leave(self) -> None:
        """Its context and memories go."""
        self.stream.leave()

    def _cited(self, shares: Sequence[tuple[str, float, float]]) -> list[Citation]:
        return [cite(self.known[name], share, score) for name, share, score in shares]
