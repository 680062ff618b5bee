"""Passages: the text of the references that a query finds, for programs that put them into a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory3.errors import BankChanged, ConfigError
from memory3.recall.retrieval import Retrieval, one_version, within
from memory3.types import Reference

__all__ = ["PASSAGES", "Passage", "find_passages", "readable"]

#: How many are found where nobody says another number: as many as a model reads at once.
PASSAGES = 5


@dataclass(frozen=True)
class Passage:
    """A reference that was found.

    Attributes:
        reference: it, with its text.
        score: its cosine with the query, -1 to 1.
    """

    reference: Reference
    score: float

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known of it as flat JSON values: the document's own metadata, and ``source``, ``document_id``,
        ``reference_id``, ``start``, ``end`` (character offsets in the document) and ``score``, which stand over metadata of
        the same name.
        """
        about = self.reference
        return {
            **about.metadata,
            "source": about.source,
            "document_id": about.document_id,
            "reference_id": about.id,
            "start": about.start,
            "end": about.end,
            "score": self.score,
        }


def readable(bank: Any) -> Any:
    """The bank, where it is one.

    Args:
        bank: what a caller gave for one.

    Raises:
        ConfigError: it can be neither searched nor read.
    """
    if not (callable(getattr(bank, "search", None)) and callable(getattr(bank, "references", None))):
        raise ConfigError(f"bank is {bank!r:.80}: give an open one, as in Bank.open('bank', None, create=False)")
    return bank


def find_passages(bank: Any, query: str, retrieval: Retrieval) -> Sequence[Passage]:
    """The passages nearest to a query, best first, all of one version of the bank.

    Args:
        bank: a `Bank`, opened with or without a model, or what can be searched and read like it.
        query: a text.
        retrieval: how many, how near, and with which metadata.

    Raises:
        BankError: the bank cannot be read.
    """
    try:
        return _find(one_version(bank), query, retrieval)
    except BankChanged:  # another purged it between search and read: the newest version is there
        return _find(one_version(bank), query, retrieval)


def _find(source: Any, query: str, retrieval: Retrieval) -> list[Passage]:
    (hits,) = source.search([query], retrieval.k, retrieval.where)
    near = within(hits, retrieval.gap)
    references = source.references([hit.reference_id for hit in near])
    return [Passage(reference, hit.score) for reference, hit in zip(references, near, strict=True)]
