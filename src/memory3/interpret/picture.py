"""A circuit as a picture: roles of tokens from left to right, layers from below.

Made by matplotlib (extra ``interpret``). A line is an attention edge, a square an MLP. Blue helps the answer, red stands
against it; the wider or larger, the heavier.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from memory3.errors import MissingDependency

__all__ = ["FORMATS", "drawing", "picture"]

#: Formats, by the ending of a file's name.
FORMATS = ("svg", "png")
#: Edges that are drawn, the heaviest.
_MOST = 100
_HELPS, _AGAINST = "#0969da", "#bc4c00"


def drawing() -> tuple[Any, Any]:
    """Of matplotlib, the settings for a while and the class of figures. MissingDependency: it is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(str(error.name or "matplotlib"), "interpret", "a picture of a circuit") from None
    return rc_context, Figure


def picture(report: Mapping[str, Any], title: str, kind: str = "svg") -> bytes:
    """The picture's file.

    Args:
        report: from `memory3.interpret.finding.find_circuit`, with the number of ``layers``.
        title: above it.
        kind: one of `FORMATS`.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    rc_context, new_figure = drawing()
    edges = report["edges"][:_MOST]
    names = [name for edge in edges for name in (edge["source"], edge["to"])]
    ordered = [name for name in report["roles"] if name in names]
    ordered = [*dict.fromkeys(name for name in names if name not in ordered), *ordered]
    place = {name: n for n, name in enumerate(ordered)}
    heaviest = max((abs(edge["weight"]) for edge in edges), default=1.0) or 1.0
    # Names in the drawing are text, and do not differ from one run to the next.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "memory3", "font.family": "sans-serif"}):
        figure = new_figure(figsize=(max(5.0, 1.25 * len(ordered)), max(4.0, 0.24 * report["layers"])), layout="constrained")
        axis = figure.subplots()
        for edge in sorted(edges, key=lambda one: abs(one["weight"])):
            colour, share = (_HELPS if edge["weight"] > 0 else _AGAINST), abs(edge["weight"]) / heaviest
            start, end, layer = place[edge["source"]], place[edge["to"]], edge["layer"]
            if edge["head"] is None:
                axis.plot([end], [layer + 0.5], "s", color=colour, markersize=3 + 9 * share**0.5, alpha=0.8)
                continue
            axis.plot([start, end], [layer, layer + 0.9], color=colour, linewidth=0.6 + 4 * share**0.5, alpha=0.6)
        for (layer, source, to), heads in _together(edges).items():
            at = (place[source] + 2 * place[to]) / 3
            axis.annotate(f"{layer}.{','.join(map(str, sorted(heads)))}", (at, layer + 0.6), fontsize=7, color="#24292f")
        axis.set_xticks(range(len(ordered)), ordered, rotation=30, ha="right", parse_math=False)
        axis.set_xlim(-0.5, len(ordered) - 0.3)
        axis.set_ylim(-0.5, report["layers"] + 0.5)
        axis.set_ylabel("layer")
        axis.set_title(title, fontsize=10, parse_math=False)
        axis.grid(color="#eaeef2")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return file.getvalue()


def _together(edges: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str, str], list[int]]:
    """Heads of one layer that read the same, so that their names do not lie on one another."""
    found: dict[tuple[int, str, str], list[int]] = {}
    for edge in edges:
        if edge["head"] is not None:
            found.setdefault((edge["layer"], edge["source"], edge["to"]), []).append(edge["head"])
    return found
