"""Where references that are read at once lie: by how many positions each moves from where it was written.

    row        one before the other, each with all positions of a memory, the best one next to what reads it
    tight      the same, but each ends where the next better one begins, the best one where what reads it begins
    parallel   all in the same positions (the paper)

Symbols: R references.
"""

from __future__ import annotations

from collections.abc import Sequence

from memory3.types import Memory

__all__ = ["arrange", "occupied"]


def occupied(memory: Memory) -> int:
    """Positions from the first of a memory to the last that a pair of it lies in."""
    return int(memory.positions.max()) + 1 if len(memory.positions) else 0


def arrange(arrangement: str, lengths: Sequence[int], span: int) -> list[int]:
    """By how many positions references move, R of them.

    Args:
        arrangement: see the module.
        lengths: positions that each occupies, most similar first.
        span: positions that a memory can occupy; what reads memories begins behind them.

    Raises:
        ValueError: the arrangement is unknown.
    """
    if arrangement == "parallel":
        return [0] * len(lengths)
    if arrangement == "row":
        return [-rank * span for rank in range(len(lengths))]
    if arrangement == "tight":
        return [span - sum(lengths[: rank + 1]) for rank in range(len(lengths))]
    raise ValueError(f"arrangement {arrangement!r} is unknown")
