"""Values separated by a delimiter: from lines to records. What a file's dialect is, is not decided here."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["BadRecord", "Dialect", "Record", "best_delimiter", "records"]

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Dialect:
    """How records are written.

    Attributes:
        delimiter: what stands between cells.
        quotes: a cell that begins with ``"`` goes on to the next single ``"``, over delimiters and line ends (RFC 4180).
        escapes: a backslash takes its meaning from a quote, a backslash, a delimiter and a line end (MySQL, BigQuery, Spark);
            before anything else it is itself.
        blanks: blanks around a cell are not part of it.
    """

    delimiter: str
    quotes: bool = True
    escapes: bool = False
    blanks: bool = False


class Record(NamedTuple):
    """Cells, the number of the line they begin in, the lines themselves where they are several, and which of
    several cells between tabs were quoted."""

    line: int
    cells: list[str]
    lines: list[str]
    quoted: list[int]


class BadRecord(ValueError):
    """A record that cannot be read for sure.

    Attributes:
        line: where it begins.
        is_cut: whether the lines ended inside it.
    """

    def __init__(self, line: int, reason: str, is_cut: bool = False) -> None:
        super().__init__(reason)
        self.line = line
        self.is_cut = is_cut


def records(lines: Iterable[str], dialect: Dialect, longest: int) -> Iterator[Record]:
    """Records of lines that keep their ends. Empty lines are passed over. Time and memory are linear in a record's length.

    Args:
        lines: with their ends.
        dialect: how cells are separated and quoted.
        longest: characters a record may have.

    Raises:
        BadRecord: a quoted cell never closes, or goes on behind its closing quote; more than ``longest`` characters.
    """
    scan = _Scanner(dialect)
    number, begun, size = 0, 0, 0
    open_lines: list[str] = []
    for number, line in enumerate(lines, start=1):
        begun, size = (begun, size + len(line)) if scan.is_open else (number, len(line))
        if size > longest:
            unclosed = ". A quote opens in it and does not close" if scan.is_open else ""
            raise BadRecord(begun, f"has more than {longest:,} characters{unclosed}")
        if not scan.is_open and not line.strip("\r\n"):
            continue
        try:
            complete = scan.take(line)
        except ValueError as error:
            raise BadRecord(begun, str(error)) from None
        if scan.is_open or open_lines:
            open_lines.append(line)
        if complete:
            yield Record(begun, scan.cells, open_lines, scan.quoted)
            open_lines = []
    if scan.is_open:
        raise BadRecord(begun, 'has a cell that opens with " and never closes', is_cut=True)


class _Scanner:
    """Cells of one record at a time, from line to line."""

    def __init__(self, dialect: Dialect) -> None:
        delimiter = re.escape(dialect.delimiter)
        blank = " *" if dialect.blanks else ""
        self._dialect = dialect
        self._opening = re.compile(f'{blank}"')
        self._inside = re.compile(r'(?:[^"\\]++|\\.?|"")*+' if dialect.escapes else r'(?:[^"]++|"")*+', re.DOTALL)
        self._closing = re.compile(f'"{blank}(?={delimiter}|[\r\n]|\\Z)')
        self._bare = re.compile(rf"(?:[^{delimiter}\\\r\n]++|\\[^\r\n]?)*+" if dialect.escapes else rf"[^{delimiter}\r\n]*+")
        self._escaped = re.compile(rf'\\(["\\{delimiter}\r\n])|""' if dialect.escapes else '""')
        self._is_plain = dialect.quotes and not dialect.escapes and not dialect.blanks and dialect.delimiter != "\t"
        self._special = ('"' if dialect.quotes else "") + ("\\" if dialect.escapes else "")
        self._parts: list[str] = []
        self.is_open = False
        self.cells: list[str] = []
        self.quoted: list[int] = []

    def take(self, line: str) -> bool:
        """Read on; whether the record ends with this line. ValueError: text behind a closing quote."""
        at = 0
        if not self.is_open:
            self.cells, self.quoted = [], []
            if not any(character in line for character in self._special):
                cells = line.rstrip("\r\n").split(self._dialect.delimiter)
                self.cells = [cell.strip(" ") for cell in cells] if self._dialect.blanks else cells
                return True
            if self._is_plain and len(line) < csv.field_size_limit():  # the same, but faster, for a record of one line
                with suppress(csv.Error, StopIteration):
                    self.cells = next(csv.reader([line], delimiter=self._dialect.delimiter, strict=True))
                    return True
        while True:
            if not self.is_open and self._dialect.quotes and (found := self._opening.match(line, at)):
                self.is_open, self._parts, at = True, [], found.end()
            if self.is_open:
                found = self._inside.match(line, at)
                assert found is not None
                self._parts.append(found[0])
                at = found.end()
                if at == len(line):
                    return False
                if not (found := self._closing.match(line, at)):
                    raise ValueError(
                        f'has a cell that opens with " and goes on behind the next one: {line[at : at + 20].strip()}'
                    )
                self.is_open, at = False, found.end()
                self.quoted.append(len(self.cells))
                self.cells.append(self._escaped.sub(self._meant, "".join(self._parts)))
            else:
                found = self._bare.match(line, at)
                assert found is not None
                at = found.end()
                cell = self._escaped.sub(self._meant_bare, found[0]) if self._dialect.escapes else found[0]
                self.cells.append(cell.strip(" ") if self._dialect.blanks else cell)
            if not line.startswith(self._dialect.delimiter, at):
                return True
            at += 1

    def _meant(self, found: re.Match[str]) -> str:
        return (found[1] if self._dialect.escapes else None) or '"'

    def _meant_bare(self, found: re.Match[str]) -> str:
        return found[1] or found[0]


def best_delimiter(sample: list[str], names: frozenset[str], longest: int) -> str:
    """The delimiter that makes a table of the first lines of a file.

    In this order: it makes several columns; known names among them; records of as many cells as there are columns; many
    columns. A comma where none makes columns.

    Args:
        sample: whole lines, of which the last record may be cut off.
        names: column names to look for, in lower case.
        longest: of records, in characters.
    """

    def merit(delimiter: str) -> tuple[bool, bool, float, int]:
        readings = (_sampled(sample, Dialect(delimiter, escapes=escapes, blanks=True), longest) for escapes in (False, True))
        rated = max(readings, key=_share)
        columns = [cell.strip(" \t\ufeff").lower() for cell in rated[0]] if rated else []
        return (
            (True, not names.isdisjoint(columns), _share(rated), len(columns)) if len(columns) > 1 else (False, False, 0.0, 0)
        )

    return max(DELIMITERS, key=merit)


def _sampled(sample: list[str], dialect: Dialect, longest: int) -> list[list[str]]:
    """Records of the sample; an empty one where it cannot be read on."""
    found: list[list[str]] = []
    try:
        found.extend(record.cells for record in records(sample, dialect, longest))
    except BadRecord as error:
        if not error.is_cut:
            found.append([])
    return found


def _share(found: list[list[str]]) -> float:
    """Share of records that have as many cells as the first."""
    return sum(len(cells) == len(found[0]) for cells in found) / len(found) if found and found[0] else 0.0
