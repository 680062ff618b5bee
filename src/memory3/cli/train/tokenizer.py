"""``memory3 train tokenizer``: a tokenizer of fewer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memory3.cli import options
from memory3.cli.loading import silence
from memory3.cli.output import out, print_json
from memory3.cli.progress import StepMeter
from memory3.cli.train.options import Folder
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["tokenizer"]


def tokenizer(
    folder: Folder,
    data: Annotated[
        list[Path], typer.Option(help="JSON lines (.gz too) with texts or passages. May be repeated.", metavar="FILE")
    ],
    size: Annotated[int, typer.Option(help="Tokens at most.", metavar="N")] = 4096,
    of: Annotated[str, typer.Option(help="Model whose kind of tokenizer it is.", metavar="MODEL")] = DEFAULT_MODEL,
    as_json: options.Json = False,
) -> None:
    """Train a tokenizer of fewer tokens, for small models from scratch.

    [bold]Examples[/bold]

        memory3 train tokenizer --data texts.jsonl.gz --out tokens
        memory3 train warmup --shape memory3-2m --tokenizer tokens --data texts.jsonl.gz --out warm
    """
    from memory3.training.vocabulary import train_vocabulary

    silence()
    with StepMeter() as meter:
        made = train_vocabulary(of, data, size, folder, progress=lambda done, total: meter("reading", done, total, "texts"))
    if as_json:
        print_json({"tokens": made, "folder": str(folder)})
    else:
        out.print(f"{made:,} tokens, saved to {folder}", soft_wrap=True)
