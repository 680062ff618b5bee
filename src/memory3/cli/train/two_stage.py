"""``memory3 train two-stage``: memories from the first step, or after a warm-up."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from memory3.cli.loading import silence
from memory3.cli.output import out, print_json
from memory3.cli.progress import StepMeter
from memory3.cli.train.options import MEMORY, OPTIMISER, RUN, Folder, takes
from memory3.cli.train.run import settings_of

__all__ = ["two_stage"]


@takes("shape", "tokenizer", *(name for name in RUN if name != "resume"), *OPTIMISER, *MEMORY)
def two_stage(
    context: typer.Context,
    folder: Folder,
    seeds: Annotated[int, typer.Option(help="How many pairs of runs.", metavar="N", min=1)] = 3,
    **given: Any,
) -> None:
    """Memories from the first step, or after a warm-up? (the paper's figure 11)

    Trains pairs of small models on the same sequences: one reads memories from
    its first step, the other from the middle on. Their losses with and without
    memories are written to stages.json and drawn to stages.png. Interrupted, the
    same command goes on.

    [bold]Examples[/bold]

        memory3 train two-stage --out stages --data texts.jsonl.gz
        memory3 train two-stage --out stages --data texts.jsonl.gz --steps 4000 --shape memory3-27m
    """
    from memory3.checkout import research
    from memory3.config import MemoryConfig
    from memory3.training.settings import WARMUP

    two_stages = research("two_stage", "memory3 train two-stage").two_stages
    settings = settings_of(folder, context, WARMUP.replace(memory=MemoryConfig.preset("paper")))
    silence()
    with StepMeter() as meter:
        figures = two_stages(settings, folder, range(seeds), device=given["device"], progress=meter)
    if given["as_json"]:
        print_json(figures)
    elif not figures["complete"]:
        out.print("stopped before its end: go on with the same command")
    else:
        for way in ("from_start", "two_stages"):
            last = {name: value["mean"] for name, value in figures["summary"][way].items()}
            out.print(
                f"{way.replace('_', ' '):<12} loss with memories {last['eval_chunks']:.3f}, without "
                f"{last['eval_packed']:.3f}, gain {last['gain']:.3f}"
            )
        out.print(f"written to {folder / 'stages.json'}", soft_wrap=True)
