"""``memory3 lm-eval``: the command of lm-evaluation-harness, with our model class known to it."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from memory3.cli import options
from memory3.cli.output import print_json
from memory3.errors import InputError, MissingDependency

__all__ = ["lm_eval"]

_OUTPUT = ("--output_path", "-o")


def lm_eval(context: typer.Context, as_json: options.Json = False) -> None:
    """Run lm-evaluation-harness: everything after the name goes to lm_eval.

    Its releases after 0.4.13 find the class memory3 by themselves, with plain
    lm_eval; up to 0.4.13 this command makes it known.

    [bold]Examples[/bold]

        memory3 lm-eval --model memory3 --model_args bank=bank,mode=memory --tasks arc_easy
        memory3 lm-eval --model memory3 --model_args bank=bank,mode=text,k=3 --tasks gsm8k --num_fewshot 5 --limit 50
        memory3 lm-eval --json --model memory3 --model_args bank=bank,mode=none --tasks arc_easy
    """
    try:
        import lm_eval.models  # noqa: F401 (fills the registry; it does so by itself only while nothing is in it)
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError:
        raise MissingDependency("lm_eval", "eval", "memory3 lm-eval") from None
    if "memory3" not in model_registry:
        model_registry.register("memory3", target="memory3.evaluation.harness:Memory3LM")
    sys.argv = ["lm_eval", *context.args]
    if not as_json:
        cli_evaluate()
        return
    with tempfile.TemporaryDirectory(prefix="memory3-lm-eval-") as folder:
        target = _output_path(context.args)
        before = _results(target) if target else set()
        sys.argv += [] if target else ["--output_path", folder]
        with contextlib.redirect_stdout(sys.stderr):
            cli_evaluate()
        print_json(_read(_results(target or Path(folder)) - before))


def _output_path(arguments: list[str]) -> Path | None:
    """Where lm_eval was told to put its results."""
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in _OUTPUT:
            return Path(value if equals else after)
    return None


def _results(target: Path) -> set[tuple[Path, int]]:
    """The files of results in a folder of lm_eval, or beside the file that it was given, and when each was written."""
    folder = target.parent if target.suffix == ".json" else target
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*.json")}


def _read(made: set[tuple[Path, int]]) -> dict[str, Any]:
    found = [values for path, _ in made if isinstance(values := json.loads(path.read_text(encoding="utf-8")), dict)]
    results = next((values for values in found if "results" in values), None)
    if results is None:
        raise InputError("lm_eval left no results: --json goes with a run of tasks")
    return results
