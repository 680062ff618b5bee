"""`WritePlan`: what is to be written, as plain data. `Shard`: a part of it that is encoded by itself, on whatever machine.

A plan in a folder, which can be copied:

    plan.json                              what becomes of which document, and what the plan was made for
    shard-000000.json, shard-000001.json   one file per shard: references with texts and token ids
    codec-<fingerprint>.safetensors        the bank's codebook, if its codec needs one
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.names import codebook_name
from memory3.bank.format.rows import BankRow
from memory3.bank.reports import Conflict
from memory3.codec import Codebook
from memory3.errors import BankError, InputError
from memory3.files import parse_json, read_bounded, write_atomically
from memory3.types import Reference, whole

__all__ = ["PlannedDocument", "Shard", "WritePlan", "plan_id", "single_shard"]

_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Shard:
    """Some references to encode: those of whole documents, or of a part of one large document.

    Attributes:
        plan: id of the plan it is of.
        number: its place in the plan, from 0.
        bank: manifest of the bank as JSON: model, settings, embedder and codec to encode with.
        table_id: of the table that the rows are for.
        lazy: whether memories are left to be made when they are recalled.
        rows: references, each with its document's content hash; 0 document references where this is a part of a document.
        kept: ids of those whose embedding and memory the bank has: they are not encoded.
    """

    plan: str
    number: int
    bank: str
    table_id: str
    lazy: bool
    rows: tuple[BankRow, ...]
    kept: tuple[str, ...] = ()

    @cached_property
    def new(self) -> tuple[BankRow, ...]:
        """The rows to encode."""
        kept = set(self.kept)
        return tuple(row for row in self.rows if row.reference.id not in kept)

    @property
    def manifest(self) -> BankManifest:
        """`bank`, read."""
        return BankManifest.from_json(self.bank)

    @property
    def document_ids(self) -> list[str]:
        """Ids of its documents, in order."""
        return list(dict.fromkeys(row.reference.document_id for row in self.rows))

    def to_json(self) -> str:
        """One line. As `dataclasses.asdict` has it, which copies every token and takes ten times as long."""
        return json.dumps(
            {**_fields(self), "rows": [{**_fields(row), "reference": _fields(row.reference)} for row in self.rows]}
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Shard:
        """Inverse of `to_json`. InputError where the text is no shard."""
        try:
            data = parse_json(text)
            rows = tuple(_row(each) for each in data["rows"])
            shard = cls(**{**data, "rows": rows, "kept": tuple(data["kept"])})
            shard.manifest  # noqa: B018 (raises where it is none)
        except (ValueError, TypeError, KeyError, AttributeError, BankError) as error:
            raise InputError(f"this is no shard of a write plan ({error!s:.200}): plan again, or copy it anew") from error
        return shard

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all."""
        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Shard:
        """Inverse of `save`."""
        return cls.from_json(read_bounded(Path(path), _MOST_BYTES))


@dataclass(frozen=True)
class PlannedDocument:
    """A document to write.

    Attributes:
        id: its id.
        content_hash: of its new content (`Document.content_hash`).
        references: how many it was cut into; 0: nothing is left of it, and it is removed.
        before: content hash of the document that it replaces; "" where there is none that is whole.
    """

    id: str
    content_hash: str
    references: int
    before: str = ""


