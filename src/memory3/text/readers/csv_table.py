"""Tables of separated values. Every cell is text: CSV has no types, and guesses would change from file to file.

What a file does not say of itself is told from the whole of it: the first dialect that reads all its rows, each with a
cell for every column. Where none does, the row at which the best one fails is an error: its cells are not known for sure.
"""

from __future__ import annotations

import io
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from memory3.text.readers.delimited import BadRecord, Dialect, Record, best_delimiter, records
from memory3.text.readers.records import ID_FIELDS, TEXT_FIELDS, from_record
from memory3.text.readers.source import FoundFile, SourceFile

__all__ = ["SUFFIXES", "read"]

#: Values between tabs have no quotes (IANA text/tab-separated-values), yet some programs write them.
_TABS = ".tsv"
SUFFIXES = (".csv", _TABS)

#: Bytes from which the encoding is told, and characters from which the delimiter is.
_SAMPLE = 64 * 2**10
_MOST_COLUMNS = 2**20
#: The first line Excel reads as the name of the delimiter.
_SEP = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
#: Bytes that do not fit the encoding, as Python's surrogateescape has them.
_DAMAGED = re.compile("[\udc80-\udcff]")


def read(file: SourceFile) -> Iterator[FoundFile]:
    """A text per row below the header line."""
    sample = _sample(file)
    if not sample.strip():
        return
    encoding = file.encoding_of(sample)
    try:
        table = _Table(file, encoding)
        dialect = table.dialect()
        names: list[str] = []
        for row, record in table.rows(dialect):
            if row == 0:
                names = _names(file, record)
                continue
            if _may_be_several(record, dialect.delimiter, len(names)):
                file.report_once(
                    "is read as one row, but its lines may be rows of their own: see the quote it opens with", row
                )
            yield from from_record(file, row, dict(zip(names, _cells(file, row, record), strict=True)))
    except BadRecord as error:
        raise file.error(f"{error}: mend it, or save the table anew, as CSV with quotes where they are needed") from None
    except UnicodeDecodeError as error:
        raise file.error(f"begins as {encoding}, but is not: {error}") from None


