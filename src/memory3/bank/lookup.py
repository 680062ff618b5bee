"""Reading rows by reference id, each checked against its checksum."""

from __future__ import annotations

from collections.abc import Sequence

from memory3.bank.codebooks import coding
from memory3.bank.format.rows import TEXT_COLUMNS, are_damaged, codes_of, references_of
from memory3.bank.snapshot import Snapshot
from memory3.errors import BankCorrupt, InputError
from memory3.types import Memory, Reference

__all__ = ["read_memories", "read_references", "read_rows", "read_texts", "references_at"]


def read_memories(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, Memory]:
    """The memories of references; the cold ones are missing. Each owns its bytes, so it can be kept or dropped alone."""
    rows = read_rows(snapshot, reference_ids)
    return {id_: memory for id_, (_, memory) in rows.items() if memory is not None}


def read_rows(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, tuple[Reference, Memory | None]]:
    """References with their memories, None for the cold. The whole row is checked: a memory that lies beside another's text is refused."""
    found: dict[str, tuple[Reference, Memory | None]] = {}
    wrong: list[str] = []
    for rows in snapshot.take(_row_ids(snapshot, reference_ids), [*TEXT_COLUMNS, "codes"]):
        records: dict[str, bytearray] = {}
        for reference, is_damaged, record in zip(references_of(rows), are_damaged(rows), codes_of(rows), strict=True):
            if is_damaged or not snapshot.has_tokens(reference.token_ids):
                wrong.append(reference.id)
            elif record is not None:
                records[reference.id] = bytearray(record)
            found[reference.id] = (reference, None)
        with coding(
            f"`memory3 verify --bank {snapshot.path}` lists all such rows; delete their documents and write them again"
        ):
            memories = snapshot.codec.decode(list(records.values()))
        for id_, memory in zip(records, memories, strict=True):
            found[id_] = (found[id_][0], memory)
            if not (bool(memory.keys.isfinite().all()) and bool(memory.values.isfinite().all())):
                wrong.append(id_)  # who makes a bank makes its checksums, too
    _refuse(snapshot, wrong)
    return found


def read_references(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, Reference]:
    """References with their texts. Their memories are not read, nor checked."""
    return references_at(snapshot, _row_ids(snapshot, reference_ids))


def read_texts(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, str]:
    """The texts of references alone, without white space at their ends; not checked."""
    found: dict[str, str] = {}
    for rows in snapshot.take(_row_ids(snapshot, reference_ids), ["reference_id", "text"]) if reference_ids else ():
        texts = (text.strip() for text in rows["text"].to_pylist())
        found.update(zip(rows["reference_id"].to_pylist(), texts, strict=True))
    return found


def references_at(snapshot: Snapshot, row_ids: Sequence[int]) -> dict[str, Reference]:
    """As `read_references`, for rows whose place in the table is known."""
    found: dict[str, Reference] = {}
    wrong: list[str] = []
    for rows in snapshot.take(row_ids, TEXT_COLUMNS):
        for reference, is_damaged in zip(references_of(rows), are_damaged(rows), strict=True):
            is_damaged = is_damaged or not snapshot.has_tokens(reference.token_ids)
            found[reference.id] = reference
            if is_damaged:
                wrong.append(reference.id)
    _refuse(snapshot, wrong)
    return found


def _row_ids(snapshot: Snapshot, reference_ids: Sequence[str]) -> list[int]:
    found = snapshot.row_ids(reference_ids)
    unknown = [id_ for id_ in reference_ids if id_ not in found]
    if unknown:
        others = f" nor {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise InputError(f"{snapshot.path}: the bank has no reference {unknown[0]!r}{others}")
    return list(found.values())


def _refuse(snapshot: Snapshot, damaged: Sequence[str]) -> None:
    if damaged:
        raise BankCorrupt(
            f"{snapshot.path}: the row of reference {damaged[0]!r} is damaged (wrong checksum, or numbers that cannot be). `memory3 verify --bank "
            f"{snapshot.path}` lists all such rows; delete their documents and write them again",
            damaged,
        )
