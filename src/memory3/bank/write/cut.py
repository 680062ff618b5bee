"""Documents cut into references, and gathered into what one commit holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from memory3.bank.format.rows import BankRow
from memory3.bank.protocol import MemoryWriter
from memory3.types import Document, Reference

__all__ = ["Cut", "Cutter", "EmptyDocument", "LargeDocument", "WholeDocuments"]


@dataclass(frozen=True)
class WholeDocuments:
    """All references of one document or of several: one commit.

    Attributes:
        rows: of the documents, one after the other.
    """

    rows: list[BankRow]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of references by document id."""
        return {row.reference.document_id: row.document_references for row in self.rows}


@dataclass(frozen=True)
class LargeDocument:
    """A document with more references than one commit may hold.

    Attributes:
        document, content_hash: itself.
        references: all of its, to be read once.
    """

    document: Document
    content_hash: str
    references: Iterator[Reference]


@dataclass(frozen=True)
class EmptyDocument:
    """A document without a reference: nothing of it is stored."""

    document_id: str
    content_hash: str


Cut = WholeDocuments | LargeDocument | EmptyDocument


class Cutter:
    """Gathers documents until they are enough for a commit; one that is too large comes by itself."""

    def __init__(self, m3: MemoryWriter, most: int, is_due: Callable[[int], bool]) -> None:
        """
        Args:
            m3: cuts documents into references.
            most: references that one commit may hold.
            is_due: whether so many references are enough.
        """
        self._m3 = m3
        self._most = most
        self._is_due = is_due
        self._group: list[BankRow] = []

    def take(self, document: Document, content_hash: str) -> Iterator[Cut]:
        """Add a document. What is ready now comes out; use it before the next is added.

        Args:
            document: to split into references.
            content_hash: of it.
        """
        references = self._m3.split(document)
        head = list(islice(references, self._most + 1))
        if len(head) > self._most:
            yield from self.rest()
            yield LargeDocument(document, content_hash, chain(head, references))
        elif head:
            self._group += [BankRow(reference, content_hash, len(head), document.origin) for reference in head]
            if self._is_due(len(self._group)):
                yield from self.rest()
        else:
            yield EmptyDocument(document.id, content_hash)

    def rest(self) -> Iterator[Cut]:
        """What was gathered, if anything."""
        if self._group:
            rows, self._group = self._group, []
            yield WholeDocuments(rows)
