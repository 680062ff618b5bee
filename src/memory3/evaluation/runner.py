"""Runs tasks in modes, item by item into a results folder, and sums them up.

What is shared: references are looked up once for all modes, a reference is encoded once for all items, what was measured before is read from the folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from memory3.bank import Bank
from memory3.config import MemoryConfig
from memory3.evaluation.batching import Batcher
from memory3.evaluation.folder import ResultsFolder, settings_key
from memory3.evaluation.guard import Guard
from memory3.evaluation.intervals import aggregate_interval, interval
from memory3.evaluation.lookup import Found, Lookup
from memory3.evaluation.modes import CONTROLS, Mode
from memory3.evaluation.task import Item, Metric, Task
from memory3.generate import Memory3

__all__ = ["GUARDS", "Plan", "Progress", "run_task"]

#: (what is being done, items done, items in all, seconds left or None)
Progress = Callable[[str, int, int], None]

#: Thresholds of the guard's own table.
GUARDS = (None, 0.8, 2 / 3)


@dataclass(frozen=True)
class Plan:
    """How a task is run.

    Attributes:
        modes: in order.
        limit: items at most, drawn by ``seed``; None: all.
        seed: of the draw and of the controls.
        threshold: of the contamination guard; None: none.
        guard_of: its direction; None: as the task says.
        batch_size: None: found.
    """

    modes: Sequence[Mode]
    limit: int | None = None
    seed: int = 0
    threshold: float | None = 2 / 3
    guard_of: str | None = None
    batch_size: int | None = None

    def guard(self, task: Task) -> Guard:
        """For one task."""
        return Guard(self.threshold, self.guard_of or task.guard_of)


def run_task(
    task: Task, m3: Memory3, bank: Bank | None, plan: Plan, folder: ResultsFolder, progress: Progress | None = None
) -> dict[str, Any]:
    """Answer the task's items in every mode, and sum up. JSON values.

    With a mode that reads the right reference, only items for which one is known take part.
    """
    items = list(task.items)
    Random(plan.seed).shuffle(items)
    if bank is not None and any(mode.source == "gold" for mode in plan.modes):
        items = [item for item in items if task.holders(bank, item)]
    items = items if plan.limit is None else items[: plan.limit]
    guard = plan.guard(task)
    k = max((mode.k for mode in plan.modes), default=0)
    lookup = None if bank is None else Lookup(m3, bank, task, guard, k=k, seed=plan.seed)
    rows: dict[str, list[dict[str, Any]]] = {}
    modes: dict[str, Any] = {}
    for mode in plan.modes:
        settings = _settings(task, m3, bank, mode, plan, guard)
        key = settings_key(settings)
        _measure(task, m3, bank, mode, items, lookup, folder, key, plan.batch_size, progress)
        done = folder.rows(key)
        rows[mode.name] = [done[item.id] for item in items]
        modes[mode.name] = {"key": key, "settings": settings, **_figures(task.metrics, rows[mode.name])}
    summary: dict[str, Any] = {
        "title": task.title,
        "notes": task.notes,
        "items": len(task.items),
        "count": len(items),
        "knowledge": task.knowledge if bank is not None else "",
        "guard": str(guard),
        "metrics": {
            name: {"label": m.label, "higher_is_better": m.higher_is_better, "percent": m.percent}
            for name, m in task.metrics.items()
        },
        "modes": modes,
        "differences": _differences(task.metrics, rows),
        "flags": _flags(task.metrics, rows),
        **task.summary(rows),
    }
    if lookup is not None and bank is not None:
        sizes = sorted({mode.k for mode in plan.modes if mode.source == "retrieved"})
        summary["bank"] = {"references": len(bank), "fingerprint": bank.manifest.fingerprint}
        summary["retrieval_recall"] = {str(k): lookup.recall_at(items, k) for k in sizes}
        if sizes:
            directions = [Guard(threshold, of) for of in ("reference", "question") for threshold in GUARDS]
            counts = lookup.overlapping(items, sizes[-1], directions)
            summary["overlap"] = [
                {
                    "threshold": g.threshold,
                    "of": g.of,
                    "references": found,
                    "items": touched,
                    "looked_at": len(items) * sizes[-1],
                }
                for g, (found, touched) in zip(directions, counts, strict=True)
            ]
    return summary


def _settings(task: Task, m3: Memory3, bank: Bank | None, mode: Mode, plan: Plan, guard: Guard) -> dict[str, Any]:
    """All that an item's outcome depends on. The batch size is not among it: it changes rounding alone."""
    weights = m3.fingerprint if mode.read == "memory" else _fingerprint_without_memories(m3)
    settings: dict[str, Any] = {"task": task.name, **task.settings, "mode": mode.name, "model": m3.name, "weights": weights}
    settings["dtype"] = str(m3.model.dtype)
    if mode.source and bank is not None:
        hashes = sorted(f"{entry.id}:{entry.content_hash}" for entry in bank.documents())
        settings |= {
            "bank": settings_key({"documents": hashes}),
            "embedder": bank.manifest.embedder,
            "codec": bank.manifest.config.codec,
            "guard": str(guard),
        }
    if mode.source in ("random", "other"):
        settings["seed"] = plan.seed
    return settings


