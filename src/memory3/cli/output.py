"""What commands print: results on stdout, messages on stderr.

Names, texts and messages may come from a stranger's documents, models and folders. Whatever reaches a terminal goes
through `printable` in the two consoles made here, whoever prints it: control characters are shown rather than obeyed,
and no text is read as markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from memory3.bank.trust import Advice

__all__ = [
    "count",
    "duration",
    "err",
    "facts",
    "first_line",
    "message",
    "out",
    "print_json",
    "printable",
    "size",
    "tell_advice",
]

#: Control characters but newline and tab; what turns the direction of writing; line ends that are none to us; halves of
#: surrogate pairs.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u206f\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)


class _Status(Status):
    """A status whose text is text, no markup."""

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(_as_text(status) if isinstance(status, str) else status, **options)


class SafeConsole(Console):
    """A console on which no text steers the terminal: everything that is drawn, in tables and bars too, is `printable`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As a console does it, its texts made `printable`; rich's own movements of the cursor are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As a console's; text is no markup."""
        return _Status(_as_text(status) if isinstance(status, str) else status, console=self, **options)


def _as_text(text: str) -> Text:
    return Text(printable(text))


out = SafeConsole()
err = SafeConsole(stderr=True)


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON document of a command, in ASCII so that no terminal encoding can break it."""
    print(json.dumps(value, indent=2))


def message(text: str, *, kind: str = "", style: str = "") -> None:
    """One line for people, on stderr, such as ``error: no bank at ...``."""
    line = Text(printable(text))
    if kind:
        line = Text.assemble((f"{kind}: ", style), line)
    err.print(line, soft_wrap=True)


def tell_advice(advice: Advice) -> None:
    """A line on stderr: what was found of memories, or that nothing was; loud where they should not be used.

    Args:
        advice: of a bank.
    """
    if advice.refuted:
        message(advice.text, kind="warning", style="bold red")
    else:
        message(advice.text, kind="note", style="yellow")


def printable(text: str) -> str:
    """``text`` with what would steer a terminal made visible.

    That is control characters other than newline and tab, and turns of the direction of writing.
    """
    return _CONTROL.sub(_shown, text.replace("\r\n", "\n"))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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
