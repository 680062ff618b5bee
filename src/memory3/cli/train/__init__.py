"""``memory3 train``: the doors to `memory3.training`. One file per command."""

from __future__ import annotations

import typer

from memory3.cli.command import Command
from memory3.cli.train.continual import continual
from memory3.cli.train.dpo import dpo
from memory3.cli.train.run import TrainCommand
from memory3.cli.train.sft import sft
from memory3.cli.train.tokenizer import tokenizer
from memory3.cli.train.two_stage import two_stage
from memory3.cli.train.warmup import warmup

__all__ = ["train"]

train = typer.Typer(
    name="train",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Teach a model to write and read memories. Needs the extra: pip install 'memory3\\[train]'.",
    epilog="Every command goes on with [bold]--resume[/bold]; Ctrl-C finishes the step and writes a checkpoint.",
)
for command in (continual, warmup, sft, dpo):
    train.command(cls=TrainCommand)(command)
train.command(cls=Command)(tokenizer)
train.command("two-stage", cls=TrainCommand)(two_stage)
