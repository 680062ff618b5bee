"""HTML and XHTML pages: the visible text, with the title as metadata."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from memory3.text.readers.encoding import with_plain_newlines
from memory3.text.readers.grid import Cell, rows_of
from memory3.text.readers.markup import End, Start, Text, attributes_of, events
from memory3.text.readers.source import FoundFile, SourceFile

__all__ = ["SUFFIXES", "read", "read_markup"]

SUFFIXES = (".html", ".htm", ".xhtml")

_UNSEEN = frozenset(
    (
        *("script", "style", "template", "noscript", "svg", "iframe", "object", "canvas", "audio", "video", "noembed"),
        *("noframes", "select", "textarea", "datalist", "annotation", "annotation-xml", "title"),
    )
)
_EMPTY = frozenset(
    ["area", "base", "br", "col", "embed", "frame", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"]
)
_PARAGRAPHS = frozenset(
    (
        *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote", "figure", "hr", "details"),
        *("article", "section", "header", "footer", "main", "nav", "aside", "form", "fieldset"),
    )
)
_LINES = frozenset(["div", "li", "dt", "dd", "tr", "br", "figcaption", "caption", "address", "summary", "legend"])
_BLOCKS = _PARAGRAPHS | _LINES | {"td", "th", "body", "html"}
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_PARAGRAPH = (("p",), ())
#: What the start of an element ends without an end tag: elements of the first kind, unless one of the second was opened
#: between.
_ENDED: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    **dict.fromkeys(_PARAGRAPHS | {"div", "address"}, (_PARAGRAPH,)),
    "li": ((("li",), ("ul", "ol", "menu")), _PARAGRAPH),
    **dict.fromkeys(("dt", "dd"), ((("dt", "dd"), ("dl",)), _PARAGRAPH)),
}
_SECTIONS = {"thead": 0, "tbody": 1, "tfoot": 2}
_SPACE = re.compile(r"[ \t\n\r\f]+")
_HIDING_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)

#: As HTML has it.
_MOST_COLUMNS, _MOST_ROWS = 1000, 65534
#: A table without headers whose cells hold blocks and more characters than this arranges a page.
_LONG_CELL = 500
#: A cell with a heading and more characters than this is a part of a page, and no name of a column.
_LONG_HEADING = 60
#: Digits of a power: 10<sup>6</sup> is no 106.
_POWER = re.compile(r"\s*[-+−]?[0-9]+\s*")
_RAISED = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
#: Tables deeper than this are no data: their texts are not put together again at every level.
_DEEPEST_DATA = 8


def read(file: SourceFile) -> Iterator[FoundFile]:
    """One text per page. A table of data has a line per row, with tabs between its cells."""
    yield read_markup(file.decode(file.read()))


def read_markup(markup: str) -> FoundFile:
    """The visible text of a page, and its title."""
    page = _Page()
    for event in events(with_plain_newlines(markup)):
        page.take(event)
    text, name = page.end()
    return FoundFile(text, {"title": name} if name else {}, markup=markup)


class _Flow:
    """Text written so far, and the separator owed before the next. Parts may be flows' parts in turn, which saves copies."""

    def __init__(self) -> None:
        self.parts: list[str | list] = []
        self.owed = ""
        self.size = 0

    def separate(self, separator: str) -> None:
        self.owed = max(self.owed, separator, key=("", " ", "\t", "\n", "\n\n").index)

    def add(self, part: str | list, size: int) -> None:
        if self.parts:
            self.parts.append(self.owed)
        self.parts.append(part)
        self.owed = ""
        self.size += size

    def write(self, text: str, verbatim: bool) -> None:
        if verbatim:
            if text:
                self.add(text, len(text))
            return
        text = _SPACE.sub(" ", text)
        if text.startswith(" "):
            self.separate(" ")
        if words := text.strip(" "):
            self.add(words, len(words))
        if text.endswith(" "):
            self.separate(" ")

    def text(self) -> str:
        texts: list[str] = []
        open_parts = [iter(self.parts)]  # a stack of our own: tables may nest without bound
        while open_parts:
            part = next(open_parts[-1], None)
            if part is None:
                open_parts.pop()
            elif isinstance(part, str):
                texts.append(part)
            else:
                open_parts.append(iter(part))
        return "".join(texts)


