"""What every command has in common: a first help screen of few options, ``--help-all`` and ``--config``.

An option that names a panel (``rich_help_panel``) belongs to a group. Groups are shown by ``--help-all`` alone. The
others are the first screen. Every option works wherever it is shown. All of them can stand in the file of ``--config``
(`memory3.cli.config_file`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from memory3.cli.config_file import as_defaults, read_values

__all__ = ["CONFIG_READ", "Command", "first_screen"]

#: In a context's ``meta``: the file of --config, once it was read.
CONFIG_READ = "memory3.config_file"


class Command(TyperCommand):
    """A command whose first help screen leaves the groups of options out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        grouped = any(_panel(parameter) for parameter in self.params)
        self.params = [*self.params, *(p for p in _common_options() if grouped or p.name != "help_all")]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The first screen, or everything where ``--help-all`` asks for it."""
        shown = copy.copy(self)
        if not ctx.meta.get(_ALL):
            left_out = Counter(panel for parameter in self.params if (panel := _panel(parameter)))
            shown.params = [parameter for parameter in self.params if not _panel(parameter)]
            if left_out:
                groups = ", ".join(f"{panel} ({number})" for panel, number in left_out.items())
                shown.epilog = f"More options with [bold]--help-all[/bold]: {groups}."
        TyperCommand.format_help(shown, ctx, formatter)

    def file_values(self, ctx: Any, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """What the values of a --config file mean to this command, by parameter."""
        return as_defaults(self.params, values, f"{path}", ctx.command_path)


def first_screen(kind: Any) -> Any:
    """An option that most commands have in a group, for the first help screen.

    Write ``Annotated[str | None, first_screen(options.Codec)]``.
    """
    option = copy.copy(kind.__metadata__[0])
    option.rich_help_panel = None
    return option


_ALL = "memory3.help_all"


def _panel(parameter: Any) -> str | None:
    panel: str | None = getattr(parameter, "rich_help_panel", None)
    return panel


def _help_all(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[_ALL] = True
        typer.echo(context.get_help(), color=context.color)
        raise typer.Exit


def _read_config(context: typer.Context, path: Path | None) -> None:
    if path is None or context.resilient_parsing:
        return
    command: Any = context.command
    context.default_map = {**(context.default_map or {}), **command.file_values(context, read_values(path), path)}
    context.meta[CONFIG_READ] = str(path)


def _options_of_all(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Options from a JSON or TOML file, by their names. What is given here wins over the file.",
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_read_config,
        ),
    ] = None,
    help_all: Annotated[
        bool,
        typer.Option("--help-all", help="Show all options and exit.", is_eager=True, expose_value=False, callback=_help_all),
    ] = False,
) -> None:
    """Nothing: its options are what is wanted of it."""


def _common_options() -> list[Any]:
    made = typer.Typer(add_completion=False)
    made.command()(_options_of_all)
    return list(typer.main.get_command(made).params)
