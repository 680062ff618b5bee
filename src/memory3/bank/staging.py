"""Rows of a large document that is not complete yet, in a table of their own, so that an interruption loses little of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from memory3.bank.faults import reading, writing
from memory3.bank.format.manifest import METADATA_KEY, BankManifest
from memory3.bank.format.rows import are_damaged, with_checksums
from memory3.bank.store import Store
from memory3.bank.where import literal

if TYPE_CHECKING:
    from lancedb.table import Table

__all__ = ["Staging"]

_PORTION_ROWS = 64


class Staging:
    """The staging table, made when first needed and removed when empty. Its rows say 0 for their document's references."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._table: Table | None = None

    def begin(self, document_id: str, content_hash: str, schema: pa.Schema, *, lazy: bool) -> dict[int, tuple[int, int]]:
        """Get ready for a document. Returns, by ordinal, of its references that are there already their ends and numbers
        of tokens.

        Args:
            document_id: of the document.
            content_hash: of its text and metadata; rows of another hash go.
            schema: of the rows, from `row_schema`.
            lazy: whether rows without memories are wanted.
        """
        self._table = self._store.find_table(self._name)
        if self._table is None or self._table.schema != schema:
            manifest = BankManifest.from_json(schema.metadata[METADATA_KEY])
            self._table = self._store.add_table(self._name, manifest)
        document = f"document_id = {literal(document_id)}"
        usable = f"content_hash = {literal(content_hash)} AND codes_checksum IS {'NULL' if lazy else 'NOT NULL'}"
        with writing(self._store.path):
            self._table.delete(f"{document} AND NOT ({usable})")
        with reading(self._store.path):
            query = self._table.search().where(document).select(["ordinal", "end", "token_ids"]).with_row_id(True)
            rows = query.limit(None).to_arrow().sort_by("ordinal")
        if any(any(are_damaged(part)) for part in self._portions(rows["_rowid"].to_pylist())):
            self.forget(document_id)
            return {}
        ends, lengths = rows["end"].to_pylist(), pc.list_value_length(rows["token_ids"]).to_pylist()
        return dict(zip(rows["ordinal"].to_pylist(), zip(ends, lengths, strict=True), strict=True))

    def add(self, batch: pa.RecordBatch) -> None:
        """Commit some more rows of the document begun."""
        assert self._table is not None
        with writing(self._store.path):
            self._table.add(batch)

    def batches(self, document_id: str, document_references: int) -> Iterator[pa.RecordBatch]:
        """The document's rows, completed by the number of its references.

        Args:
            document_id: of the document, staged whole.
            document_references: how many references it has.
        """
        assert self._table is not None
        table = self._table
        with reading(self._store.path):
            found = table.search().where(f"document_id = {literal(document_id)}").select(["ordinal"]).with_row_id(True)
            rows = found.limit(None).to_arrow().sort_by("ordinal")["_rowid"].to_pylist()
        for part in self._portions(rows):
            columns = {name: part[name].combine_chunks() for name in table.schema.names}
            columns["document_references"] = pa.array([document_references] * len(part), pa.int32())
            yield with_checksums(columns, table.schema)

    def _portions(self, row_ids: Sequence[int]) -> Iterator[pa.Table]:
        """Whole rows, some at a time."""
        assert self._table is not None
        for start in range(0, len(row_ids), _PORTION_ROWS):
            with reading(self._store.path):
                yield self._table.take_row_ids(list(row_ids[start : start + _PORTION_ROWS])).to_arrow().combine_chunks()

    def forget(self, document_id: str) -> None:
        """Remove the rows of a document that was moved, or cannot be."""
        assert self._table is not None
        with writing(self._store.path):
            self._table.delete(f"document_id = {literal(document_id)}")

    def close(self, written: Collection[str]) -> None:
        """Remove the table, unless it holds a document that is not among those ``written``: an interrupted write left it to go
        on.

        A written document is left over where a writer was killed between moving and forgetting it.
        """
        table = self._store.find_table(self._name)
        staged: list[str] = []
        if table is not None:
            with reading(self._store.path):
                staged = table.search().select(["document_id"]).limit(None).to_arrow()["document_id"].to_pylist()
        if all(document_id in written for document_id in staged):
            self._store.remove_table(self._name)