def _sample(file: SourceFile) -> bytes:
    """Whole lines to tell the encoding from: the first ones, and from the rest of the file those beyond ASCII."""
    with file.open() as stream:
        head = stream.read(_SAMPLE)
        if b"\0" in head:  # characters of two or four bytes, whose line breaks are no single byte
            return head[: len(head) // 4 * 4 or None]
        end = head.rfind(b"\n") + 1
        sample, line = head[:end], head[end:] + stream.readline(file.options.max_bytes)
        room = _SAMPLE
        while line and room > 0:
            if not sample or not line.isascii():
                sample += line
                room -= len(line)
            line = stream.readline(file.options.max_bytes)
    return sample


class _Scan(NamedTuple):
    """What a whole file looks like in a dialect: the line of the first bad record, and how many good ones stand before it.

    The rest tells whether quotes are meant as such: whether all names of the header stand in quotes; cells that do; doubled
    quotes inside them; cells with a quote inside, but not around them.
    """

    fault: int | None
    rows: int
    header: bool
    quoted: bool
    doubled: bool
    bare: bool


class _Table:
    """A file whose encoding is known and whose dialect is not."""

    def __init__(self, file: SourceFile, encoding: str) -> None:
        self._file = file
        self._encoding = encoding
        self._longest = file.options.max_bytes
        self._sep: re.Match[str] | None = None
        self._sep = _SEP.fullmatch(next(self.lines(), "").strip())

    def lines(self) -> Iterator[str]:
        """Lines with their ends, Excel's first one without its content. A line over the limit comes in pieces."""
        with (
            self._file.open() as stream,
            io.TextIOWrapper(stream, self._encoding, errors="surrogateescape", newline="") as text,
        ):
            if self._sep:
                text.readline()
                yield "\n"
            while line := text.readline(self._longest + 1):
                yield line

    def rows(self, dialect: Dialect) -> Iterator[tuple[int, Record]]:
        """Records and their numbers, the header being 0. BadRecord, with the row in its message: one that is not sure."""
        row, columns = 0, 0
        try:
            for record in records(self.lines(), dialect, self._longest):
                width = len(record.cells)
                columns = columns or width
                if width == 1 < columns and not record.cells[0].strip():
                    continue
                if width != columns:
                    counted = f"{width:,} cell{'s' if width > 1 else ''}, the header {columns:,}"
                    raise BadRecord(record.line, f"has {counted} (values between {dialect.delimiter!r})")
                if "\0" in "".join(record.cells):
                    raise BadRecord(record.line, "holds a NUL")
                yield row, record
                row += 1
        except BadRecord as error:
            place = f"row {row} (line {error.line})" if row else f"the header (line {error.line})"
            raise BadRecord(error.line, f"{place} {error}") from None

    def dialect(self) -> Dialect:
        """The likeliest that reads the whole file, else the one that reads most of it."""
        if self._file.kind == _TABS:
            return self._dialect_of_tabs()
        sample = list(_first(self.lines(), _SAMPLE))
        delimiter = self._sep[1] if self._sep else self._best_delimiter(sample)
        header = next((line for line in sample if line.strip()), "").split(delimiter)
        blanks = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
        likeliest = Dialect(delimiter, blanks=blanks)
        fault = self._fault(likeliest)
        if fault is None:
            return likeliest
        faults = [(fault, likeliest)]
        blank_quote, escaped_quote = re.compile(rf'{re.escape(delimiter)} +"'), re.compile(r'\\"')
        others = [(blank_quote, False, not blanks), (escaped_quote, True, blanks), (escaped_quote, True, not blanks)]
        for sign, escapes, blanks in others:
            if any(map(sign.search, self.lines())):
                candidate = Dialect(delimiter, escapes=escapes, blanks=blanks)
                fault = self._fault(candidate)
                if fault is None:
                    return candidate
                faults.append((fault, candidate))
        return max(faults, key=lambda pair: pair[0])[1]

    def _fault(self, dialect: Dialect) -> int | None:
        """The line of the first bad record."""
        try:
            deque(self.rows(dialect), maxlen=0)
        except BadRecord as error:
            return error.line
        return None

    def _best_delimiter(self, sample: list[str]) -> str:
        options = self._file.options
        known = {*TEXT_FIELDS, *ID_FIELDS, options.text_field, options.id_field} - {None, ""}
        return best_delimiter(sample, frozenset(str(name).strip().lower() for name in known), self._longest)

    def _dialect_of_tabs(self) -> Dialect:
        plain, quoting = Dialect("\t", quotes=False), Dialect("\t")
        with_quotes = self._scan(quoting)
        if with_quotes.fault is not None or not with_quotes.quoted:
            return plain
        without = self._scan(plain)
        are_doubled = with_quotes.doubled and not with_quotes.bare and with_quotes.rows == without.rows
        if without.fault is not None or with_quotes.header or are_doubled:
            return quoting
        self._file.report("has cells in quotes, which are kept: tab-separated values have no quotes. Save as CSV to lose them")
        return plain

    def _scan(self, dialect: Dialect) -> _Scan:
        rows, fault, header, quoted, doubled, bare = 0, None, False, False, False, False
        try:
            for row, record in self.rows(dialect):
                rows = row
                header = header or (row == 0 and len(record.quoted) == len(record.cells))
                quoted = quoted or bool(record.quoted)
                inside = sum('"' in record.cells[i] for i in record.quoted)
                doubled = doubled or (inside > 0 and not record.lines)
                bare = bare or sum('"' in cell for cell in record.cells) > inside
        except BadRecord as error:
            fault = error.line
        return _Scan(fault, rows, header, quoted, doubled, bare)


def _first(lines: Iterator[str], characters: int) -> Iterator[str]:
    """Lines up to so many characters, and at least one with something in it."""
    is_first = True
    for line in lines:
        characters -= len(line)
        if characters < 0 and not is_first:
            return
        is_first = is_first and not line.strip()
        yield line


def _names(file: SourceFile, header: Record) -> list[str]:
    """Names of the columns, without blanks around them. Those without a name are numbered; two of one name are an error."""
    if len(header.cells) > _MOST_COLUMNS:
        raise file.error(f"has {len(header.cells):,} columns, the limit is {_MOST_COLUMNS:,}")
    names = [name.strip(" \t\r\n\ufeff\xa0") for name in header.cells]
    if unnamed := [number for number, name in enumerate(names, start=1) if not name]:
        shown = ", ".join(map(str, unnamed[:10])) + (", ..." if len(unnamed) > 10 else "")
        file.report(f"has columns without a name, which are called by their number: {shown}")
        names = [name or f"column {number}" for number, name in enumerate(names, start=1)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        places = [number for number, name in enumerate(names, start=1) if name == twice[0]]
        raise file.error(f"columns {' and '.join(map(str, places[:5]))} have the same name, {twice[0][:100]!r}: rename one")
    return names


def _cells(file: SourceFile, row: int, record: Record) -> list[str]:
    """Cells of a row, damaged places replaced."""
    if not _DAMAGED.search("".join(record.cells)):
        return record.cells
    file.report("read, but damaged places became U+FFFD", row)
    return [_DAMAGED.sub("\ufffd", cell) for cell in record.cells]


def _may_be_several(record: Record, delimiter: str, columns: int) -> bool:
    """Whether the lines of a record look like rows, so that a quote may have swallowed them."""
    if columns == 1 or not record.lines:
        return False
    counts = [line.count(delimiter) for line in record.lines]
    # Commas and semicolons are common in prose.
    return set(counts) == {columns - 1} if delimiter in ",;" else any(count >= columns - 1 for count in counts[1:])
