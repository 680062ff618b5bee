"""``memory3 train sft``: fine-tuning on prompts and answers."""

from __future__ import annotations

from typing import Any

import typer

from memory3.cli.train.options import LORA, MEMORY, OPTIMISER, RUN, Folder, takes
from memory3.cli.train.run import start

__all__ = ["sft"]


@takes("model", "bank", "epochs", *RUN, *OPTIMISER, "schedule", "decay", "mixture", "distil", *LORA, *MEMORY)
def sft(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Fine-tune on prompts and answers, with memories attached to the prompts.

    Each prompt reads the references found for it in --bank, or in the passages
    and texts of the data. The paper's settings: all weights, cosine from 5e-5,
    10% warm-up, weight decay 0.1, 512 prompts a step, 2048 tokens, 3 epochs.

    [bold]Examples[/bold]

        memory3 train sft --out sft --data prompts.jsonl --bank bank
        memory3 train sft --out sft --data prompts.jsonl --bank bank --rank 16 --rate 3e-4 --passes 8
        memory3 train sft --out sft --data prompts.jsonl --mixture none=1
        memory3 train sft --out sft --resume
    """
    from memory3.training.settings import SFT

    start(folder, context, SFT)
