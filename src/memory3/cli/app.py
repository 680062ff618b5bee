"""The table of commands. What becomes of their errors: `memory3.cli.edge`."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import Annotated

import typer

from memory3.cli.ask import ask
from memory3.cli.bench import BenchCommand, bench
from memory3.cli.calibrate import calibrate
from memory3.cli.check import check
from memory3.cli.circuit import circuit
from memory3.cli.command import Command
from memory3.cli.compact import compact
from memory3.cli.deferred import defer
from memory3.cli.delete import delete
from memory3.cli.demo import demo
from memory3.cli.edge import Commands
from memory3.cli.eval import evaluate
from memory3.cli.info import info
from memory3.cli.lm_eval import lm_eval
from memory3.cli.mcp import mcp
from memory3.cli.output import out
from memory3.cli.plan import plan
from memory3.cli.prepare import prepare
from memory3.cli.rebuild import rebuild
from memory3.cli.report import report
from memory3.cli.serve import serve
from memory3.cli.train import train
from memory3.cli.verify import verify
from memory3.cli.write import write

__all__ = ["app", "main"]


app = typer.Typer(
    name="memory3",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (prepare, write, ask, info, verify, delete, compact, rebuild, calibrate, check, plan, demo, mcp, serve):
    app.command(cls=Command)(command)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(report)
app.add_typer(train)
app.add_typer(circuit)
anything = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command(cls=BenchCommand, context_settings=anything)(bench)
app.command("lm-eval", context_settings=anything)(lm_eval)  # its options, --config among them, are those of lm_eval


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(f"memory3 {version('memory3')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Also: MEMORY3_DEBUG=1.", envvar="MEMORY3_DEBUG")
    ] = False,
) -> None:
    """Explicit memory for language models.

    Documents are encoded once into attention key-values, kept in a bank, and recalled while the model answers.

    Results go to stdout, progress and messages to stderr. With --json, stdout is one JSON document.

    Exit status: 0 done, 1 an error or a check that found something, 2 wrong usage, 130 interrupted.

    [bold]Examples[/bold]

        memory3 demo
        memory3 write docs/ --bank bank
        memory3 ask "a question" --bank bank
        memory3 ask --help-all
    """


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal's encoding may lack a character; that must not end the program
            stream.reconfigure(errors="backslashreplace")
    # How long idle threads of torch wait awake. Not at all, and small operations take half as long again; as long as OpenMP
    # has it, and on a machine that does something else, too, everything is several times slower.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # oneDNN keeps what it prepared for each shape of a product, 1,024 of them unless told otherwise, and torch keeps as many
    # beside it. Prompts have any length, so a server went on growing by some 300 MB for thousands of questions.
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "256")
    defer()
    try:
        app(prog_name="memory3")
    finally:
        gc.freeze()  # at its end Python looks through all objects once more, which takes a second where torch is loaded
