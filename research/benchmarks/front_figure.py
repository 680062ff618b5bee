"""The picture of a front: figures against bytes on disk per reference, a row for each setting, a column for each metric.
Knows the front's JSON alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory3.errors import InputError, MissingDependency

__all__ = ["draw"]

_TITLES = {
    "nll": "answer NLL (lower is better)",
    "contains": "contains an answer, %",
    "f1": "F1, %",
    "exact": "exact match, %",
}
_COLOURS = {
    "reconstruction": "#0969da",
    "learned": "#1a7f37",
    "blended": "#cf222e",
    "attention": "#bf8700",
    "random": "#8c959f",
    "first": "#6e7781",
    "oracle": "#8250df",
}
_MARKERS = "osD^vP*X"
#: Inches: of a panel, of a picture at least, of a line of the legend.
_PANEL, _LEAST_WIDTH, _LABEL = 5.2, 8.4, 2.6


def draw(results: Mapping[str, Any], path: str | Path) -> None:
    """Write the figure of `research.benchmarks.front.run`'s ``results`` as PNG.

    Raises:
        MissingDependency: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a screen
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "plots", "drawing a front") from error
    settings = [name for name in ("gold", "retrieved", "near") if name in results]
    metrics = [name for name in _TITLES if name in results["closed book"] and name != "exact"]
    width = max(_LEAST_WIDTH, _PANEL * len(metrics))
    figure = Figure(figsize=(width, 4.2 * len(settings) + 1.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for row, setting in zip(figure.subplots(len(settings), len(metrics), squeeze=False), settings, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            _panel(axes, results, setting, metric)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = int(width / _LABEL)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _round_ticks(axis: Any) -> None:
    """At 1, 2 and 5 times powers of ten, as plain numbers."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _panel(axes: Any, results: Mapping[str, Any], setting: str, metric: str) -> None:
    scale = 1 if metric == "nll" else 100
    arms = results[setting]
    lines = {
        "closed book": results["closed book"],
        "text in the prompt": arms["text"],
        "all pairs": arms.get("all pairs", {}),
        "text of the same references": arms.get("text of the same", {}),
    }
    for (name, arm), style in zip(lines.items(), (":", "--", "-.", (0, (3, 1, 1, 1, 1, 1))), strict=True):
        if metric in arm:
            axes.axhline(arm[metric]["mean"] * scale, color="#24292f", linestyle=style, linewidth=1, label=name)
            low, high = arm[metric]["interval"]
            axes.axhspan(low * scale, high * scale, color="#24292f", alpha=0.05, linewidth=0)
    markers: dict[str, str] = {}
    for arm in arms.values():
        if "point" not in arm or metric not in arm:
            continue
        selector, layers = arm["point"]["selector"], arm["point"]["layers"]
        said = [selector, *(arm["point"][part].partition(":")[0] for part in ("budget", "codec"))]
        kind = ", ".join(said if layers == "all" else [*said, str(layers)])
        marker = markers.setdefault(kind, _MARKERS[len(markers) % len(_MARKERS)])
        first = kind not in axes.get_legend_handles_labels()[1]
        low, high = (bound * scale for bound in arm[metric]["interval"])
        at, value = arm["bytes"] / 1000, arm[metric]["mean"] * scale
        axes.errorbar(
            [at],
            [value],
            [[value - low], [high - value]],
            fmt=marker,
            color=_COLOURS.get(selector, "#24292f"),
            alpha=0.85,
            capsize=2,
            label=kind if first else None,
        )
    axes.set(xscale="log", xlabel="KB on disk per reference", ylabel=_TITLES[metric], title=f"{setting} references")
    _round_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
