"""Plots for the HTML report: a panel for each metric, a dot with its interval for each mode.

Made by matplotlib (extra ``plots``); without it a report has none.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

__all__ = ["plots"]

_COLOURS = {"memory": "#0969da", "text": "#1a7f37", "none": "#57606a", "random": "#bf8700", "other": "#bc4c00"}


def plots(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """By task, SVG drawings as text."""
    try:
        import matplotlib
    except ImportError:
        return {}
    del matplotlib
    return {name: [_panels(task)] for name, task in results.get("tasks", {}).items() if task["modes"]}


def _panels(task: Mapping[str, Any]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    metrics, modes = task["metrics"], list(task["modes"])
    # Names in the drawing are text, and do not differ from one run to the next.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "memory3", "font.family": "sans-serif"}):
        figure = Figure(figsize=(3.2 * len(metrics), 0.45 * len(modes) + 1.0), layout="constrained")
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axis, (name, metric) in zip(axes, metrics.items(), strict=True):
            scale = 100 if metric["percent"] else 1
            for place, mode in enumerate(modes):
                found = task["modes"][mode]["metrics"].get(name)
                if found is None:
                    continue
                low, high = found["interval"]
                colour = _COLOURS.get(mode.partition(":")[0], "#8250df")
                axis.plot([low * scale, high * scale], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
                axis.plot([found["value"] * scale], [place], "o", color=colour)
            axis.set_title(metric["label"] + (", %" if metric["percent"] else ""), fontsize=10, parse_math=False)
            axis.set_yticks(range(len(modes)), modes, parse_math=False)
            axis.grid(axis="x", color="#d8dee4")
            axis.set_axisbelow(True)
            for side in ("top", "right", "left"):
                axis.spines[side].set_visible(False)
        axes[0].invert_yaxis()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
