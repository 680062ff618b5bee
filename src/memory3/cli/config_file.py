"""The file of ``--config``: options of a command as JSON or TOML, by the names they have on the command line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from memory3.files import SMALL_BYTES, parse_json, read_bounded

__all__ = ["as_defaults", "option_names", "read_values"]

_PARAMETER = "--config"


def read_values(path: Path) -> dict[str, Any]:
    """The values of a file: TOML where its name ends so, else JSON. A file that cannot be read is wrong usage."""
    try:
        data = read_bounded(path, SMALL_BYTES)
        values: Any = tomllib.loads(data.decode()) if path.suffix.lower() == ".toml" else parse_json(data)
    except OSError as error:
        raise _wrong(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # of JSON, of TOML, and of bytes that are no UTF-8
        kind = "TOML" if path.suffix.lower() == ".toml" else "JSON, and its name does not end in .toml"
        raise _wrong(f"{path} cannot be read: it is no {kind} ({error})") from None
    if not isinstance(values, dict):
        raise _wrong(f"{path} must hold one object of options and values")
    return values


def option_names(parameters: Sequence[Any]) -> dict[str, Any]:
    """Each name that an option may have in a file, with its parameter: ``max-new-tokens`` and ``max_new_tokens``."""
    named: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.param_type_name == "option" and parameter.expose_value:
            for name in (parameter.name, *(opt.removeprefix("--") for opt in parameter.opts if opt.startswith("--"))):
                named |= {name: parameter, name.replace("-", "_"): parameter}
    return named


def as_defaults(parameters: Sequence[Any], values: Mapping[str, Any], path: str, command: str) -> dict[str, Any]:
    """Values by the parameter of a command, as if they had been written on its command line. Unknown names are wrong usage."""
    named = option_names(parameters)
    found: dict[str, Any] = {}
    for name, value in values.items():
        parameter = named.get(name.removeprefix("--"))
        if parameter is None:
            near = difflib.get_close_matches(name, named, 1)
            helped = "--help-all" if any(p.name == "help_all" for p in parameters) else "--help"
            hint = f"Did you mean {near[0]!r}?" if near else f"`{command} {helped}` lists the options"
            raise _wrong(f"{path}: {name!r} is no option of {command}. {hint}")
        if parameter.name in found:
            raise _wrong(f"{path}: {name!r} is given twice, under two names")
        if value is not None:
            found[parameter.name] = _text(parameter, name, value, path)
    return found


def _text(parameter: Any, name: str, value: Any, path: str) -> Any:
    """A value as the command line would give it: texts, lists of texts, and true or false for a flag."""
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise _wrong(f"{path}: {name!r} is on or off: write true or false, not {value!r}")
        return value
    if parameter.multiple:
        return [_single(name, each, path) for each in (value if isinstance(value, list) else [value])]
    return _single(name, value, path)


def _single(name: str, value: Any, path: str) -> str:
    if isinstance(value, bool | list | dict):
        raise _wrong(f"{path}: {name!r} is one number or one text, not {value!r}")
    return str(value)


def _wrong(text: str) -> typer.BadParameter:
    return typer.BadParameter(text, param_hint=_PARAMETER)
