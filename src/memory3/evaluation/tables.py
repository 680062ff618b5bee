"""Tables of results, the same for Markdown and HTML: titles, columns and cells as text.

It knows the form of results.json and nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory3.evaluation.causes import CAUSES

__all__ = ["ResultTable", "Section", "figure", "sections"]

_DASH = "–"


@dataclass(frozen=True)
class ResultTable:
    """Cells of text; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and tables in order."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[ResultTable] = ()
    parts: Sequence[Section] = field(default_factory=tuple)


def figure(value: float, around: Sequence[float] | None, percent: bool, *, signed: bool = False) -> str:
    """``34.5% [28.0, 41.0]`` or ``3.26 [2.89, 3.65]``.

    Args:
        value: the figure.
        around: its interval; None: without.
        percent: is it a share?
        signed: is it a difference? Written with its sign.
    """
    scale, digits = (100.0, 1) if percent else (1.0, 2)
    sign = "+" if signed else ""
    text = f"{value * scale:{sign}.{digits}f}" + (("%" if not signed else " points") if percent else "")
    if around is None:
        return text
    return f"{text} [{around[0] * scale:.{digits}f}, {around[1] * scale:.{digits}f}]"


def sections(results: Mapping[str, Any]) -> list[Section]:
    """All of one results.json."""
    parts = [_task(name, task) for name, task in results.get("tasks", {}).items()]
    if "speed" in results:
        parts.append(_speed(results["speed"]))
    return parts


def _task(name: str, task: Mapping[str, Any]) -> Section:
    metrics, modes = task["metrics"], task["modes"]
    paragraphs = [f"{task['title']}. {task['count']:,} of {task['items']:,} items."]
    if task.get("notes"):
        paragraphs.append(task["notes"])
    facts = []
    if task.get("knowledge"):
        facts.append(f"Knowledge base: {task['knowledge']}, {task.get('bank', {}).get('references', 0):,} references.")
    recalled = {k: v for k, v in task.get("retrieval_recall", {}).items() if v is not None}
    if recalled:
        facts.append(
            "Retrieval recall (a reference that holds the answer is among those read): "
            + ", ".join(f"{v * 100:.1f}% of the first {k}" for k, v in recalled.items())
            + "."
        )
    if facts:
        paragraphs.append(" ".join(facts))
    columns = ["mode", *(m["label"] for m in metrics.values()), "references", "dropped", "s an item"]
    rows = []
    for mode, found in modes.items():
        cells = [
            figure(f["value"], f["interval"], metrics[m]["percent"]) if (f := found["metrics"].get(m)) else _DASH
            for m in metrics
        ]
        read = f"{found['references']:.1f}" if "references" in found else _DASH
        each = found["seconds"] / found["count"] if found["count"] else 0.0
        rows.append([mode, *cells, read, str(found.get("dropped", _DASH)), f"{each:.2f}"])
    tables = [ResultTable(columns, rows)]
    if task["differences"]:
        tables.append(_differences(task))
    if "auroc" in task:
        tables.append(
            ResultTable(
                ["score", "AUROC"],
                [[s["label"], figure(s["auroc"], s["interval"], False)] for s in task["auroc"].values()],
                "Does the score tell questions whose answer is in the bank from those whose answer is not? "
                f"{task['count']:,} questions asked both ways; 0.5 is chance.",
            )
        )
    tables += [_causes(entry) for entry in task.get("causes", ())]
    if task.get("overlap"):
        tables.append(_overlap(task))
    if task.get("guard_table"):
        tables.append(_guards(task))
    parts = [Section("Flagged", [_flag(flag, metrics) for flag in task["flags"]])] if task["flags"] else []
    return Section(name, paragraphs, tables, parts)


def _differences(task: Mapping[str, Any]) -> ResultTable:
    metrics = task["metrics"]
    pairs = list(dict.fromkeys((d["mode"], d["against"]) for d in task["differences"]))
    rows = []
    for mode, against in pairs:
        mine = {d["metric"]: d for d in task["differences"] if (d["mode"], d["against"]) == (mode, against)}
        cells = []
        for name, metric in metrics.items():
            d = mine.get(name)
            if d is None:
                cells.append(_DASH)
                continue
            low, high = d["interval"]
            clear = low > 0 or high < 0
            better = (d["value"] > 0) == metric["higher_is_better"]
            mark = (" better" if better else " worse") if clear else ""
            cells.append(figure(d["value"], d["interval"], metric["percent"], signed=True) + mark)
        rows.append([f"{mode} minus {against}", *cells])
    columns = ["paired", *(m["label"] for m in metrics.values())]
    return ResultTable(
        columns, rows, 'Paired differences over the same items. "better" and "worse" only where the interval leaves out zero.'
    )


def _causes(entry: Mapping[str, Any]) -> ResultTable:
    shown = {
        "memory_wrong": f"{entry['memory']} wrong",
        "text_wrong": f"{entry['text']} wrong",
        "lost": "memory wrong, text right",
        "won": "text wrong, memory right",
    }
    rows = [
        [title, *(f"{entry[name][cause]} ({entry[name][cause] / entry['count']:.0%})" for name in shown)]
        for cause, title in {"all": "all", **CAUSES}.items()
    ]
    caption = (
        f"Why answers are wrong (contain no answer), of {entry['count']:,} questions; "
        "in the last two columns, the cause at the side that is wrong."
    )
    return ResultTable(["cause", *shown.values()], rows, caption)


def _overlap(task: Mapping[str, Any]) -> ResultTable:
    rows = []
    for entry in task["overlap"]:
        if entry["threshold"] is None and entry["of"] != "reference":
            continue
        name = "none" if entry["threshold"] is None else f"{entry['threshold']:.0%} of the {entry['of']}"
        share = entry["references"] / max(entry["looked_at"], 1)
        rows.append([name, f"{entry['references']:,} of {entry['looked_at']:,} ({share:.1%})", f"{entry['items']:,}"])
    return ResultTable(
        ["threshold", "references dropped", "items touched"], rows, f"Contamination guard. In force here: {task['guard']}."
    )


def _guards(task: Mapping[str, Any]) -> ResultTable:
    metrics = task["metrics"]
    rows = [
        [
            line["guard"],
            mode,
            *(figure(f["value"], f["interval"], metrics[m]["percent"]) for m, f in found["metrics"].items()),
            str(found["dropped"]),
        ]
        for line in task["guard_table"]
        for mode, found in line["modes"].items()
    ]
    columns = ["threshold", "mode", *(metrics[m]["label"] for m in next(iter(task["modes"].values()))["metrics"]), "dropped"]
    return ResultTable(columns, rows, "The same questions under each threshold of the guard.")


def _flag(flag: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    metric = metrics[flag["metric"]]

    def told(name: str) -> str:
        return figure(flag[name]["value"], flag[name]["interval"], metric["percent"], signed=True)

    return (
        f"{metric['label']}: {flag['mode']} gains {told('gain')} over none, and {flag['control']} gains "
        f"{told('gain_of_control')}; {flag['mode']} minus {flag['control']} is {told('difference')}. "
        + ("The control gains, too." if flag["control_gains"] else "The two cannot be told apart.")
    )


def _speed(speed: Mapping[str, Any]) -> Section:
    return Section("Speed", speed["notes"], [ResultTable(t["columns"], t["rows"], t["caption"]) for t in speed["tables"]])
