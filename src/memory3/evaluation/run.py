"""One suite from start to end: tasks, banks, modes, a folder of results with its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.errors import InputError
from memory3.evaluation.folder import ResultsFolder
from memory3.evaluation.knowledge import knowledge_bank
from memory3.evaluation.machine import machine
from memory3.evaluation.report import write_report
from memory3.evaluation.runner import EvaluationPlan, Progress, now, run_task
from memory3.evaluation.task import Task
from memory3.files import write_atomically
from memory3.llm import Memory3

__all__ = ["run_suite", "write_results"]


def run_suite(
    suite: str,
    tasks: Sequence[Task],
    m3: Memory3,
    plan: EvaluationPlan,
    out: Path,
    *,
    data: Path,
    banks: Path,
    bank: Bank | None = None,
    reuse: Sequence[Path] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the tasks and write results.json, items.jsonl, report.md and report.html. Results are written after each task.

    Args:
        suite, tasks, m3, plan: what is run.
        out: the results folder.
        data: where knowledge bases come from.
        banks: folder of their banks.
        bank: read this one instead, in all tasks.
        reuse: other results folders, whose items are not measured again.
    """
    reading = any(mode.source for mode in plan.modes)
    results: dict[str, Any] = {
        "suite": suite,
        "model": m3.name,
        "fingerprint": m3.fingerprint,
        "config": m3.config.to_dict(),
        "started": now(),
        "machine": machine(),
        "seed": plan.seed,
        "limit": plan.limit,
        "guard": plan.threshold,
        "modes": [mode.name for mode in plan.modes],
        "tasks": {},
    }
    opened: dict[str, Bank] = {}
    with ResultsFolder(out, reuse) as folder:
        for task in tasks:
            mine = bank
            if mine is None and reading:
                if task.knowledge not in opened:

                    def told(text: str, done: int, share: float) -> None:
                        if progress is not None and share:
                            progress(text, done, round(done / share))

                    opened[task.knowledge] = knowledge_bank(m3, task.knowledge, data, banks, told)
                mine = opened[task.knowledge]
            results["tasks"][task.name] = run_task(task, m3, mine, plan, folder, progress)
            results["finished"] = now()
            write_results(out, results)
    for each in opened.values():
        each.close()
    return results


def write_results(out: Path, results: dict[str, Any]) -> None:
    """results.json and the reports, each whole or not at all.

    Args:
        out: the folder, made if missing.
        results: JSON values.

    Raises:
        InputError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
        write_report(out, results)
    except OSError as error:
        raise InputError(f"{out}: results cannot be written: {error.strerror}") from None
