"""Which documents a table lacks, and which it has too many."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from memory3.bank.faults import reading
from memory3.bank.format.rows import origin_in
from memory3.bank.reports import Conflict
from memory3.errors import InputError
from memory3.sources import Unread, same_source
from memory3.types import Document

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["Comparison", "Step", "StoredDocument", "documents_in"]


class StoredDocument(NamedTuple):
    """A document as a table has it.

    Attributes:
        content_hash: see `Document.content_hash`.
        references: how many it was cut into.
        is_lazy: whether one of them has no memory yet.
        source, origin: where it came from.
    """

    content_hash: str
    references: int
    is_lazy: bool
    source: str
    origin: str


_NONE = StoredDocument("", 0, False, "", "")


def documents_in(path: str, table: Table) -> tuple[dict[str, StoredDocument], set[str]]:
    """Every whole document of a table by id, and the ids of those whose rows are damaged or missing, to be replaced whole.

    Args:
        path: of the bank, for messages.
        table: the table in force.
    """
    columns = ["document_id", "content_hash", "document_references", "source", "tags"]
    with reading(path):
        firsts = table.search().where("ordinal = 0").select(columns).limit(None).to_arrow()
        lazy = table.search().where("codes_checksum IS NULL").select(["document_id"]).limit(None).to_arrow()
        others = table.search().where("NOT (ordinal = 0)").select(["document_id"]).limit(None).to_arrow()
    lazy_ids = set(lazy["document_id"].to_pylist())
    more = Counter(others["document_id"].to_pylist())
    values = list(zip(*(firsts[name].to_pylist() for name in columns), strict=True))
    stored = {
        id_: StoredDocument(content_hash, size, id_ in lazy_ids, source, origin_in(tags))
        for id_, content_hash, size, source, tags in values
        if size == 1 + more[id_]
    }
    return stored, {*more, *firsts["document_id"].to_pylist()} - stored.keys()


class Step(Enum):
    """What a write does with a document."""

    REPEATED = auto()  # given before, with the same content
    UNCHANGED = auto()
    CONFLICT = auto()  # the table has another one's under its id, and may not replace it
    WRITE = auto()


class Comparison:
    """Compares documents, as they are given, with those of a table.

    Attributes:
        added: new ones among those to write.
        replaced, conflicts: those that the table has from another source.
        seen: content hash of each document given, by id.
    """

    def __init__(
        self, stored: Mapping[str, StoredDocument], broken: set[str], *, lazy: bool = False, replace: bool = False
    ) -> None:
        """As `documents_in` finds them; ``lazy``, ``replace`` as for `Bank.write`."""
        self._stored = dict(stored)
        self._broken = set(broken)
        self._lazy = lazy
        self._replace = replace
        self.added = 0
        self.replaced: list[Conflict] = []
        self.conflicts: list[Conflict] = []
        self.seen: dict[str, str] = {}

    def before(self, document_id: str) -> str:
        """Content hash of the document that the table has under this id; "" where it has none that is whole."""
        return self._stored.get(document_id, _NONE).content_hash

    def step(self, document: Document, content_hash: str) -> Step:
        """What is to be done with a document.

        Args:
            document: as it was given.
            content_hash: of it.

        Raises:
            InputError: another one with its id and other content was given before.
        """
        if document.id in self.seen:
            if self.seen[document.id] != content_hash:
                raise InputError(f"two documents have the id {document.id!r} and different content: ids must be unique")
            return Step.REPEATED
        self.seen[document.id] = content_hash
        old_hash, _, is_lazy, source, origin = self._stored.get(document.id, _NONE)
        is_same = old_hash == content_hash
        if old_hash and not is_same and source != document.source:
            # The same text and metadata under another spelling of the source, or from a copy: nothing to do.
            is_same = dataclasses.replace(document, source=source).content_hash == old_hash
        is_foreign = bool(old_hash) and not is_same and not same_source(source, origin, document.source, document.origin)
        if is_foreign:
            (self.replaced if self._replace else self.conflicts).append(
                Conflict(document.id, origin or source, document.origin or document.source)
            )
        if is_same and (self._lazy or not is_lazy):
            return Step.UNCHANGED
        if is_foreign and not self._replace:
            return Step.CONFLICT
        self.added += not old_hash
        return Step.WRITE

    def gone(self, prefix: str, unread: Unread | None) -> tuple[list[str], list[tuple[str, str]]]:
        """Ids of the table's documents that were not given and begin with ``prefix``; none with a conflict.

        Behind them those that stay, since their files could not be read, and why.

        Args:
            prefix: of the ids that may go.
            unread: files that could not be read; their documents stay.

        Raises:
            InputError: no document was given at all.
        """
        if self._stored and not self.seen:
            raise InputError(
                "no document was given, so pruning would empty the bank: nothing was removed. Use delete for that"
            )
        kept: list[tuple[str, str]] = []
        gone: list[str] = []
        places = {id_: (each.source, each.origin) for id_, each in self._stored.items()}
        places |= dict.fromkeys(self._broken, ("", ""))
        for id_, place in places.items() if not self.conflicts else ():
            if id_ in self.seen or not id_.startswith(prefix):
                continue
            reason = unread.reason(id_.removeprefix(prefix), *place) if unread is not None else None
            if reason is None:
                gone.append(id_)
            else:
                kept.append((id_, reason))
        return gone, kept
