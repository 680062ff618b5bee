"""``memory3 circuit``: the doors to `memory3.interpret`. One file per command."""

from __future__ import annotations

import typer

from memory3.cli.circuit.find import find
from memory3.cli.circuit.imitable import imitable
from memory3.cli.circuit.induction import induction
from memory3.cli.command import Command

__all__ = ["circuit"]

circuit = typer.Typer(
    name="circuit",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Look inside a model: the edges an answer goes through, and which knowledge a text can stand for.",
)
for command in (find, induction, imitable):
    circuit.command(cls=Command)(command)
