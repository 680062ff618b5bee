"""A reference with its packed memory, as a server sends it and a device keeps it; and hits as they are sent.

What comes in may come from anyone: every field is looked at before it becomes a value of ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from memory3.bank.record import MemoryRecord
from memory3.bank.reports import Hit
from memory3.types import Reference, whole

__all__ = ["hit_rows", "hits_in", "mark", "record_in", "reference_fields", "reference_in"]

_MOST_OFFSET = 1 << 53
_MOST_NAME = 1 << 16
_SLACK = 1e-3  # of a cosine in float32


def mark(reference_id: str) -> int:
    """32 bits that stand for a reference where a device says what it has. Two with one mark cost a request, nothing else."""
    return xxh3_64_intdigest(reference_id.encode("utf-8", "surrogatepass")) & 0xFFFFFFFF


def reference_fields(reference: Reference) -> dict[str, Any]:
    """A reference as JSON has it."""
    return {
        "id": reference.id,
        "document_id": reference.document_id,
        "ordinal": reference.ordinal,
        "start": reference.start,
        "end": reference.end,
        "text": reference.text,
        "token_ids": list(reference.token_ids),
        "source": reference.source,
        "metadata": dict(reference.metadata),
    }


def reference_in(fields: Any, most_tokens: int, vocabulary: int) -> Reference:
    """The reference of such fields.

    Args:
        fields: from anywhere.
        most_tokens: that a reference has at most.
        vocabulary: ids of tokens are below it.

    Raises:
        ValueError: they cannot be those of a reference.
    """
    if not isinstance(fields, Mapping):
        raise ValueError("a reference is no JSON object")
    text = {name: _text(name, fields.get(name)) for name in ("id", "document_id", "source")}
    said = fields.get("text")
    tokens, metadata = fields.get("token_ids"), fields.get("metadata")
    if not isinstance(said, str):
        raise ValueError("a reference has no text")
    if not isinstance(tokens, list) or not 0 < len(tokens) <= most_tokens:
        raise ValueError(f"a reference has not from 1 to {most_tokens} tokens")
    if not isinstance(metadata, dict) or not all(isinstance(value, str | int | float) for value in metadata.values()):
        raise ValueError("metadata are not names with texts or numbers")
    return Reference(
        ordinal=whole("ordinal", fields.get("ordinal"), 0, _MOST_OFFSET),
        start=whole("start", fields.get("start"), 0, _MOST_OFFSET),
        end=whole("end", fields.get("end"), 0, _MOST_OFFSET),
        text=said,
        token_ids=tuple(whole("a token", token, 0, vocabulary - 1) for token in tokens),
        metadata=metadata,
        **text,
    )


def record_in(reference: Reference, data: bytes, codec: str, record_bytes: int, stored: Any) -> MemoryRecord:
    """The packed memory of a reference.

    Args:
        reference: whose.
        data: from anywhere.
        codec: of the bank.
        record_bytes: that a record of the bank has.
        stored: whether the server read it from disk.

    Raises:
        ValueError: it has another size.
    """
    if len(data) != record_bytes:
        raise ValueError(f"the memory of {reference.id!r:.80} has {len(data):,} bytes, not {record_bytes:,}")
    return MemoryRecord.of(reference, data, codec, stored=stored is True)


def hit_rows(hits: Sequence[Sequence[Hit]]) -> list[list[list[Any]]]:
    """What was found for each query as JSON has it."""
    return [[[hit.reference_id, hit.document_id, hit.score] for hit in each] for each in hits]


def hits_in(rows: Any, queries: int, k: int) -> list[list[Hit]]:
    """What was found for each query.

    Args:
        rows: from anywhere.
        queries: that were asked.
        k: hits for each at most.

    Raises:
        ValueError: they cannot be hits of so many queries.
    """
    if not isinstance(rows, list) or len(rows) != queries:
        raise ValueError(f"hits are not those of {queries} queries")
    found = []
    for row in rows:
        if not isinstance(row, list) or len(row) > k or not all(isinstance(one, list) and len(one) == 3 for one in row):
            raise ValueError(f"a query has more than {k} hits, or hits that are none")
        hits = [
            Hit(_text("a hit's id", id_), _text("a hit's document", document), _cosine(score)) for id_, document, score in row
        ]
        if any(second.score > first.score for first, second in itertools.pairwise(hits)):
            raise ValueError("hits do not come best first")
        if len({hit.reference_id for hit in hits}) != len(hits):
            raise ValueError("a reference was found twice")
        found.append(hits)
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MOST_NAME:
        raise ValueError(f"{name} is no text, or too long a one")
    return value


def _cosine(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not abs(number) <= 1 + _SLACK:
        raise ValueError(f"{value!r:.40} is no cosine")
    return number
