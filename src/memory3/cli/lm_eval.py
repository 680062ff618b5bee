"""``memory3 lm-eval``: the command of lm-evaluation-harness, with our model class known to it."""

from __future__ import annotations

import sys

import typer

from memory3.errors import MissingDependency

__all__ = ["lm_eval"]


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness: everything after the name goes to lm_eval.

    Its releases after 0.4.13 find the class memory3 by themselves, with plain
    lm_eval; up to 0.4.13 this command makes it known.

    [bold]Examples[/bold]

        memory3 lm-eval --model memory3 --model_args bank=bank,mode=memory --tasks arc_easy
        memory3 lm-eval --model memory3 --model_args bank=bank,mode=text,k=3 --tasks gsm8k --num_fewshot 5 --limit 50
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
    cli_evaluate()