def _fingerprint_without_memories(m3: Memory3) -> str:
    """Of weights, tokenizer and prompts: what is answered from text or from nothing does not depend on how memories are written."""
    plain = MemoryConfig(reference_length=m3.config.reference_length, beginning=m3.config.beginning)
    return m3.fingerprint if plain == m3.config else Memory3(m3.model, m3.tokenizer, plain, name=m3.name).fingerprint


def _measure(
    task: Task,
    m3: Memory3,
    bank: Bank | None,
    mode: Mode,
    items: Sequence[Item],
    lookup: Lookup | None,
    folder: ResultsFolder,
    key: str,
    batch_size: int | None,
    progress: Progress | None,
) -> None:
    todo = [item for item in items if item.id not in folder.rows(key)]
    if not todo:
        return
    tell = progress or (lambda *_: None)
    text = f"{task.name}, {mode.name}"
    tell(text, len(items) - len(todo), len(items))
    found: dict[str, Found] = {}
    if lookup is not None:
        found = dict(zip((item.id for item in todo), lookup.find(todo, mode), strict=True))

    def work(batch: Sequence[Item]) -> list[dict[str, Any]]:
        return task.answer(m3, bank, mode, batch, [found[item.id].references if found else [] for item in batch])

    done, started = len(items) - len(todo), time.perf_counter()
    for batch, outcomes in Batcher(batch_size).run(todo, work, lambda item: len(item.query)):
        seconds, started = (time.perf_counter() - started) / len(batch), time.perf_counter()
        new = []
        for item, outcome in zip(batch, outcomes, strict=True):
            row = {"task": task.name, "mode": mode.name, "id": item.id, **outcome, "seconds": round(seconds, 4)}
            if mode.source:
                mine = found[item.id]
                row |= {"references": mine.references, "dropped": mine.dropped, "scores": [round(s, 4) for s in mine.scores]}
            new.append(row)
        folder.append(key, new)
        done += len(batch)
        tell(text, done, len(items))


def _figures(metrics: Mapping[str, Metric], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, metric in metrics.items():
        values = [row["metrics"][name] for row in rows if name in row["metrics"]]
        if values:
            around = interval(values) if metric.aggregate is None else aggregate_interval(values, metric.aggregate)
            figures[name] = {"value": metric.of(values), "interval": around}
    out: dict[str, Any] = {"count": len(rows), "metrics": figures, "seconds": sum(row["seconds"] for row in rows)}
    if any("dropped" in row for row in rows):
        out["dropped"] = sum(row["dropped"] for row in rows)
        out["references"] = sum(len(row["references"]) for row in rows) / max(len(rows), 1)
    return out


def paired(
    metric: Metric, name: str, above: Sequence[Mapping[str, Any]], below: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Difference of two modes over the same items, with its interval."""
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


def _differences(metrics: Mapping[str, Metric], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Every mode against none, every memory mode against every text mode and every control."""
    wanted = [(a, b) for a in rows for b in rows if a != b and _kind(b) == "none"]
    wanted += [(a, b) for a in rows for b in rows if _kind(a) == "memory" and _kind(b) in ("text", *CONTROLS)]
    wanted += [(a, b) for a in rows for b in rows if _kind(a) == "gold" and _kind(b) == "gold_text"]
    return [
        {"mode": a, "against": b, "metric": name, **paired(metric, name, rows[a], rows[b])}
        for a, b in wanted
        for name, metric in metrics.items()
    ]


def _flags(metrics: Mapping[str, Metric], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Gains of memory over none that a control gives as well: the control gains beyond chance, too, or memory is not above it beyond chance."""
    flags = []
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
                    flags.append({**flag, "gain": gain, "gain_of_control": given, "difference": over})
    return flags


def _gains(metric: Metric, difference: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference lies on the better side of zero."""
    low, high = difference["interval"]
    return bool(low > 0 if metric.higher_is_better else high < 0)


def now() -> str:
    """The time of day, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
