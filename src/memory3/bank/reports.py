"""Plain results that the bank hands out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from memory3.bank.cache import CacheStatistics
from memory3.bank.tiers import TierStatistics

__all__ = ["BankInfo", "Conflict", "DocumentEntry", "Hit", "VerifyReport", "WriteProgress", "WriteReport"]


@dataclass(frozen=True)
class Hit:
    """A reference found by search; ``score`` is the cosine, -1 to 1."""

    reference_id: str
    document_id: str
    score: float


@dataclass(frozen=True)
class DocumentEntry:
    """A document as the bank lists it."""

    id: str
    source: str
    references: int
    content_hash: str


@dataclass(frozen=True)
class WriteProgress:
    """Where a write stands, after each batch. ``references`` counts those encoded by this write, committed or not."""

    documents: int
    written: int
    unchanged: int
    references: int
    seconds: float
    document_id: str


@dataclass(frozen=True)
class Conflict:
    """A document and one that the bank has under its id from another source."""

    id: str
    stored: str
    given: str


@dataclass(frozen=True)
class WriteReport:
    """What a write did.

    Attributes:
        written: documents that are new or changed.
        unchanged: documents that were there already, at no cost.
        removed: documents that `prune` removed.
        added: of those written, the new ones.
        replaced: documents of another source that were replaced.
        conflicts: documents that were not written, for the bank has one of another source under their id.
        kept: documents that `prune` spared, since their file could not be read, and why.
        references: references written.
        bytes: of rows written, before Lance's compression.
        seconds: from start to end.
    """

    written: int
    unchanged: int
    removed: int
    references: int
    bytes: int
    seconds: float
    added: int = 0
    replaced: tuple[Conflict, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()

    @property
    def changed(self) -> int:
        """Documents written in place of an earlier text of the same source."""
        return self.written - self.added - len(self.replaced)


@dataclass(frozen=True)
class VerifyReport:
    """What `Bank.verify` found.

    Attributes:
        references, documents: how many were looked at.
        lazy: references without a memory yet.
        bad: ids of references whose row is damaged or incomplete.
        problems: one line for each thing found, naming the row or document.
    """

    references: int
    documents: int
    lazy: int
    bad: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def cold(self) -> int:
        """`lazy`, by its name in earlier releases."""
        return self.lazy

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the names that ``verify --json`` has always had."""
        return _with_cold(dataclasses.asdict(self))

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


@dataclass(frozen=True)
class BankInfo:
    """Counts and sizes.

    Attributes:
        references, documents, lazy: rows, documents, and rows without a memory yet.
        bytes: on disk, with old versions that are still kept.
        record_bytes: of one memory.
        bytes_per_reference: ``bytes / references``.
        index: ``"exact"`` (embeddings in RAM), ``"scan"`` (too large for RAM, no index yet) or ``"ivf"``.
        unindexed: rows that the index does not cover yet and search scans.
        fragments, version: of the Lance table.
        tiers: the cache: what this process found in each tier.
    """

    references: int
    documents: int
    lazy: int
    bytes: int
    record_bytes: int
    bytes_per_reference: float
    index: str
    unindexed: int
    fragments: int
    version: int
    tiers: TierStatistics = field(default_factory=TierStatistics)

    @property
    def cold(self) -> int:
        """`lazy`, by its name in earlier releases."""
        return self.lazy

    @property
    def cache(self) -> CacheStatistics:
        """Of RAM's tier, by its name in earlier releases."""
        return self.tiers.ram

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the names that ``info --json`` has always had."""
        return _with_cold(dataclasses.asdict(self))


def _with_cold(fields: dict[str, Any]) -> dict[str, Any]:
    return {"cold" if name == "lazy" else name: value for name, value in fields.items()}
