"""Costs as pictures: what a piece of knowledge costs in each format by how often it is used (the paper's figure 4).

Drawn by matplotlib, which the extra ``plots`` installs and which is imported when the first figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory3.errors import InputError, MissingDependency
from memory3.planner.cost import LABELS, Costs

__all__ = ["draw_costs", "draw_policies"]

_COLOURS = {"implicit": "#b5651d", "explicit": "#1f77b4", "external": "#2ca02c"}
#: Points of a curve.
_POINTS = 400


def draw_costs(costs: Costs, path: str | Path, *, title: str = "") -> None:
    """Total cost against number of uses for the three formats, and their minimum as a broad line; both axes logarithmic.

    The right end is a hundred times that of the interval in which memory is cheapest.

    Args:
        costs: of one reference.
        path: a PNG file, written anew.
        title: above the figure.

    Raises:
        MissingDependency: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    low, high = costs.interval
    most = 100 * (high if math.isfinite(high) and high > low else max(low, 1e4))
    least = min(0.01, low / 10) if low > 0 else 0.01
    uses = [least * (most / least) ** (point / (_POINTS - 1)) for point in range(_POINTS)]
    figure, axes = _axes("number of uses", "cost of a reference (TFLOPs)", title)
    axes.plot(uses, [costs.least(n) / 1e12 for n in uses], color="#cccccc", linewidth=9, label="cheapest", zorder=0)
    for name, cost in costs.formats().items():
        axes.plot(uses, [cost.total(n) / 1e12 for n in uses], color=_COLOURS[name], label=LABELS[name])
    for end in (low, high):
        if 0 < end < math.inf and low < high:
            axes.axvline(end, color="#888888", linestyle=":", linewidth=1)
            place = {"xytext": (5, -12), "textcoords": "offset points", "fontsize": 9}
            axes.annotate(f"{float(f'{end:.3g}'):,g}", (end, costs.least(end) / 1e12), **place)
    _save(figure, axes, path)


def draw_policies(uses: Sequence[int], policies: Mapping[str, Sequence[float]], path: str | Path, *, title: str = "") -> None:
    """Cost added up over documents, most used first, for each policy; the right end is a policy's total.

    Args:
        uses: of each document, descending; told below the axis by its largest and smallest.
        policies: by name, the cost of each document in FLOPs, in the same order.
        path, title: as in `draw_costs`, and the same errors.
    """
    figure, axes = _axes(f"documents, most used ({uses[0]:,}) to least used ({uses[-1]:,})", "cost so far (TFLOPs)", title)
    places = range(1, len(uses) + 1)
    for name, each in policies.items():
        total, line = 0.0, []
        for cost in each:
            total += cost
            line.append(total / 1e12)
        style = {"color": "#cccccc", "linewidth": 9, "zorder": 0} if name not in LABELS else {"color": _COLOURS[name]}
        axes.plot(places, line, label=LABELS.get(name, name), **style)
    _save(figure, axes, path)


def _axes(across: str, up: str, title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a screen
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "plots", "drawing a figure") from error
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up, title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, path: str | Path) -> None:
    axes.legend(frameon=False)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
