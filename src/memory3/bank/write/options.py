"""How documents are written, as one value for the writer and for the maker of plans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memory3.sources import Unread
from memory3.types import Document

__all__ = ["WriteOptions"]


@dataclass(frozen=True)
class WriteOptions:
    """What becomes of new documents, of those that have another source, and of those that were not given.

    Attributes:
        lazy: store text and embedding only.
        prune: remove the documents that were not given.
        replace: let a document take the place of one from another source.
        unread: files that could not be read; pruning spares what they may hold.
        prune_prefix: only ids that begin so are pruned.
    """

    lazy: bool = False
    prune: bool = False
    replace: bool = False
    unread: Unread | None = None
    prune_prefix: str = ""

    @classmethod
    def of(
        cls,
        documents: Iterable[Document],
        *,
        lazy: bool,
        prune: bool,
        replace: bool,
        unread: Unread | None,
        prune_prefix: str | None,
    ) -> WriteOptions:
        """As given; what pruning spares and keeps to is else what `memory3.text.readers.read_documents` says of its documents.

        Args:
            documents: to be written.
            lazy, prune, replace: as they are.
            unread: None: as the documents say.
            prune_prefix: None: as the documents say.
        """
        unread = getattr(documents, "unread", None) if unread is None else unread
        prefix = str(getattr(documents, "prefix", "")) if prune_prefix is None else prune_prefix
        return cls(lazy, prune, replace, unread, prefix)
