"""`Reader`: a request that reads, as the planner and the thread that finds for it know it.

A reader belongs to the engine's thread. While something is being found for it, `asked` says what, and the thread that finds
writes `found` and then calls `answer`; nothing else of it changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory3.errors import Memory3Error, RecallError
from memory3.recall.retrieval import SearchHit
from memory3.types import Reference
from memory3.vllm.asked import Wanted
from memory3.vllm.follower import Follower
from memory3.vllm.step import Form, Name, Packed

__all__ = ["EngineRequest", "Found", "Reader"]

#: A step that never comes: vLLM leaves a running request out of all steps before the one it is eligible for.
_NEVER = 1 << 62


class EngineRequest(Protocol):
    """What is asked of a request of vLLM."""

    request_id: str
    kv_transfer_params: dict[str, Any] | None
    prompt_token_ids: list[int] | None
    cache_salt: str | None
    max_tokens: int
    num_prompt_tokens: int
    block_hashes: list[Any]
    next_decode_eligible_step: int

    @property
    def all_token_ids(self) -> Sequence[int]:
        """Prompt and answer so far."""

    def update_block_hashes(self) -> None:
        """Compute those of full blocks that have none."""


@dataclass(frozen=True)
class Found:
    """What was found for a reader.

    Attributes:
        queries: texts that were searched for.
        hits: of each.
        packed: memories of all that will be read of it.
        texts: their references, where these are wanted.
    """

    queries: list[str]
    hits: list[Sequence[SearchHit]]
    packed: list[Packed]
    texts: Mapping[str, Reference]


@dataclass(eq=False)
class Reader:
    """A request that reads.

    Attributes:
        request: of vLLM.
        wanted: what it asks for.
        source: the bank as it was when the request came.
        form: how its memories are packed.
        follower: of its tokens; None: there is nothing for it to read.
        packed: all memories it has read.
        texts: their references by id, where these are wanted.
        sent: what the workers hold for it.
        is_salted: whether what it reads is part of its cache's key.
        error: why it cannot be answered.
        finding: while something is being found for it.
        found: what.
    """

    request: EngineRequest
    wanted: Wanted | None
    source: Any = None
    form: Form | None = None
    follower: Follower | None = None
    packed: dict[Name, Packed] = field(default_factory=dict)
    texts: dict[str, Reference] = field(default_factory=dict)
    sent: tuple[Name, ...] = ()
    is_salted: bool = False
    error: Memory3Error | None = None
    finding: Future[None] | None = None
    found: Found | None = None

    @property
    def bank(self) -> str:
        """Name of its bank."""
        return self.wanted.bank if self.wanted is not None else ""

    def names(self, references: Sequence[str]) -> tuple[Name, ...]:
        """Of references of its bank, as it was when the request came."""
        return tuple((self.bank, self.source.version, name) for name in references)

    def __contains__(self, reference: str) -> bool:
        """Whether it has read a reference."""
        return self.names([reference])[0] in self.packed

    def await_found(self) -> None:
        """Something is to be found: the request takes part in no further step until then."""
        self.finding = Future()
        self.request.next_decode_eligible_step = _NEVER

    def answer(self, error: Exception | None = None) -> None:
        """It is found, or cannot be. In the thread that finds."""
        finding = self.finding
        assert finding is not None
        self.request.next_decode_eligible_step = 0  # before the engine's thread hears of it, and may let it wait again
        if error is None:
            finding.set_result(None)
        else:
            finding.set_exception(error if isinstance(error, Memory3Error) else _named(error))


def _named(error: Exception) -> RecallError:
    named = RecallError(f"its memories were not found ({type(error).__name__}: {error})")
    named.__cause__ = error
    return named
