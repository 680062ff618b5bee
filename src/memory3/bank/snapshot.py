"""One version of a bank's table, to read from. It stays the same while others write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory3.bank.backends.base import Backend
from memory3.bank.codebooks import codec_of
from memory3.bank.faults import reading
from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.rows import FIRST_ROWS, LIVE, embeddings_of
from memory3.bank.format.versions import VersionId, table_id
from memory3.bank.where import Where, alternatives, is_in, where_sql
from memory3.codec import Codec
from memory3.errors import BankCorrupt

if TYPE_CHECKING:
    import torch
    from lancedb.table import Table

__all__ = ["RESIDENT_BYTES", "Snapshot"]

#: Embeddings up to this size are kept in RAM and searched exactly: a few milliseconds. Above, Lance's index searches them.
RESIDENT_BYTES = 128 << 20

#: Rows with their memories are read in portions of about this size.
_PORTION_BYTES = 64 << 20


class Snapshot:
    """Rows by id and by filter, at one version of the table.

    Attributes:
        backend, name: where the table lies.
        path: where the bank lies, for messages.
        id: see `VersionId`.
    """

    def __init__(
        self, backend: Backend, name: str, table: Table, manifest: BankManifest, token_vectors: torch.Tensor | None = None
    ) -> None:
        self.backend = backend
        self.path = backend.location
        self.name = name
        self.table = table
        self.manifest = manifest
        self.token_vectors = token_vectors
        with reading(self.path):
            id_ = table_id(table.schema.metadata or {})
            version = int(table.version)
        self.id = VersionId(id_, name, version, backend.version_mark(name, version))

    @property
    def version(self) -> int:
        """Lance's number of this version."""
        return self.id.version

    def is_removed(self) -> bool:
        """Whether the files of this version were removed, as happens some time after others replaced it, or exchanged."""
        return self.backend.version_mark(self.name, self.version) != self.id.mark

    @cached_property
    def size(self) -> int:
        """Number of references."""
        with reading(self.path):
            return int(self.table.count_rows(LIVE))

    @cached_property
    def lazy(self) -> int:
        """Number of references without a memory."""
        with reading(self.path):
            return int(self.table.count_rows(f"{LIVE} AND codes_checksum IS NULL"))

    @property
    def record_bytes(self) -> int:
        """Of one memory."""
        return self.manifest.record_bytes

    @cached_property
    def codec(self) -> Codec:
        """What reads and writes the memories. A codebook that is lost or damaged raises BankCorrupt."""
        return codec_of(self.backend, self.manifest, self.token_vectors)

    @property
    def is_resident(self) -> bool:
        """Whether embeddings and ids are kept in RAM."""
        return self.size * self.manifest.dimension * 4 <= RESIDENT_BYTES

    @cached_property
    def resident(self) -> Resident:
        """Embeddings, ids and tags in RAM; loaded at the first search or read."""
        return Resident(self.scan(["reference_id", "document_id", "tags", "embedding"]))

    def has_tokens(self, token_ids: Sequence[int]) -> bool:
        """Whether a reference can have these tokens: not too many, and, where a model is at hand, all of its vocabulary."""
        most = self.manifest.config.reference_length
        vocabulary = len(self.token_vectors) if self.token_vectors is not None else 1 << 31
        return 0 < len(token_ids) <= most and min(token_ids) >= 0 and max(token_ids) < vocabulary

    def scan(self, columns: Sequence[str], condition: str = LIVE) -> pa.Table:
        """Some columns of all rows that match, with ``_rowid``.

        Args:
            columns: names.
            condition: SQL, as `memory3.bank.where` writes it; by default rows that are part of their document.
        """
        with reading(self.path):
            query = self.table.search().where(condition).select(list(columns)).with_row_id(True)
            return query.limit(None).to_arrow()

    def count(self, where: Where | None = None) -> int:
        """References that match the filter."""
        if not where:
            return self.size
        if self.is_resident:
            return int(self.resident.matching(where).sum())
        with reading(self.path):
            return int(self.table.count_rows(f"{LIVE} AND {where_sql(where)}"))

    def tags(self) -> list[str]:
        """Every metadata entry that some document has, as text (`memory3.bank.format.tags.tag`)."""
        found = self.scan(["tags"], FIRST_ROWS)["tags"].combine_chunks().flatten()
        return [str(tag) for tag in found.unique().to_pylist()]

    def row_ids(self, reference_ids: Sequence[str]) -> dict[str, int]:
        """Lance's row ids of those references that exist."""
        if self.is_resident:
            places = self.resident.places
            found = [(id_, places.get(id_)) for id_ in reference_ids]
            return {id_: int(self.resident.row_ids[place]) for id_, place in found if place is not None}
        rows = self.scan(["reference_id"], f"{LIVE} AND {is_in('reference_id', reference_ids)}") if reference_ids else None
        return {} if rows is None else dict(zip(rows["reference_id"].to_pylist(), rows["_rowid"].to_pylist(), strict=True))

    def take(self, row_ids: Sequence[int], columns: Sequence[str], portion: int | None = None) -> Iterator[pa.Table]:
        """Some columns of rows, in portions of bounded size (or of so many rows), in no promised order.

        Args:
            row_ids: Lance's, as `scan` gives them in ``_rowid``.
            columns: names.
            portion: rows of a portion; None: as many as bounded RAM holds.

        Raises:
            BankCorrupt: rows have vanished.
        """
        size = self.portion(columns) if portion is None else portion
        for start in range(0, len(row_ids), size):
            some = list(row_ids[start : start + size])
            with reading(self.path):
                rows = self.table.take_row_ids(some).select(list(columns)).to_arrow()
            if len(rows) != len(some):
                raise BankCorrupt(f"{self.path}: {len(some) - len(rows)} rows have vanished: check with `memory3 verify`")
            yield rows

    def portion(self, columns: Sequence[str]) -> int:
        """Rows that `take` reads at once."""
        return max(1, _PORTION_BYTES // self.record_bytes) if "codes" in columns else 4096

    def unindexed(self) -> dict[str, int]:
        """For each indexed column the number of rows its index does not cover yet."""
        with reading(self.path):
            found = {index.columns[0]: self.table.index_stats(index.name) for index in self.table.list_indices()}
        return {column: int(stats.num_unindexed_rows) for column, stats in found.items() if stats is not None}

    def fragments(self) -> tuple[int, int, int]:
        """Number of Lance fragments, rows of the largest, rows of all with those deleted but not yet removed."""
        fragments = self._statistics["fragment_stats"]
        count, lengths = int(fragments["num_fragments"]), fragments["lengths"]
        return count, int(lengths["max"]), count * int(lengths["mean"])

    @property
    def bytes(self) -> int:
        """Size of this version's files."""
        return int(self._statistics["total_bytes"])

    @property
    def _statistics(self) -> Any:
        with reading(self.path):
            return self.table.stats()  # annotated as a dataclass, in truth a dict


class Resident:
    """The small columns of a bank in RAM.

    Attributes:
        reference_ids, document_ids: by place.
        row_ids: uint64 ``[n]``, Lance's.
        embeddings: float32 ``[n, dimension]``.
        places: place of each reference id.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.reference_ids: list[str] = rows["reference_id"].to_pylist()
        self.document_ids: list[str] = rows["document_id"].to_pylist()
        self.row_ids: np.ndarray = rows["_rowid"].to_numpy()
        self.embeddings = embeddings_of(rows)
        finite = np.isfinite(self.embeddings).all(axis=1)
        if not finite.all():
            id_ = self.reference_ids[int(finite.argmin())]
            raise BankCorrupt(
                f"the embedding of reference {id_!r} is not finite: delete its document and write it again", [id_]
            )
        self.places = {id_: place for place, id_ in enumerate(self.reference_ids)}
        self._tags = rows["tags"].combine_chunks()

    @cached_property
    def _tag_rows(self) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
        """Number of each distinct tag, and for every occurrence its number and its place."""
        encoded = self._tags.flatten().dictionary_encode()
        numbers = {text: number for number, text in enumerate(encoded.dictionary.to_pylist())}
        return numbers, encoded.indices.to_numpy(), pc.list_parent_indices(self._tags).to_numpy()

    def matching(self, where: Where) -> np.ndarray:
        """bool ``[n]``: which rows match the filter."""
        numbers, occurrences, places = self._tag_rows
        mask = np.ones(len(self.reference_ids), dtype=bool)
        for group in alternatives(where):
            wanted = [numbers[tag] for tag in group if tag in numbers]
            has_one = np.zeros_like(mask)
            has_one[places[np.isin(occurrences, wanted)]] = True
            mask &= has_one
        return mask
