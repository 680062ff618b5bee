"""The one committer of a table: puts encoded rows into it, whole documents at a time, so that a killed write can go on.

A commit replaces whole documents, so a reader sees a document as it was or as it is. Where a new version has fewer
references than the old one, the commit overwrites the surplus with tombstones, which readers ignore and the next commit
deletes: Lance's own "delete what the source lacks" reads the whole table, memories included, into RAM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from memory3.bank.faults import reading, writing
from memory3.bank.format.manifest import METADATA_KEY, BankManifest
from memory3.bank.format.rows import row_batch, tombstone
from memory3.bank.staging import Staging
from memory3.bank.store import Store
from memory3.bank.write.compare import documents_in
from memory3.bank.write.kept import Kept, kept_rows
from memory3.bank.write.removal import delete_documents, delete_tombstones
from memory3.types import Reference

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["Committer"]


class Committer:
    """Writes one table. By the holder of the bank's lock.

    Attributes:
        schema, manifest: of the table.
        stored, broken: what `documents_in` found when it was made.
        staging: where the rows of large documents wait until they are complete.
    """

    def __init__(self, store: Store, name: str, table: Table) -> None:
        """Reads what the table has. Removes what a killed write left half done."""
        self._store = store
        self._table = table
        with reading(store.path):
            self.schema: pa.Schema = table.schema
        self.manifest = BankManifest.from_json(self.schema.metadata[METADATA_KEY])
        self.staging = Staging(store, f"{name}-staging")
        delete_tombstones(store, table)
        self.stored, self.broken = documents_in(store.path, table)
        self._sizes = {id_: each.references for id_, each in self.stored.items()}
        self._damaged = set(self.broken)

    def holds(self, document_id: str) -> bool:
        """Whether the table has rows of a document, whole or not."""
        return document_id in self._sizes or document_id in self._damaged

    def kept(self, references: Sequence[Reference], *, lazy: bool) -> dict[str, Kept]:
        """What the table has for these tokens already (`kept_rows`).

        Args:
            references: as the document is split now.
            lazy: whether rows without a memory will do.
        """
        known = [reference for reference in references if reference.document_id in self._sizes]
        return kept_rows(self._store.path, self._table, known, lazy=lazy)

    def put(self, sizes: dict[str, int], batches: Iterable[pa.RecordBatch]) -> None:
        """Put whole documents into the table, in one commit, in place of what was there under their ids.

        What was damaged goes in a commit before.

        Args:
            sizes: number of references by document id.
            batches: their rows.
        """
        broken = sorted(self._damaged.intersection(sizes))
        delete_documents(self._store, self._table, broken)
        self._damaged.difference_update(broken)
        replaced = {id_: self._sizes[id_] for id_ in sizes if id_ in self._sizes}
        surplus = [tombstone(id_, ordinal, sizes[id_]) for id_, old in replaced.items() for ordinal in range(sizes[id_], old)]
        if surplus:
            blank = np.zeros((len(surplus), self.manifest.dimension), np.float32)
            batches = chain(batches, [row_batch(surplus, blank, [None] * len(surplus), self.schema)])
        data = pa.RecordBatchReader.from_batches(self.schema, batches)
        with writing(self._store.path):
            if replaced:
                merge = self._table.merge_insert("reference_id")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(data)
            else:
                self._table.add(data)
        if surplus:
            delete_tombstones(self._store, self._table)
        self._sizes.update(sizes)

    def move(self, document_id: str, references: int) -> None:
        """Put a document into the table whose rows are all staged.

        Args:
            document_id: of the document.
            references: how many it has.
        """
        self.put({document_id: references}, self.staging.batches(document_id, references))
        self.staging.forget(document_id)

    def remove(self, document_ids: Sequence[str]) -> None:
        """Take documents out of the table; each goes whole, in one commit."""
        delete_documents(self._store, self._table, document_ids)
        for id_ in document_ids:
            self._sizes.pop(id_, None)
            self._damaged.discard(id_)
