"""The page ``docs/commands.md``, made from the commands themselves: ``python -m memory3.cli.reference > docs/commands.md``."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from memory3.cli.app import app

__all__ = ["reference"]

_WIDTH = 120
_INTRODUCTION = """# Commands

Written by `python -m memory3.cli.reference > docs/commands.md`. Do not edit it: a test compares it with what the commands say.

`memory3 COMMAND --help` shows the options that are used most. `memory3 COMMAND --help-all` shows all of them, in groups.

## What all commands share

Results go to stdout. Progress and messages go to stderr. With `--json`, stdout is one JSON document and nothing else.

| exit status | meaning |
|---|---|
| 0 | It is done. |
| 1 | There was an error, or a check found something. |
| 2 | The command was used wrongly. Nothing was done. |
| 130 | It was interrupted, by Ctrl-C. `write`, `rebuild`, `demo` and `eval` go on when run again, `train` with `--resume`. |

`--debug`, or `MEMORY3_DEBUG=1`, shows the traceback of an error.

`--config FILE` takes options from a file. Its names are those of the options, with `-` or with `_`.
A file whose name ends in `.toml` is TOML, any other is JSON. An unknown name is refused.
What is given on the command line wins over the file, and so does an environment variable.

    # ask.toml, for: memory3 ask "Who built the bridge?" --config ask.toml
    bank = "bank"
    max-new-tokens = 64
    where = ["year=2020", "year=2021"]
    stream = false

The commands of `memory3 train` also take the `settings.json` of a run there, whole or in part.
`dtype` is then what it is in that file, the number format of training.
`memory3 lm-eval` has the options of lm_eval, and its `--config` too.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_INTRODUCTION, *_commands(get_command(app), "memory3")])


def _commands(group: Any, name: str) -> Iterator[str]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {word}")
        else:
            yield f"## {name} {word}\n\n{_help(command)}\n\n{_options(command)}\n"


def _help(command: Any) -> str:
    """Paragraphs as they are in the help, examples as code."""
    text, _, examples = inspect.cleandoc(command.help).partition("[bold]Examples[/bold]")
    code = textwrap.indent(inspect.cleandoc(examples), "    ")
    return f"{text.strip()}\n\nExamples:\n\n{code}"


def _options(command: Any) -> str:
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(_option(parameter))
    first = panels.pop("", [])
    parts = ["\n".join(first), *(f"{panel}:\n\n" + "\n".join(lines) for panel, lines in panels.items())]
    return "\n\n".join(parts)


def _option(parameter: Any) -> str:
    names = [f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts) if parameter.param_type_name == "option"]
    names.sort(key=len, reverse=True)
    metavar = parameter.metavar or ("" if parameter.param_type_name == "option" else parameter.name.upper())
    value = f" {metavar.strip('[]')}" if metavar and not getattr(parameter, "is_flag", False) else ""
    said = [" ".join((parameter.help or "").split())]
    said += ["Required."] if parameter.required else []
    default = parameter.default
    said += (
        [f"Default: {default}."]
        if isinstance(default, int | float | str) and not isinstance(default, bool) and default
        else []
    )
    said += [f"Environment: {parameter.envvar}."] if parameter.envvar else []
    head = (", ".join(names) + value).strip()
    line = f"- {head}: {' '.join(filter(None, said))}"
    return textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(reference(), end="")
