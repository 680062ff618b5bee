"""``memory3 train warmup``: pretraining from scratch, without memories."""

from __future__ import annotations

from typing import Any

import typer

from memory3.cli.train.options import OPTIMISER, RUN, Folder, takes
from memory3.cli.train.run import start

__all__ = ["warmup"]


@takes("shape", "tokenizer", *RUN, *OPTIMISER, "schedule", "decay")
def warmup(context: typer.Context, folder: Folder, **_: Any) -> None:
    """Pretrain a model from scratch, without memories: the first of two stages.

    Texts are packed into sequences; AdamW with weight decay 0.1; the learning
    rate warms up, stays and decays. The second stage is `memory3 train continual`
    with the model that this leaves in RUN/model.

    [bold]Examples[/bold]

        memory3 train warmup --shape memory3-4m --data texts.jsonl.gz --out warm
        memory3 train continual --model warm/model --rank 0 --mixture chunks=1 --data texts.jsonl.gz --out second
    """
    from memory3.training.settings import WARMUP

    start(folder, context, WARMUP)
