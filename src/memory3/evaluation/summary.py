"""Sums over items: figures of a mode, paired differences between modes, and gains that a control gives as well.

It knows rows and nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memory3.evaluation.intervals import aggregate_interval, interval
from memory3.evaluation.modes import CONTROLS
from memory3.evaluation.task import Metric

__all__ = ["differences", "figures", "flags", "paired"]


def figures(metrics: Mapping[str, Metric], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means, or other aggregates, with their intervals; seconds; and what was read and dropped.

    Args:
        metrics: of the task, by name.
        rows: of one mode, one per item.
    """
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        values = [row["metrics"][name] for row in rows if name in row["metrics"]]
        if values:
            around = interval(values) if metric.aggregate is None else aggregate_interval(values, metric.aggregate)
            found[name] = {"value": metric.of(values), "interval": around}
    out: dict[str, Any] = {"count": len(rows), "metrics": found, "seconds": sum(row["seconds"] for row in rows)}
    if any("dropped" in row for row in rows):
        out["dropped"] = sum(row["dropped"] for row in rows)
        out["references"] = sum(len(row["references"]) for row in rows) / max(len(rows), 1)
    return out


def paired(
    metric: Metric, name: str, above: Sequence[Mapping[str, Any]], below: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Difference of two modes over the same items, with its interval.

    Args:
        metric: says how to add up.
        name: its name in the rows.
        above, below: rows of two modes over the same items.
    """
    pairs = [
        (a["metrics"][name], b["metrics"][name])
        for a, b in zip(above, below, strict=True)
        if name in a["metrics"] and name in b["metrics"]
    ]
    if metric.aggregate is None:
        values = [a - b for a, b in pairs]
        return {"value": sum(values) / max(len(values), 1), "interval": interval(values)}

    def difference(some: list[Any]) -> float:
        return metric.of([a for a, _ in some]) - metric.of([b for _, b in some])

    return {"value": difference(pairs), "interval": aggregate_interval(pairs, difference)}


def _kind(name: str) -> str:
    return name.partition(":")[0]


def differences(metrics: Mapping[str, Metric], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Every mode against none, every memory mode against every text mode and every control.

    Args:
        metrics: of the task, by name.
        rows: by mode, one per item.
    """
    wanted = [(a, b) for a in rows for b in rows if a != b and _kind(b) == "none"]
    wanted += [(a, b) for a in rows for b in rows if _kind(a) == "memory" and _kind(b) in ("text", *CONTROLS)]
    wanted += [(a, b) for a in rows for b in rows if _kind(a) == "gold" and _kind(b) == "gold_text"]
    return [
        {"mode": a, "against": b, "metric": name, **paired(metric, name, rows[a], rows[b])}
        for a, b in wanted
        for name, metric in metrics.items()
    ]


def flags(metrics: Mapping[str, Metric], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Gains of memory over none that a control gives as well.

    The control gains beyond chance, too, or memory is not above it beyond chance.

    Args:
        metrics: of the task, by name.
        rows: by mode, one per item.
    """
    found = []
    nothing = next((name for name in rows if _kind(name) == "none"), None)
    for memory in (name for name in rows if _kind(name) == "memory" and nothing):
        assert nothing is not None
        for name, metric in metrics.items():
            gain = paired(metric, name, rows[memory], rows[nothing])
            if not _gains(metric, gain):
                continue
            for control in (c for c in rows if _kind(c) in CONTROLS):
                over = paired(metric, name, rows[memory], rows[control])
                given = paired(metric, name, rows[control], rows[nothing])
                if _gains(metric, given) or not _gains(metric, over):
                    flag = {"metric": name, "mode": memory, "control": control, "control_gains": _gains(metric, given)}
                    found.append({**flag, "gain": gain, "gain_of_control": given, "difference": over})
    return found


def _gains(metric: Metric, difference: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference lies on the better side of zero."""
    low, high = difference["interval"]
    return bool(low > 0 if metric.higher_is_better else high < 0)
