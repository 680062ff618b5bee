"""Runs tasks in modes, item by item into a results folder, and sums them up.

What is shared: references are looked up once for all modes, a reference is encoded once for all items, what was measured
before is read from the folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from memory3.bank import Bank
from memory3.config import MemoryConfig
from memory3.evaluation.batching import Batcher
from memory3.evaluation.folder import ResultsFolder, settings_key
from memory3.evaluation.guard import Guard
from memory3.evaluation.lookup import FoundReferences, Lookup
from memory3.evaluation.modes import Mode
from memory3.evaluation.summary import differences, figures, flags
from memory3.evaluation.task import Item, Task
from memory3.llm import Memory3

__all__ = ["GUARDS", "EvaluationPlan", "Progress", "run_task"]

#: (what is being done, items done, items in all, seconds left or None)
Progress = Callable[[str, int, int], None]

#: Characters of a reference, about: items that read equally many are answered together, since a batch is as long as its
#: longest row.
_REFERENCE = 500

#: Thresholds of the guard's own table.
GUARDS = (None, 0.8, 2 / 3)


@dataclass(frozen=True)
class EvaluationPlan:
    """How a task is run.

    Attributes:
        modes: in order.
        limit: items at most, sampled by ``seed``; None: all.
        seed: of the sample and of the controls.
        threshold: of the contamination guard; None: none.
        guard_of: its direction; None: as the task says.
        guard_table: whether modes that retrieve are also run under each threshold of `GUARDS`.
        batch_size: items at once at first; None: as many as is of use.
    """

    modes: Sequence[Mode]
    limit: int | None = None
    seed: int = 0
    threshold: float | None = 2 / 3
    guard_of: str | None = None
    guard_table: bool = False
    batch_size: int | None = None

    def guard(self, task: Task) -> Guard:
        """For one task."""
        return Guard(self.threshold, self.guard_of or task.guard_of)


def run_task(
    task: Task, m3: Memory3, bank: Bank | None, plan: EvaluationPlan, folder: ResultsFolder, progress: Progress | None = None
) -> dict[str, Any]:
    """Answer the task's items in every mode, and sum up. JSON values.

    With a mode that reads the right reference, only items for which one is known take part.

    Args:
        task: what is asked.
        m3: answers.
        bank: what is read; None: mode none alone.
        plan: modes, limit, seed, guard.
        folder: where rows are kept; those that are there are not answered again.
        progress: told what is done.
    """
    items = list(task.items)
    Random(plan.seed).shuffle(items)
    if bank is not None and any(mode.source == "gold" for mode in plan.modes):
        items = [item for item in items if task.holders(bank, item)]
    items = items if plan.limit is None else items[: plan.limit]
    guard = plan.guard(task)
    k = max((mode.k for mode in plan.modes), default=0)
    lookup = None if bank is None else Lookup(m3, bank, task, k=k, seed=plan.seed)
    rows: dict[str, list[dict[str, Any]]] = {}
    modes: dict[str, Any] = {}
    for mode in plan.modes:
        settings = _settings(task, m3, bank, mode)
        key = settings_key(settings)
        rows[mode.name] = _measure(task, m3, bank, mode, items, lookup, guard, folder, key, plan.batch_size, progress)
        modes[mode.name] = {"key": key, "settings": settings, **figures(task.metrics, rows[mode.name])}
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
        "differences": differences(task.metrics, rows),
        "flags": flags(task.metrics, rows),
        **task.summary(rows),
    }
    retrieving = [mode for mode in plan.modes if mode.source == "retrieved"]
    if lookup is not None and bank is not None:
        summary["bank"] = {"references": len(bank), "fingerprint": bank.manifest.fingerprint}
        sizes = sorted({mode.k for mode in retrieving})
        summary["retrieval_recall"] = {str(k): lookup.recall_at(items, k) for k in sizes}
        if sizes:
            summary["overlap"] = _overlap(lookup, items, sizes[-1])
        if plan.guard_table:
            table = []
            for each in (Guard(threshold, guard.of) for threshold in GUARDS):
                line: dict[str, Any] = {"guard": str(each), "modes": {}}
                for mode in retrieving:
                    key = settings_key(_settings(task, m3, bank, mode))
                    mine = _measure(task, m3, bank, mode, items, lookup, each, folder, key, plan.batch_size, progress)
                    line["modes"][mode.name] = figures(task.metrics, mine)
                table.append(line)
            summary["guard_table"] = table
    return summary


def _overlap(lookup: Lookup, items: Sequence[Item], k: int) -> list[dict[str, Any]]:
    """What each threshold drops, in both directions."""
    guards = [Guard(threshold, of) for of in ("reference", "question") for threshold in GUARDS]
    counts = lookup.overlapping(items, k, guards)
    return [
        {"threshold": g.threshold, "of": g.of, "references": found, "items": touched, "looked_at": len(items) * k}
        for g, (found, touched) in zip(guards, counts, strict=True)
    ]


def _settings(task: Task, m3: Memory3, bank: Bank | None, mode: Mode) -> dict[str, Any]:
    """All that an item's outcome depends on, besides the references it reads.

    Not the batch size: it changes rounding alone.
    """
    weights = m3.fingerprint if mode.read == "memory" else _fingerprint_without_memories(m3)
    settings: dict[str, Any] = {"task": task.name, **task.settings, "read": mode.read, "model": m3.name, "weights": weights}
    settings["dtype"] = str(m3.model.dtype)
    if mode.source and bank is not None:
        hashes = sorted(f"{entry.id}:{entry.content_hash}" for entry in bank.documents())
        settings["bank"] = settings_key({"documents": hashes})
        if mode.read == "memory":
            settings |= {"codec": bank.manifest.config.codec, "arrangement": m3.config.arrangement}
            settings["temperature"] = m3.config.memory_temperature
            settings["rank_discount"] = m3.config.rank_discount
    return settings


def _fingerprint_without_memories(m3: Memory3) -> str:
    """Of weights, tokenizer and prompts.

    What is answered from text or from nothing does not depend on how memories are written.
    """
    plain = MemoryConfig(reference_length=m3.config.reference_length, prefix=m3.config.prefix)
    return m3.fingerprint if plain == m3.config else Memory3(m3.model, m3.tokenizer, plain, name=m3.name).fingerprint


def _measure(
    task: Task,
    m3: Memory3,
    bank: Bank | None,
    mode: Mode,
    items: Sequence[Item],
    lookup: Lookup | None,
    guard: Guard,
    folder: ResultsFolder,
    key: str,
    batch_size: int | None,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Rows of all items, in order.

    An item that has read the same references in the same way before, in whatever mode, is not asked again.
    """
    found = [FoundReferences([]) for _ in items] if lookup is None else lookup.find(items, mode, guard)
    names = [_row_name(item, each) for item, each in zip(items, found, strict=True)]
    known = folder.rows(key)
    todo = [n for n, name in enumerate(names) if name not in known]
    tell = progress or (lambda *_: None)
    text, done, started = f"{task.name}, {mode.name}", len(items) - len(todo), time.perf_counter()

    def work(batch: Sequence[int]) -> list[dict[str, Any]]:
        return task.answer(m3, bank, mode, [items[n] for n in batch], [found[n].references for n in batch])

    def length(n: int) -> int:
        return len(items[n].query) + _REFERENCE * len(found[n].references)

    for batch, outcomes in Batcher(batch_size).run(todo, work, length):
        seconds, started = (time.perf_counter() - started) / len(batch), time.perf_counter()
        new = []
        for n, outcome in zip(batch, outcomes, strict=True):
            about = {"task": task.name, "mode": mode.name, "id": names[n], "item": items[n].id}
            new.append({**about, **outcome, "references": found[n].references, "seconds": round(seconds, 4)})
        folder.append(key, new)
        done += len(batch)
        tell(text, done, len(items))
    stored = folder.rows(key)
    rows = []
    for item, name, each in zip(items, names, found, strict=True):
        row = {**stored[name], "item": item.id}
        rows.append({**row, "dropped": each.dropped, "scores": list(each.scores)} if mode.source else row)
    return rows


def _row_name(item: Item, found: FoundReferences) -> str:
    """An item and what it reads."""
    return f"{item.id} {settings_key({'references': found.references})[:8]}" if found.references else item.id


def now() -> str:
    """The time of day, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
