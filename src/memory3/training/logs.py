"""What a run tells: JSON lines, how far it is, and a picture of its losses.

    log.jsonl    one object per step: {"step": 3, "loss": 1.9, "grad_norm": ..., "learning_rate": ..., "seconds": ...,
                 "loss_memory": ...}
                 and per look at held-back groups: {"step": 100, "eval_memory": ..., "eval_text": ..., ...}

A resumed run cuts the lines behind its checkpoint off first, so that no step is told twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from memory3.errors import InputError, MissingDependency
from memory3.files import write_atomically

__all__ = ["LOG", "RunLog", "curves_of", "cut_log", "draw_losses", "read_log"]

LOG = "log.jsonl"


class RunLog(TrainerCallback):
    """Writes the log, tells the progress, and measures the time of a step.

    Attributes:
        seconds: of each step taken in this process.
    """

    def __init__(self, run: Path, told: Callable[[int, int, float], None]) -> None:
        """``told(step, steps, loss)`` is called after every step."""
        self._path, self._told = run / LOG, told
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of a step.

        Args:
            args: of the run.
            state: of the Trainer.
            control: tells the Trainer what to do next.
        """
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock of a step.

        Args:
            args: of the run.
            state: of the Trainer.
            control: tells the Trainer what to do next.
        """
        self.seconds.append(time.perf_counter() - self._started)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write one line of figures, and tell the progress.

        Args:
            args: of the run.
            state: of the Trainer.
            control: tells the Trainer what to do next.
            logs: figures by name.
        """
        if not state.is_world_process_zero or not logs:
            return
        line: dict[str, Any] = {"step": state.global_step}
        line |= {name: value for name, value in logs.items() if name not in ("epoch", "total_flos")}
        if "loss" in logs and self.seconds:
            line["seconds"] = round(self.seconds[-1], 4)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if "loss" in logs:
            self._told(state.global_step, state.max_steps, float(logs["loss"]))


def cut_log(run: Path, step: int) -> None:
    """Take out what was logged after this step, which is about to be done again.

    Args:
        run: folder of the run.
        step: the last that stays.
    """
    kept = [line for line in read_log(run) if line["step"] <= step] if step else []
    write_atomically(run / LOG, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last line that a kill cut short is left out."""
    lines = []
    if (run / LOG).exists():
        for line in (run / LOG).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def draw_losses(curves: Sequence[tuple[str, Sequence[int], Sequence[float]]], path: Path, *, title: str = "") -> None:
    """Curves as a PNG file.

    Args:
        curves: name, steps and losses of each; the parts of a name behind a blank do not change its colour.
        path: written anew.
        title: above the figure.

    Raises:
        MissingDependency: matplotlib is not installed.
        InputError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a screen
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "plots", "drawing the losses") from error
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, steps, losses in curves:
        axes.plot(steps, losses, label=name, linewidth=1.2, marker="." if len(steps) < 40 else "")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def curves_of(lines: Sequence[dict[str, Any]]) -> list[tuple[str, list[int], list[float]]]:
    """Loss by kind of pass (mean of each twentieth of the run) and held-back losses, out of a log."""
    names = sorted({name for line in lines for name in line if name == "loss" or name.startswith(("loss_", "eval_"))})
    curves = []
    for name in names:
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        size = 1 if name.startswith("eval_") else max(1, len(points) // 40)
        parts = [points[start : start + size] for start in range(0, len(points), size)]
        curves.append((name, [part[-1][0] for part in parts], [sum(loss for _, loss in part) / len(part) for part in parts]))
    return curves
