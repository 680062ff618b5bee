"""The two-stage experiment (arXiv 2407.01178, section 5 and figure 11).

Is a model that meets memories from its first step worse than one that is warmed up first?

    from the start    every step reads memories
    two stages        the first half of the steps without (warm-up), the second half with (continual training)

Both see the same sequences in the same order. Both are looked at with memories and without, on sequences held back: what is
read is of use where the two losses part.

    OUT/seed-0/from-start/, warm/, continual/     runs, each resumable
    OUT/stages.json, stages.png                   the curves, and what they come to
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from memory3.errors import ConfigError, MissingDependency
from memory3.files import write_atomically
from memory3.training.groups import read_groups, without_memories, write_groups
from memory3.training.logs import draw_losses, read_log
from memory3.training.run import Progress, Result, sample_groups, train
from memory3.training.settings import Mixture, Settings

__all__ = ["two_stages"]

_NAMES = {"eval_chunks": "with memories", "eval_packed": "without"}


def two_stages(
    settings: Settings, out: Path, seeds: Sequence[int], *, device: str | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run, or go on with, all runs of the experiment; the figures as in ``stages.json``.

    Args:
        settings: of the run from the start, mixture and seed apart: a shape, an even number of steps, sequences.
        out: folder.
        seeds: of weights and order of data; one pair of runs each.
        device, progress: as in `memory3.training.run.train`.

    Raises:
        ConfigError: no shape, an odd number of steps, or no looks at held-back sequences.
    """
    if not settings.shape or settings.steps % 2 or not settings.eval_every:
        raise ConfigError(
            f"the two-stage experiment needs a shape (not {settings.shape!r}), an even number of steps (not {settings.steps}) "
            "and eval_every above 0"
        )
    tell = progress or (lambda what, done, total, more: None)
    each: list[dict[str, Any]] = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        base = settings.replace(seed=seed, mixture=Mixture.of({"chunks": 1}).shares())
        half = base.steps // 2
        warm = base.replace(steps=half, warmup=min(base.warmup, half // 4), mixture=Mixture.of({"packed": 1}).shares())
        later = warm.replace(shape="", model=str(folder / "warm" / "model"), mixture=base.mixture.shares())
        sample_groups(base, folder / "from-start", device=device, progress=tell)
        _share(folder, half * base.passes * base.groups)

        def told(what: str, done: int, total: int, more: str, seed: int = seed) -> None:
            tell(f"seed {seed}, {what}", done, total, more)

        runs = {
            name: train(its, folder / name, resume=True, device=device, progress=told)
            for name, its in (("from-start", base), ("warm", warm), ("continual", later))
            if _before_is_done(folder, name)
        }
        if any(run.trained is None for run in runs.values()) or len(runs) < 3:
            return {"complete": False, "seeds": each}
        each.append(_figures(seed, runs, half))
    figures = {"complete": True, "settings": settings.to_dict(), "seeds": each, "summary": _summary(each)}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "stages.json", json.dumps(figures, indent=2) + "\n")
    with suppress(MissingDependency):
        draw_losses(_curves(each), out / "stages.png", title=f"{settings.shape}: memories from the start, or after a warm-up")
    return figures


def _before_is_done(folder: Path, name: str) -> bool:
    return name != "continual" or (folder / "warm" / "model").is_dir()


def _share(folder: Path, first: int) -> None:
    """The same sequences for both ways: the first half without what their chunks would read, the second half as it is."""
    groups = read_groups(folder / "from-start" / "groups.jsonl")
    held = read_groups(folder / "from-start" / "held_back.jsonl")
    bare = [without_memories(group) for group in groups[:first]]
    for name, part in (("warm", bare), ("continual", groups[first:])):
        if not (folder / name / "held_back.jsonl").exists():
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_groups(folder / name / "groups.jsonl", part)
            write_groups(folder / name / "held_back.jsonl", held)


def _figures(seed: int, runs: dict[str, Result], half: int) -> dict[str, Any]:
    def curve(name: str, of: str, later: int = 0) -> list[tuple[int, float]]:
        return [(line["step"] + later, line[of]) for line in read_log(runs[name].run) if of in line]

    return {
        "seed": seed,
        "from_start": {of: curve("from-start", of) for of in _NAMES},
        "two_stages": {of: curve("warm", of) + curve("continual", of, half) for of in _NAMES},
        "seconds_per_step": {name: run.seconds_per_step for name, run in runs.items() if run.seconds_per_step},
    }


def _summary(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Last losses, and what memories lower them by: mean over seeds, and the standard deviation where there are several."""
    summary: dict[str, Any] = {}
    for way in ("from_start", "two_stages"):
        last = {of: [figures[way][of][-1][1] for figures in each] for of in _NAMES}
        last["gain"] = [without - read for read, without in zip(last["eval_chunks"], last["eval_packed"], strict=True)]
        summary[way] = {
            name: {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}
            for name, values in last.items()
        }
    # A run that was resumed after its last step has no times.
    timed = [f["seconds_per_step"] for f in each if {"warm", "continual"} <= set(f["seconds_per_step"])]
    if timed:
        summary["continual_step_over_warmup_step"] = statistics.fmean(times["continual"] / times["warm"] for times in timed)
    return summary


def _curves(each: Sequence[dict[str, Any]]) -> list[tuple[str, list[int], list[float]]]:
    """Mean over the seeds."""
    curves = []
    for way in ("from_start", "two_stages"):
        for of, name in _NAMES.items():
            steps = [step for step, _ in each[0][way][of]]
            losses = [statistics.fmean(figures[way][of][n][1] for figures in each) for n in range(len(steps))]
            curves.append((f"{way.replace('_', ' ')}, {name}", steps, losses))
    return curves
