"""What commands print: results on stdout, messages on stderr.

Texts of documents and models are printed as they are, except that control characters are shown rather than obeyed: a document
must not be able to steer the terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["count", "duration", "err", "facts", "first_line", "message", "out", "print_json", "printable", "size"]

out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON document of a command, in ASCII so that no terminal encoding can break it."""
    print(json.dumps(value, indent=2))


def message(text: str, *, kind: str = "", style: str = "") -> None:
    """One line for people, on stderr, such as ``error: no bank at ...``."""
    line = Text(printable(text))
    if kind:
        line = Text.assemble((f"{kind}: ", style), line)
    err.print(line, soft_wrap=True)


def printable(text: str) -> str:
    """``text`` with control characters other than newline and tab made visible."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((printable(line.strip()) for line in text.splitlines() if line.strip()), "")


def facts(rows: Mapping[str, str]) -> Table:
    """A table of names and values without borders."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(printable(value)))
    return table


def count(number: int, one: str, many: str = "") -> str:
    """``1 document``, ``2,000 documents``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(number: float) -> str:
    """Bytes as people say them: ``181.4 MB``."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def duration(seconds: float) -> str:
    """``0.21 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
