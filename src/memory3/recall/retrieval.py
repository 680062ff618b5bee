"""What a request looks up in a bank, as one value; and what is needed of a bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from memory3.errors import ConfigError, setting
from memory3.types import Memory

__all__ = ["EVERYTHING", "MemorySource", "Retrieval", "SearchHit", "one_version", "pinned", "retrievals", "within"]

#: A gap that leaves no reference out: cosines differ by 2 at most.
EVERYTHING = 2.0


class SearchHit(Protocol):
    """A reference that a search found."""

    @property
    def reference_id(self) -> str:
        """Its id."""

    @property
    def score(self) -> float:
        """Its cosine with the query, -1 to 1."""


_Found = TypeVar("_Found", bound=SearchHit)
_Source = TypeVar("_Source")


class MemorySource(Protocol):
    """What recall needs of a bank. One that changes while it is read has a method ``pin`` besides, which gives a source
    that does not. One that is far away has ``ahead``, called as `search`, which fetches beside the caller what such a search
    would find.
    """

    def search(self, queries: Sequence[str], k: int, where: Mapping[str, Any] | None = None) -> Sequence[Sequence[SearchHit]]:
        """The k nearest references of each query, most similar first.

        Args:
            queries: texts.
            k: hits per query at most.
            where: metadata that references must have; None: any.
        """

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> Sequence[Memory]:
        """Their memories, in order; made on ``device`` where they have to be decoded.

        Args:
            reference_ids: in any order.
            use_cache: keep what is read in RAM, where the source has a cache.
            device: None: the CPU.
        """

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many references there are."""


@dataclass(frozen=True)
class Retrieval:
    """What one request looks up.

    Attributes:
        k: references that a chunk reads at most.
        gap: of those, only references whose cosine is within this of the best one's; 2 leaves none out.
        where: only references whose metadata have these values.
        references: ids to read instead of looking any up; none of them: nothing is read.
        chunk_references: the same for each chunk of the prompt; for prompts that are read and not continued.

    Raises:
        ConfigError: a number of references below 0, or a gap that is no difference of cosines.
    """

    k: int
    gap: float = EVERYTHING
    where: Mapping[str, Any] | None = None
    references: tuple[str, ...] | None = None
    chunk_references: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 0:
            raise ConfigError(f"{setting('k', self.k)}: give a whole number from 0")
        if not 0 <= self.gap <= EVERYTHING:
            raise ConfigError(f"{setting('gap', self.gap)}: give a difference of cosines, 0 to {EVERYTHING:g}")

    def finds_nothing(self, source: MemorySource) -> bool:
        """Whether no chunk of the request can read anything of this source."""
        if self.chunk_references is not None:
            return not any(self.chunk_references)
        if self.references is not None:
            return not self.references
        return self.k == 0 or source.count(self.where) == 0


def pinned(common: Retrieval, references: Sequence[Sequence[str]]) -> list[Retrieval]:
    """What each prompt of a batch looks up, where its references are given."""
    return [replace(common, references=tuple(ids)) for ids in references]


def retrievals(
    common: Retrieval,
    references: Sequence[Sequence[str]] | None = None,
    chunk_references: Sequence[Sequence[Sequence[str]]] | None = None,
) -> Retrieval | list[Retrieval]:
    """What each prompt of a batch looks up: all the same, or each the references that were given for it.

    Args:
        common: what is the same for all.
        references: for each prompt the ids it reads throughout.
        chunk_references: for each prompt and chunk the ids that chunk reads.
    """
    if references is not None:
        return pinned(common, references)
    if chunk_references is not None:
        return [replace(common, chunk_references=tuple(tuple(ids) for ids in row)) for row in chunk_references]
    return common


def within(hits: Sequence[_Found], gap: float) -> Sequence[_Found]:
    """The hits, most similar first, whose score is within ``gap`` of the first one's."""
    return [hit for hit in hits if hit.score >= hits[0].score - gap]


def one_version(bank: _Source) -> _Source:
    """The bank as it is now, for all that one answer finds, reads and cites."""
    pin = getattr(bank, "pin", None)
    return bank if pin is None else pin()
