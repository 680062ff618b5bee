"""``memory3 bench``: the door to `memory3.benchmarks`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from memory3 import benchmarks
from memory3.cli import options
from memory3.cli.command import Command
from memory3.cli.config_file import option_names
from memory3.cli.loading import silence
from memory3.cli.output import facts, message, out, print_json
from memory3.cli.progress import still_at
from memory3.errors import InputError

__all__ = ["BenchCommand", "bench"]

#: In a context's ``meta``: the options of the benchmark that stand in the file of --config.
_PAIRS = "memory3.benchmark_options"


class BenchCommand(Command):
    """A command whose --config also holds options of the benchmark, which refuses those that it does not know. Behind the name
    of a benchmark ``--help`` is about that one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Help on a benchmark is asked for behind its name."""
        asked = next((n for n, each in enumerate(args) if each in ("--help", "--help-all")), None)
        name = next((each for each in args[:asked] if each in benchmarks.BENCHMARKS), None)
        if asked is not None and name is not None and not ctx.resilient_parsing:
            _help_on(name)
            raise typer.Exit
        return super().parse_args(ctx, args)

    def file_values(self, ctx: Any, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Options of the benchmark are laid aside for it."""
        own = option_names(self.params)
        ctx.meta[_PAIRS] = {name.replace("-", "_"): str(value) for name, value in values.items() if name not in own}
        return super().file_values(ctx, {name: value for name, value in values.items() if name in own}, path)


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which benchmark. Without it, all are listed.")] = None,
    result: Annotated[
        Path | None, typer.Option("--out", help="Write the result to this JSON file, too.", metavar="FILE")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure: speed, sizes, answers.

    Options of a benchmark follow its name, each with a value. --help behind the
    name shows them.

    [bold]Examples[/bold]

        memory3 bench
        memory3 bench decode --out decode.json --repeats 5
    """
    known = benchmarks.BENCHMARKS
    if name is None:
        if as_json:
            print_json(known)
        else:
            out.print(facts(known))
        return
    if name not in known:
        raise typer.BadParameter(f"benchmark {name!r} is unknown: use one of {', '.join(known)}", param_hint="NAME")
    if result is not None and not result.absolute().parent.is_dir():
        raise InputError(f"{result}: its folder does not exist")  # before minutes of measuring
    silence()
    with still_at(f"measuring {name}"):
        figures = benchmarks.run(name, {**context.meta.get(_PAIRS, {}), **_pairs(context.args)})
    if result is not None:
        try:
            result.write_text(json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{result}: cannot be written: {error.strerror}") from None
        message(f"written to {result}")
    if as_json:
        print_json(figures)
    else:
        out.print(facts(_flat(figures)))


def _help_on(name: str) -> None:
    """What a benchmark measures, and its options with their defaults."""
    text, known = benchmarks.about(name)
    out.print(f"Usage: memory3 bench {name} [--out FILE] [--json] [OPTIONS]\n")
    out.print(f"{text}\n")
    shown = {f"--{each.replace('_', '-')}": _default(value) for each, value in known.items()}
    out.print(facts(shown) if shown else "It has no options.")


def _default(value: Any) -> str:
    """An option's kind and default, such as ``number, default 3``."""
    kind = {int: "whole number", float: "number"}.get(type(value), "text")
    return f"{kind}, default {value}" if value != "" else kind


def _pairs(arguments: list[str]) -> dict[str, str]:
    """``--batch 8 --bank=b`` as ``{"batch": "8", "bank": "b"}``."""
    pairs: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise typer.BadParameter(f"{argument!r}: options of a benchmark are written --name value")
        value = value if has_value else next(rest, "")
        if not value:
            raise typer.BadParameter(f"{name} needs a value: {name} VALUE")
        pairs[name[2:].replace("-", "_")] = value
    return pairs


def _flat(figures: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested figures as lines ``decode.ratio 0.97``."""
    lines: dict[str, str] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}.")
        else:
            lines[f"{prefix}{name}"] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return lines
