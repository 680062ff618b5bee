"""`Answering`: an answer in the making: all that an engine keeps of one request whose prompt is made."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from memory3.answer import Usage
from memory3.asking import Asked
from memory3.recall.request import RequestMemory
from memory3.serving.job import Finished
from memory3.serving.stretches import GrowingText
from memory3.types import Citation

__all__ = ["Answering"]


class Answering(ABC):
    """Of one request. Each engine has its own kind.

    Attributes:
        asked: the prompt.
        text: of the answer so far.
        shares: what the shares of its citations are of, see `Finished`.
    """

    shares: str

    def __init__(self, asked: Asked, text: GrowingText) -> None:
        """
        Args:
            asked: the prompt.
            text: that the answer grows in.
        """
        self.asked = asked
        self.text = text

    @property
    @abstractmethod
    def ids(self) -> list[int]:
        """Token ids of the answer so far."""

    @property
    @abstractmethod
    def memory(self) -> RequestMemory | None:
        """What it reads; None: no memories."""

    @abstractmethod
    def citations(self, first: int, last: int) -> list[Citation]:
        """What the answer's tokens from ``first`` to before ``last`` were read from, largest share first."""

    @abstractmethod
    def all_citations(self) -> list[Citation]:
        """The same of the whole answer."""

    def leave(self) -> None:  # noqa: B027 (most have nothing to do)
        """The request has ended, and nothing of it is needed any more."""

    def finished(self, reason: str, came: float, first: float) -> Finished:
        """The answer, as far as it goes.

        Args:
            reason: why it ended.
            came, first: moments of the request and of its first token; 0: it has none.
        """
        asked, said, memory = self.asked, self.ids, self.memory
        prompt = len(asked.tokens)
        usage, citations, by = Usage(prompt, len(said)), list(asked.passages or []), self.shares
        if memory is not None:
            did = memory.statistics
            usage = Usage(prompt, len(said), did.recalls, did.references, did.bytes_read)
            citations = self.all_citations()
            by = self.shares  # of these citations
        elif asked.passages is not None:
            read = sum(len(citation.text.encode()) for citation in citations)
            usage, by = Usage(prompt, len(said), 1, len(citations), read), "retrieval"
        now = time.perf_counter()
        times, presence = ((first or now) - came, now - came), asked.present(memory, citations)
        return Finished(reason, self.text.text, citations, usage, asked.note, said, *times, by, presence)
