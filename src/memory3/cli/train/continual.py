"""``memory3 train continual``: training with memories."""

from __future__ import annotations

from typing import Any

import typer

from memory3.cli.train.options import LORA, MEMORY, OPTIMISER, RUN, Folder, takes
from memory3.cli.train.run import start

__all__ = ["continual"]


@takes(
    "model",
    "bank",
    *RUN,
    *OPTIMISER,
    "schedule",
    "decay",
    "mixture",
    "questions",
    "cloze",
    "text_length",
    "distil",
    *LORA,
    *MEMORY,
)
def continual(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Train with memories: references are encoded inside the step.

    By default a LoRA adapter that reads 360 key-value pairs per reference. What
    is trained is what is served: `memory3 write --adapter RUN/adapter` uses it
    with the settings it was trained for.

    [bold]Examples[/bold]

        memory3 train continual --out run --data questions.jsonl --data texts.jsonl
        memory3 train continual --out run --data texts.jsonl --cloze 3
        memory3 train continual --out run --resume
        memory3 train continual --out paper --data texts.jsonl --mixture chunks=1 --rank 0
        memory3 train continual --out run8 --data qa.jsonl.gz --budget adaptive:1/8 --steps 300
        torchrun --nproc_per_node 2 $(which memory3) train continual --out run --data qa.jsonl
    """
    from memory3.training.settings import Settings

    start(folder, context, Settings())
