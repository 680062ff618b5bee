"""The picture of the README, from measured numbers alone: answers against bytes, and first token against prompt length.

    python research/picture.py                 # writes docs/picture.svg
    python research/picture.py other.svg

It reads ``front/gold-test-1.json`` (`memory3 bench front`) and ``first_token.json`` (`memory3 bench first_token`), which lie
beside it.
The same numbers and the same matplotlib give the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

HERE = Path(__file__).parent
FRONT = HERE / "front" / "gold-test-1.json"
FIRST_TOKEN = HERE / "first_token.json"
PICTURE = HERE.parent / "docs" / "picture.svg"

BLUE, GREY, RED, GREEN = "#0969da", "#57606a", "#cf222e", "#1a7f37"
#: What the points of the front are called, and where their names stand from them, in points.
NAMES = {
    "reconstruction/adaptive:1/8": ("raw", (10, 2)),
    "reconstruction/adaptive:1/8/foretold:96+160": ("packed", (10, 2)),
    "blended/adaptive:1/16/foretold:96+160": ("half the pairs", (10, -4)),
    "attention/uniform:8/raw/first_half": ("the paper's selection, untrained", (-70, 14)),
}


def answers_against_bytes(axes: Any, front: dict[str, Any]) -> None:
    """Left: share of answers that contain the right one, of memories of so many bytes, beside text and closed book."""
    points = front["gold"]
    for name, (label, offset) in NAMES.items():
        kilobytes = points[name]["bytes"] / 1000
        mean, (low, high) = (points[name]["contains"][key] for key in ("mean", "interval"))
        colour = GREY if "attention" in name else BLUE
        axes.errorbar(
            kilobytes, 100 * mean, [[100 * (mean - low)], [100 * (high - mean)]], fmt="o", color=colour, capsize=3, zorder=3
        )
        axes.annotate(label, (kilobytes, 100 * mean), xytext=offset, textcoords="offset points", color=colour, fontsize=9)
    for found, label, colour in (
        (points["text"], "the same text in the prompt", RED),
        (front["closed book"], "nothing", GREY),
    ):
        mean, (low, high) = (found["contains"][key] for key in ("mean", "interval"))
        axes.axhspan(100 * low, 100 * high, color=colour, alpha=0.12, linewidth=0)
        axes.axhline(100 * mean, color=colour, linewidth=1)
        axes.annotate(
            label, (130, 100 * mean), xytext=(0, -12), textcoords="offset points", ha="center", color=colour, fontsize=9
        )
    axes.set(xscale="log", xlim=(18, 620), ylim=(0, 52))
    axes.set_xticks([24, 48, 93, 186, 372], ["24", "48", "93", "186", "372"])
    axes.minorticks_off()
    axes.set_xlabel("KB on disk of one memory (a passage of up to 128 tokens)")
    axes.set_title("Answers that contain the right one, %", loc="left", fontsize=11)


def first_token_against_prompt(axes: Any, measured: dict[str, Any]) -> None:
    """Right: how many times sooner memory gives the first token than text of the same five references."""
    arms: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for key, found in measured.items():
        if match := re.fullmatch(r"(\d+) in, batch (\d+)", key):
            arms.setdefault(int(match[2]), []).append((int(match[1]), found["seconds"]))
    for (batch, found), colour in zip(sorted(arms.items()), (BLUE, GREEN), strict=True):
        found.sort(key=lambda pair: pair[0])
        lengths, ratios = [length for length, _ in found], [seconds["ratio"] for _, seconds in found]
        around = [
            [s["ratio"] - s["ratio_middle_half"][0] for _, s in found],
            [s["ratio_middle_half"][1] - s["ratio"] for _, s in found],
        ]
        axes.errorbar(lengths, ratios, around, fmt="o-", color=colour, capsize=3)
        label = "one question" if batch == 1 else f"{batch} at once"
        axes.annotate(label, (lengths[1], ratios[1]), xytext=(10, 4), textcoords="offset points", color=colour, fontsize=9)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.annotate("as fast as text", (130, 1), xytext=(0, 4), textcoords="offset points", ha="right", color=GREY, fontsize=9)
    axes.set(xlim=(40, 134), ylim=(0, 16))
    axes.set_xticks([48, 64, 96, 128])
    axes.set_xlabel("tokens of the question's prompt")
    axes.set_title("First token: times faster than text", loc="left", fontsize=11)


def draw(path: Path) -> None:
    """Write the picture as SVG.

    Args:
        path: file to write.
    """
    front, measured = json.loads(FRONT.read_text()), json.loads(FIRST_TOKEN.read_text())
    settings: Any = {
        "svg.hashsalt": "memory3",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["Arial", "DejaVu Sans"],
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        answers_against_bytes(left, front)
        first_token_against_prompt(right, measured)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