@dataclass(frozen=True)
class WritePlan:
    """What a write is to do with a bank. Two plans for the same documents and the same bank are equal, and so are their ids.

    Attributes:
        id: hash of all that the shards depend on.
        bank, table_id, lazy: as in `Shard`.
        version: of the table when the plan was made.
        documents: those to write.
        shards: references to encode.
        unchanged: number of documents that are there already.
        gone: documents to remove once all are written, with the content hash each had.
        replaced, conflicts, kept: see `WriteReport`.
        code_book: of the bank, if its codec needs one.
    """

    id: str
    bank: str
    table_id: str
    version: int
    lazy: bool
    documents: tuple[PlannedDocument, ...]
    shards: tuple[Shard, ...]
    unchanged: int = 0
    gone: tuple[tuple[str, str], ...] = ()
    replaced: tuple[Conflict, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    code_book: Codebook | None = dataclasses.field(default=None, compare=False)

    @property
    def manifest(self) -> BankManifest:
        """`bank`, read: which model, settings, embedder and codec this was planned for."""
        return BankManifest.from_json(self.bank)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write plan, shards and codebook into a folder, made if missing."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for shard in self.shards:
            shard.save(path / f"shard-{shard.number:06}.json")
        if self.code_book is not None:
            write_atomically(path / codebook_name(self.code_book.fingerprint), self.code_book.data)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("shards", "code_book")}
        fields["documents"] = [dataclasses.astuple(each) for each in self.documents]
        for name in ("replaced", "conflicts"):
            fields[name] = [dataclasses.astuple(each) for each in fields[name]]
        write_atomically(path / "plan.json", json.dumps({**fields, "shards": len(self.shards)}) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> WritePlan:
        """Inverse of `save`. InputError where the folder holds no plan, or not all of it."""
        path = Path(folder)
        try:
            data = parse_json(read_bounded(path / "plan.json", _MOST_BYTES))
            shards = tuple(Shard.load(path / f"shard-{number:06}.json") for number in range(data["shards"]))
            named = BankManifest.from_json(data["bank"]).code_book
            book = Codebook.of(read_bounded(path / codebook_name(named), _MOST_BYTES), str(path)) if named else None
            plan = cls(
                **{
                    **data,
                    "shards": shards,
                    "code_book": book,
                    "documents": tuple(PlannedDocument(*each) for each in data["documents"]),
                    "gone": tuple((id_, hash_) for id_, hash_ in data["gone"]),
                    "kept": tuple((id_, reason) for id_, reason in data["kept"]),
                    "replaced": tuple(Conflict(*each) for each in data["replaced"]),
                    "conflicts": tuple(Conflict(*each) for each in data["conflicts"]),
                }
            )
        except (OSError, ValueError, TypeError, KeyError, BankError) as error:
            raise InputError(f"{path}: no whole write plan lies there ({error!s:.200}): save it anew") from error
        if any(shard.plan != plan.id or shard.number != number for number, shard in enumerate(shards)):
            raise InputError(f"{path}: the shards that lie there are not all of the plan {plan.id}: save it anew")
        return plan


def plan_id(shards: tuple[Shard, ...], documents: tuple[PlannedDocument, ...]) -> str:
    """Hash of what is encoded and committed: 32 hex digits. The shards' own ``plan`` counts for nothing.

    Args:
        shards: what is encoded.
        documents: what is committed.
    """
    digest = xxh3_128()
    for shard in shards:
        digest.update(dataclasses.replace(shard, plan="").to_json().encode())
    digest.update(json.dumps([dataclasses.astuple(each) for each in documents]).encode())
    return digest.hexdigest()


def single_shard(rows: Sequence[BankRow], bank: str, table_id: str, *, lazy: bool) -> Shard:
    """A shard that is a plan by itself, so that its ``plan`` is its own id: a hash of what it holds and of what it is for.

    Args:
        rows: to encode, all of them.
        bank, table_id, lazy: as in `Shard`.
    """
    shard = Shard("", 0, bank, table_id, lazy, tuple(rows))
    return dataclasses.replace(shard, plan=plan_id((shard,), ()))


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _row(data: Mapping[str, Any]) -> BankRow:
    reference = data["reference"]
    texts = ("id", "document_id", "text", "source", "header")
    if not all(isinstance(reference.get(name, ""), str) for name in texts):
        raise ValueError("a reference's id, text and source are texts")
    for name, value in (("ordinal", reference["ordinal"]), ("start", reference["start"]), ("end", reference["end"])):
        whole(name, value, 0, 1 << 48)
    for token in reference["token_ids"]:
        whole("a token", token, 0, (1 << 32) - 1)
    return BankRow(**{**data, "reference": Reference(**{**reference, "token_ids": tuple(reference["token_ids"])})})
