"""`Follower`: what every token of one request reads, for an engine that may feed tokens in any portion, and again.

`RequestMemory` decides what is read; it is told of every token once, in order. A follower keeps what it decided, so that
tokens that are computed again (a request that was put off and begins anew) read what they read the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memory3.config import MemoryConfig
from memory3.models.frame import Frame
from memory3.recall.request import RequestMemory
from memory3.recall.retrieval import Retrieval, SearchHit

__all__ = ["Follower"]

#: Tokens from, to, and the references they read.
Reads = tuple[int, int, tuple[str, ...]]


class Follower:
    """Follows one request.

    Attributes:
        memory: its memory.
        reads: what its tokens read, as far as it is known, in order; tokens in front of the memories' place are in none.
    """

    def __init__(
        self,
        frame: Frame,
        config: MemoryConfig,
        retrieval: Retrieval,
        prompt: Sequence[int],
        text_of: Callable[[Sequence[int]], str],
    ) -> None:
        """
        Args:
            frame: of the model's prompts.
            config: how memories are read.
            retrieval: what is looked up.
            prompt: token ids.
            text_of: the text of tokens.
        """
        self.memory = RequestMemory(
            frame,
            retrieval,
            chunk_length=config.chunk_length,
            room=config.reference_length,
            text_of=text_of,
            prompt=prompt,
        )
        self.reads: list[Reads] = []
        self._prompt = list(prompt)
        self._prefix = len(frame.prefix)
        self.memory.feed([])  # the prompt was announced
        self.memory.lie_at(0)
        self._is_fed = False
        if not self.memory.is_waiting:  # the prompt ends in front of the memories' place
            self._feed_prompt()

    # ---- before a step -----------------------------------------------------------------------------------------------

    @property
    def known(self) -> int:
        """How many tokens there are of which is known what they read."""
        if self.memory.is_waiting:
            return len(self.memory.tokens) - 1 if self._is_fed else 0
        return len(self.memory.tokens)

    def reach(self, tokens: Sequence[int]) -> bool:
        """Learn of the request's tokens, all from the first.

        Args:
            tokens: of prompt and answer.

        Returns:
            whether it is known what they read. If not, `lookups` are to be answered by `receive`, and this called again.
        """
        while not self.memory.is_waiting and self.known < len(tokens):
            self.memory.feed([tokens[self.known]])
            if not self.memory.is_waiting:
                self._keep(self.known - 1)
        return not self.memory.is_waiting

    @property
    def lookups(self) -> list[str]:
        """Texts to be searched for."""
        return self.memory.lookups

    @property
    def next_lookup(self) -> str | None:
        """The text by which the token behind the last one will look something up; None: it does not."""
        return self.memory.next_query() if self.memory.until_renewal == 0 else None

    def receive(self, hits: Sequence[Sequence[SearchHit]]) -> None:
        """Take what was found for each of `lookups`."""
        self.memory.receive(hits)
        if self._is_fed:
            self._keep(len(self.memory.tokens) - 1)
            return
        self.reads = [(chunk.start, chunk.end, chunk.references) for chunk in self.memory.chunks]
        self._feed_prompt()

    def _feed_prompt(self) -> None:
        self.memory.feed(self._prompt)
        self._is_fed = True

    def _keep(self, at: int) -> None:
        """Token ``at`` was decoded, and reads what is read now."""
        now = self.memory.reading
        if self.reads and self.reads[-1][1] == at and self.reads[-1][0] >= len(self._prompt) and self.reads[-1][2] == now:
            self.reads[-1] = (self.reads[-1][0], at + 1, now)
        else:
            self.reads.append((at, at + 1, now))

    # ---- what a step needs -------------------------------------------------------------------------------------------

    @property
    def moved(self) -> int:
        """By how many positions memories move, where tokens behind them keep the positions that they have without."""
        return self.memory.moved - self.memory.shift

    def between(self, start: int, end: int) -> list[Reads]:
        """What tokens from ``start`` to before ``end`` read, cut to these."""
        return [(max(a, start), min(b, end), names) for a, b, names in self.reads if a < end and b > start]