@dataclass(slots=True)
class _Cell:
    flow: _Flow
    columns: int
    rows: int
    has_blocks: bool = False
    has_heading: bool = False


@dataclass
class _Table:
    """A table being read. ``rows`` has for each its section and cells."""

    depth: int
    arranges: bool
    has_headers: bool = False
    section: tuple[int, int] = (1, 0)
    hidden_section: bool = False
    hidden_row: bool = False
    row_is_open: bool = False
    captions: list[_Flow] = field(default_factory=list)
    rows: list[tuple[tuple[int, int], list[_Cell]]] = field(default_factory=list)


@dataclass(slots=True)
class _Open:
    """An open element, and the flow to which the text behind it goes."""

    tag: str
    hides: bool
    flow: _Flow
    table: _Table | None = None
    cell: _Cell | None = None


class _Page:
    """Turns tags and texts into what a reader sees. Every open element is closed once, so its work is linear."""

    def __init__(self) -> None:
        self.flow = _Flow()
        self.title: str | None = None
        self.hidden = self.verbatim = 0
        self.open: list[_Open] = []
        self.places: dict[str, list[int]] = defaultdict(list)  # where in `open` a tag is
        self.blocks: list[int] = []  # where blocks are
        self.limits: list[int] = [-1]  # where tables, cells and captions are: what is within cannot close what is around

    def take(self, event: Start | End | Text) -> None:
        if isinstance(event, Text):
            if event.within == "title" and self.title is None and not self.places["svg"]:
                self.title = _SPACE.sub(" ", event.text).strip()
            if not self.hidden:
                is_power = self.places["sup"] and _POWER.fullmatch(event.text)
                self.flow.write(event.text.translate(_RAISED) if is_power else event.text, bool(self.verbatim))
        elif isinstance(event, Start):
            self._start(event)
        else:
            self._end(event.tag)

    def end(self) -> tuple[str, str]:
        """The text, and the title."""
        self._close_from(0)
        return self.flow.text(), self.title or ""

    def _start(self, event: Start) -> None:
        tag = event.tag
        attributes = attributes_of(event.attributes) if event.attributes else {}
        hides = tag in _UNSEEN or "hidden" in attributes or bool(_HIDING_STYLE.search(attributes.get("style", "")))
        table = self._table()
        if table is not None and (tag in _SECTIONS or tag in ("tr", "td", "th", "caption")):
            self._close_from(self.places["table"][-1] + 1)
            self._start_in_table(table, tag, attributes, hides)
        else:
            for kinds, bounds in _ENDED.get(tag, ()):
                limit = max([self.limits[-1], *(self.places[bound][-1] for bound in bounds if self.places[bound])])
                found = [self.places[kind][-1] for kind in kinds if self.places[kind] and self.places[kind][-1] > limit]
                if found:
                    self._close_from(max(found))
            self._separate(tag)
            if tag == "img" and not self.hidden and (cell := self._cell()) and not cell.flow.size:
                self.flow.write(attributes.get("alt", ""), False)  # a tick or a cross says what the cell does
            if tag not in _EMPTY:
                self._push(_Open(tag, hides, self.flow))
                if tag == "table":
                    arranges = attributes.get("role", "").strip().lower() in ("presentation", "none")
                    self.open[-1].table = _Table(len(self.places["table"]), arranges)
                    self.flow = _Flow()
        if event.closed and tag not in _EMPTY:
            self._end(tag)

    def _start_in_table(self, table: _Table, tag: str, attributes: dict[str, str], hides: bool) -> None:
        if tag in _SECTIONS:
            table.section, table.hidden_section, table.row_is_open = (_SECTIONS[tag], len(table.rows)), hides, False
            table.has_headers |= tag == "thead"
        elif tag == "tr":
            table.rows.append((table.section, []))
            table.row_is_open, table.hidden_row = True, hides
        elif tag == "caption":
            self._push(_Open(tag, hides, self.flow))
            self.flow = _Flow()
            if not self.hidden:
                table.captions.append(self.flow)
                table.has_headers = True
        else:
            if not table.row_is_open:
                self._start_in_table(table, "tr", {}, False)
            cell = _Cell(
                _Flow(), _span(attributes.get("colspan"), _MOST_COLUMNS), _span(attributes.get("rowspan"), _MOST_ROWS, 0)
            )
            self._push(_Open(tag, hides or table.hidden_row or table.hidden_section, self.flow, cell=cell))
            self.flow = cell.flow
            if not self.hidden:
                table.rows[-1][1].append(cell)
                table.has_headers |= tag == "th"

    def _end(self, tag: str) -> None:
        table = self._table()
        if table is not None and (tag in _SECTIONS or tag == "tr"):
            self._close_from(self.places["table"][-1] + 1)
            table.row_is_open = False
            if tag in _SECTIONS:
                table.section, table.hidden_section = (1, len(table.rows)), False
            return
        limit = self.limits[-1]
        if tag in ("td", "th", "caption", "table"):
            limit = (self.places["table"] or [limit])[-1] - (tag == "table")
        elif tag not in _BLOCKS and self.blocks:
            limit = max(limit, self.blocks[-1])
        if self.places[tag] and self.places[tag][-1] > limit:
            self._close_from(self.places[tag][-1])
        else:
            self._separate(tag)

    def _table(self) -> _Table | None:
        return self.open[self.places["table"][-1]].table if self.places["table"] else None

    def _cell(self) -> _Cell | None:
        return self.open[self.limits[-1]].cell if self.limits[-1] >= 0 else None

    def _separate(self, tag: str) -> None:
        separator = "\n\n" if tag in _PARAGRAPHS else "\n" if tag in _LINES else "\t" if tag in ("td", "th") else ""
        if separator and not self.hidden:
            self.flow.separate(separator)
            if cell := self._cell():
                cell.has_blocks |= tag != "br"
                cell.has_heading |= tag in _HEADINGS

    def _push(self, element: _Open) -> None:
        place = len(self.open)
        self.open.append(element)
        self.places[element.tag].append(place)
        if element.tag in _BLOCKS:
            self.blocks.append(place)
        if element.tag in ("table", "caption") or element.cell:
            self.limits.append(place)
        self.hidden += element.hides
        self.verbatim += element.tag == "pre"

    def _close_from(self, place: int) -> None:
        """Close all open elements from a place on."""
        while len(self.open) > place:
            element = self.open.pop()
            self.places[element.tag].pop()
            if element.tag in _BLOCKS:
                self.blocks.pop()
            if element.tag in ("table", "caption") or element.cell:
                self.limits.pop()
            self.verbatim -= element.tag == "pre"
            if element.table is not None:
                stray, self.flow = self.flow, element.flow
                if not self.hidden:
                    self._write_table(element.table, stray)
            elif element.tag == "caption" or element.cell:
                self.flow = element.flow
            self.hidden -= element.hides
            if not element.cell and element.tag != "caption":
                self._separate(element.tag)

    def _write_table(self, table: _Table, stray: _Flow) -> None:
        """Put a finished table where it belongs. What stands in it outside of cells comes before it, as in browsers."""
        if stray.parts:
            self.flow.add(stray.parts, stray.size)
            self.flow.separate("\n")
        for caption in table.captions:
            if caption.parts:
                self.flow.add(caption.parts, caption.size)
                self.flow.separate("\n")
        rows = sorted((row for row in table.rows if row[1]), key=lambda row: row[0][0])  # a head first, a foot last
        cells = [cell for _, row in rows for cell in row]
        outer = self._table()
        if outer is not None and not outer.has_headers:
            outer.arranges = True
        page = not table.has_headers and any(
            cell.flow.size > (_LONG_CELL if not cell.has_heading else _LONG_HEADING) for cell in cells if cell.has_blocks
        )
        if page or table.arranges or table.depth > _DEEPEST_DATA or max((len(row) for _, row in rows), default=0) < 2:
            for cell in cells:
                if cell.flow.parts:
                    self.flow.add(cell.flow.parts, cell.flow.size)
                    self.flow.separate("\n")
            return
        sections: dict[tuple[int, int], list[list[Cell]]] = defaultdict(list)
        for section, row in rows:
            sections[section].append([Cell(_SPACE.sub(" ", c.flow.text()).strip(" "), c.columns, c.rows) for c in row])
        for texts in rows_of(list(sections.values())):
            if any(texts):
                line = "\t".join(texts)
                self.flow.add(line, len(line))
                self.flow.separate("\n")


def _span(value: str | None, most: int, least: int = 1) -> int:
    digits = re.match(r"\s*\+?0*([0-9]{1,6})", value or "1")
    return min(max(int(digits[1]), least), most) if digits else 1
