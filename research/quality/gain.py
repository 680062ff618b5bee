"""The share of what text gains over closed book that memories keep, from the lines of `research.quality.several`.

    python -m research.quality.gain research/quality/several.jsonl --split test

A line of Markdown an arm: mean of each measure, and its share with a 95% bootstrap interval. Questions are drawn anew, and
of the same draw both gains are taken: share = (arm - nothing) / (text - nothing).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["share"]

#: Draws of all questions.
_DRAWS = 4000
_MEASURES = ("contains", "f1", "nll")


def share(
    arm: Sequence[float], text: Sequence[float], nothing: Sequence[float], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """How much of text's gain an arm has, and the middle 95% of draws.

    Args:
        arm, text, nothing: a measure of the same questions, in the same order.
        seed: of the draws.
    """
    mine, theirs, closed = (np.asarray(each, float) for each in (arm, text, nothing))
    whole = float((mine - closed).mean() / (theirs - closed).mean())
    drawn = np.random.default_rng(seed).integers(0, len(mine), (_DRAWS, len(mine)))
    found = (mine - closed)[drawn].mean(1) / (theirs - closed)[drawn].mean(1)
    low, high = np.quantile(found, [0.025, 0.975])
    return whole, (float(low), float(high))


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown for the arms of one model and one set."""
    lines = ["| | pairs | contains | F1 | NLL |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        cells = [name, f"{row['pairs']:,.0f}" if row["pairs"] else ""]
        for measure in _MEASURES:
            if measure not in row["figures"]:
                cells.append("")
                continue
            mean = float(np.mean(row["figures"][measure]))
            cell = f"{mean:.2f}" if measure == "nll" else f"{100 * mean:.1f}%"
            compared = [rows[other]["figures"].get(measure) for other in ("text", "nothing") if other in rows]
            if name not in ("text", "nothing") and len(compared) == 2 and None not in compared:
                part, (low, high) = share(row["figures"][measure], *compared)
                cell += f", {part:.2f} [{low:.2f}, {high:.2f}]"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--model", default="", help="one label alone")
    given = parser.parse_args()
    found: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for line in Path(given.file).read_text().splitlines():
        row = json.loads(line)
        if row.get("split", "dev") == given.split and given.model in ("", row["model"]):
            found.setdefault((row["model"], row["set"], len(row["figures"]["nll"])), {})[row["arm"]] = row
    for (model, name, questions), arms in found.items():
        print(f"\n{model}, {name}, {questions} questions\n")
        print("\n".join(table(arms)))


if __name__ == "__main__":
    main()
