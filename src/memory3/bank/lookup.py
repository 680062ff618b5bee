"""Reading rows by reference id, each checked against its checksum."""

from __future__ import annotations

from collections.abc import Sequence

from memory3.bank.format.rows import TEXT_COLUMNS, are_damaged, codes_of, references_of
from memory3.bank.record import MemoryRecord
from memory3.bank.snapshot import Snapshot
from memory3.errors import BankCorrupt, InputError
from memory3.types import Reference

__all__ = ["read_records", "read_references", "read_rows", "read_texts", "references_at", "refuse_damaged"]


def read_records(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, MemoryRecord]:
    """The packed memories of references; those of lazy ones are missing. Checked as `read_rows` does.

    Args:
        snapshot: of the bank.
        reference_ids: in any order.
    """
    rows = read_rows(snapshot, reference_ids)
    return {id_: record for id_, (_, record) in rows.items() if record is not None}


def read_rows(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, tuple[Reference, MemoryRecord | None]]:
    """References with their packed memories; None for those of lazy ones.

    The whole row is checked: a memory that lies beside another's text is refused.

    Args:
        snapshot: of the bank.
        reference_ids: in any order.
    """
    found: dict[str, tuple[Reference, MemoryRecord | None]] = {}
    wrong: list[str] = []
    codec = snapshot.manifest.codec
    for rows in snapshot.take(_row_ids(snapshot, reference_ids), [*TEXT_COLUMNS, "codes"]):
        for reference, is_damaged, record in zip(references_of(rows), are_damaged(rows), codes_of(rows), strict=True):
            if is_damaged or not snapshot.has_tokens(reference.token_ids):
                wrong.append(reference.id)
                continue
            memory = None if record is None else MemoryRecord.of(reference, bytes(record), codec, stored=True)
            found[reference.id] = reference, memory
    refuse_damaged(snapshot.path, wrong)
    return found


def read_references(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, Reference]:
    """References with their texts. Their memories are not read, nor checked.

    Args:
        snapshot: of the bank.
        reference_ids: in any order.
    """
    return references_at(snapshot, _row_ids(snapshot, reference_ids))


def read_texts(snapshot: Snapshot, reference_ids: Sequence[str]) -> dict[str, str]:
    """The texts of references alone, without white space at their ends; not checked.

    Args:
        snapshot: of the bank.
        reference_ids: in any order.
    """
    found: dict[str, str] = {}
    for rows in snapshot.take(_row_ids(snapshot, reference_ids), ["reference_id", "text"]) if reference_ids else ():
        texts = (text.strip() for text in rows["text"].to_pylist())
        found.update(zip(rows["reference_id"].to_pylist(), texts, strict=True))
    return found


def references_at(snapshot: Snapshot, row_ids: Sequence[int]) -> dict[str, Reference]:
    """References with their texts, by id, for rows whose place in the table is known. Memories are not read.

    Args:
        snapshot: of the bank.
        row_ids: Lance's ids of rows, as a scan gives them.

    Raises:
        BankCorrupt: a row is damaged.
    """
    found: dict[str, Reference] = {}
    wrong: list[str] = []
    for rows in snapshot.take(row_ids, TEXT_COLUMNS):
        for reference, is_damaged in zip(references_of(rows), are_damaged(rows), strict=True):
            is_damaged = is_damaged or not snapshot.has_tokens(reference.token_ids)
            found[reference.id] = reference
            if is_damaged:
                wrong.append(reference.id)
    refuse_damaged(snapshot.path, wrong)
    return found


def _row_ids(snapshot: Snapshot, reference_ids: Sequence[str]) -> list[int]:
    found = snapshot.row_ids(reference_ids)
    unknown = [id_ for id_ in reference_ids if id_ not in found]
    if unknown:
        others = f" nor {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise InputError(f"{snapshot.path}: the bank has no reference {unknown[0]!r}{others}")
    return list(found.values())


def refuse_damaged(path: object, damaged: Sequence[str]) -> None:
    """Raise BankCorrupt where there are damaged rows.

    Args:
        path: of the bank.
        damaged: ids of references; empty: nothing is raised.
    """
    if damaged:
        raise BankCorrupt(
            f"{path}: the row of reference {damaged[0]!r} is damaged (wrong checksum, or numbers that cannot be). "
            f"`memory3 verify --bank {path}` lists all such rows; delete their documents and write them again",
            damaged,
        )
