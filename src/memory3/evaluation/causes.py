"""Why answers are wrong: every wrong answer has one cause, the first of a chain that holds.

    not read           no reference that holds the answer was among those read: retrieval, the gap or the guard
    alone as well      the answer from the right references alone is wrong, too: selection, codec and reading of memories, or
                       reading of text
    among several      right alone, wrong among those that were read

Questions answered by one way and not by the other are split by the cause at the side that lost, so what memories lose to text,
and win, has its reasons beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["CAUSES", "causes"]

#: In the order of the chain.
CAUSES = {
    "not_read": "the right reference was not read",
    "alone": "wrong from the right reference alone, too",
    "several": "right from it alone, wrong among several",
}

Rows = Sequence[Mapping[str, Any]]


def _cause(row: Mapping[str, Any], alone: Mapping[str, Any], holders: Collection[str]) -> str:
    if not set(row["references"]) & set(holders):
        return "not_read"
    return "several" if alone["metrics"]["contains"] else "alone"


def _count(found: Sequence[str]) -> dict[str, int]:
    return {"all": len(found), **{name: found.count(name) for name in CAUSES}}


def causes(rows: Mapping[str, Rows], holders: Mapping[str, Collection[str]]) -> list[dict[str, Any]]:
    """For every pair of a memory mode and a text mode: counts of wrong answers by cause.

    Args:
        rows: by mode, the same items in the same order; "contains" decides what is right. Without ``gold`` and ``gold_text``
            nobody knows causes: empty.
        holders: by item, references that hold its answer.

    Returns:
        One entry for each pair: ``memory``, ``text``: the modes; ``memory_wrong``, ``text_wrong``: all their wrong answers;
        ``lost``: those of memory that text has right; ``won``: those of text that memory has right. Each as counts by the keys
            of `CAUSES`, and ``all``.
    """
    if "gold" not in rows or "gold_text" not in rows:
        return []
    found = []
    pairs = [(m, t) for m in rows for t in rows if m.partition(":")[0] == "memory" and t.partition(":")[0] == "text"]
    for memory, text in pairs:
        entry: dict[str, Any] = {"memory": memory, "text": text}
        kinds: dict[str, list[str]] = {name: [] for name in ("memory_wrong", "text_wrong", "lost", "won")}
        for mine, other, gold, gold_text in zip(rows[memory], rows[text], rows["gold"], rows["gold_text"], strict=True):
            right = holders.get(mine["item"], ())
            for row, alone, against, wrong, only in (
                (mine, gold, other, "memory_wrong", "lost"),
                (other, gold_text, mine, "text_wrong", "won"),
            ):
                if row["metrics"]["contains"]:
                    continue
                cause = _cause(row, alone, right)
                kinds[wrong].append(cause)
                if against["metrics"]["contains"]:
                    kinds[only].append(cause)
        found.append({**entry, "count": len(rows[memory]), **{name: _count(some) for name, some in kinds.items()}})
    return found
