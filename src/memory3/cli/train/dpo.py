"""``memory3 train dpo``: the better of two answers preferred."""

from __future__ import annotations

from typing import Any

import typer

from memory3.cli.train.options import LORA, MEMORY, OPTIMISER, RUN, Folder, takes
from memory3.cli.train.run import start

__all__ = ["dpo"]


@takes("model", "bank", "epochs", "beta", *RUN, *OPTIMISER, "schedule", "decay", *LORA, *MEMORY)
def dpo(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Prefer the better of two answers, with memories attached to the prompts.

    Direct preference optimisation with the paper's rate of 4e-6 and beta of 0.01.
    Records have prompt, chosen and rejected. The model as it is before training
    is what it is compared with; its likelihoods are taken once, at the start.

    [bold]Examples[/bold]

        memory3 train dpo --model sft/model --out dpo --data pairs.jsonl --bank bank
        memory3 train dpo --model sft/model --out dpo --data pairs.jsonl --k 0
        memory3 train dpo --out dpo --resume
    """
    from memory3.training.settings import DPO

    start(folder, context, DPO)
