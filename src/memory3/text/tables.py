"""Where the tables of a text are, and which row heads them. Knows no tokenizer and no format of files.

Two kinds: rows of cells between pipes with a rule below the first (Markdown, Org, psql, grids of reStructuredText), and
lines of tab-separated cells, as the readers write the tables of HTML. Every line is looked at a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Table", "tables"]

#: A line of nothing but the marks of a rule, or the first cell of a line that has a tab.
_CANDIDATE = re.compile(r"^(?:(?P<rule>[ \t>]*+[|+:=\-][|+:=\- \t\r]*+)$|(?P<tabs>[^\t\n]*+\t))", re.MULTILINE)
_MARGIN = " \t\r>"
_CELL_END = re.compile(r"(?<!\\)[|+]")
_PIPE = re.compile(r"(?<!\\)\|")
_RULE_CELL = re.compile(r"\s*:?(?:-++|=++):?\s*")
_AMOUNT = re.compile(r"[-+−$€£]?\s?\d[\d.,  ]*\s?[%€$£]?")
_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
_NUMBER = re.compile(r"\d+")

#: Lines of equal tabs that make a table: the header and two rows.
_LEAST_LINES = 3


@dataclass(frozen=True)
class Table:
    """A table of a text, in character offsets.

    Attributes:
        start: of the header row.
        head: end of the header row's line.
        body: start of the first row below, after a rule where there is one.
        end: of the last row's line.
    """

    start: int
    head: int
    body: int
    end: int


def tables(text: str) -> Iterator[Table]:
    """The tables of a text that have rows below their header, in order, found as they are asked for."""
    position = 0
    while candidate := _CANDIDATE.search(text, position):
        if candidate["rule"] is not None:
            table = _below_rule(text, position, candidate.start(), candidate.end())
            position = table.end if table else _line_end(text, candidate.end())
        else:
            table, position = _of_tabs(text, candidate.start())
        if table:
            yield table


def _line_end(text: str, position: int) -> int:
    """End of the line of a position, its newline included."""
    return text.find("\n", position) + 1 or len(text)


def _below_rule(text: str, earliest: int, rule: int, rule_end: int) -> Table | None:
    """The table whose rule is given, if the line above it has as many cells, between pipes, and a row follows."""
    start = text.rfind("\n", 0, max(rule - 1, 0)) + 1
    above = text[start:rule].strip(_MARGIN + "\n")
    if rule == 0 or start < earliest or "|" not in above:
        return None
    cells = _CELL_END.split(text[rule:rule_end].strip(_MARGIN).strip("|+"))
    if not all(map(_RULE_CELL.fullmatch, cells)) or len(cells) != len(_PIPE.split(_without_frame(above))):
        return None
    body = end = _line_end(text, rule_end)
    while end < len(text):
        line_end = _line_end(text, end)
        if "|" not in text[end:line_end] and not text[end:line_end].strip(_MARGIN + "\n").startswith("+-"):
            break
        end = line_end
    return Table(start, rule, body, end) if end > body else None


def _without_frame(row: str) -> str:
    """A row without the pipes at its ends, of which an escaped one is none."""
    return row[row.startswith("|") : len(row) - (row.endswith("|") and not row.endswith("\\|"))]


def _of_tabs(text: str, start: int) -> tuple[Table | None, int]:
    """The table that begins with a line of tabs, if it is one, and where its lines end."""
    body = end = _line_end(text, start)
    tabs, lines = text.count("\t", start, end), 1
    while end < len(text):
        line_end = _line_end(text, end)
        if text.count("\t", end, line_end) != tabs:
            break
        end, lines = line_end, lines + 1
    if lines < _LEAST_LINES or not _is_header(text[start:body], text[body : _line_end(text, body)]):
        return None, end
    return Table(start, body, body, end), end


def _is_header(line: str, row: str) -> bool:
    """Whether a line names what stands below it.

    Indented code has its tabs in front. The first line of data looks like the next: it begins with a number, a date, a time as
    that does.
    """
    cells = [cell.strip() for cell in line.split("\t")]
    first, below = cells[0], row.split("\t", 1)[0].strip()
    if not below or sum(map(bool, cells)) < 2:
        return False
    columns = zip(cells, (cell.strip() for cell in row.split("\t")), strict=False)
    if any(_AMOUNT.fullmatch(above) and not _YEAR.fullmatch(above) and _AMOUNT.fullmatch(cell) for above, cell in columns):
        return False  # numbers stand below numbers: a row like the others
    return first != below and (not _NUMBER.search(first) or _NUMBER.sub("0", first) != _NUMBER.sub("0", below))
