"""The cells of an HTML table, each under its column. Knows no markup."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cell", "rows_of"]

#: Cells of the grid, and characters repeated in it, per cell and character of the table: beyond, spans are left alone.
_MOST = 16
_AT_LEAST = 10_000


@dataclass(frozen=True)
class Cell:
    """Text of one line, over so many columns and rows; ``rows`` 0: all that follow in its section."""

    text: str
    columns: int = 1
    rows: int = 1


def rows_of(sections: Sequence[Sequence[Sequence[Cell]]]) -> list[list[str]]:
    """The texts of every row, column by column. A cell over several columns or rows stands in each; one over all columns once.

    Columns in which no cell begins are left out. A table whose spans would make it many times larger is given cell by cell.
    """
    rows = [row for section in sections for row in section]
    cells = sum(map(len, rows))
    placed = _placed(sections, _MOST * cells + _AT_LEAST)
    if placed is not None:
        starts = sorted({start for row in placed for start, _, _ in row})
        characters = sum(len(cell.text) for row in rows for cell in row)
        grid = [[(bisect_left(starts, start), bisect_left(starts, end), cell) for start, end, cell in row] for row in placed]
        size = sum(last - first for row in grid for first, last, _ in row)
        repeated = sum((last - first) * len(cell.text) for row in grid for first, last, cell in row)
        if size <= _MOST * cells + _AT_LEAST and repeated <= _MOST * characters + _AT_LEAST:
            return [_texts(row, len(starts)) for row in grid]
    return [[cell.text for cell in row] for row in rows]


def _placed(sections: Sequence[Sequence[Sequence[Cell]]], most: int) -> list[list[tuple[int, int, Cell]]] | None:
    """For each row its cells with their first column and the column behind their last; None where they are more than
    ``most``.
    """
    placed: list[list[tuple[int, int, Cell]]] = []
    count = 0
    for section in sections:
        open_cells: list[tuple[int, int, Cell, int]] = []  # and the first row below the cell
        for number, row in enumerate(section):
            count += len(open_cells) + len(row)
            if count > most:
                return None
            above = [(start, end, cell) for start, end, cell, below in open_cells]
            line: list[tuple[int, int, Cell]] = []
            column = taken = 0
            for cell in row:
                while taken < len(above) and above[taken][0] <= column:
                    column = max(column, above[taken][1])
                    taken += 1
                end = column + cell.columns
                if taken < len(above):
                    end = min(end, above[taken][0])
                line.append((column, end, cell))
                below = len(section) if cell.rows == 0 else number + cell.rows
                open_cells.append((column, end, cell, below))
                column = end
            placed.append(sorted(above + line, key=lambda place: place[0]))
            open_cells = sorted((cell for cell in open_cells if cell[3] > number + 1), key=lambda place: place[0])
    return placed


def _texts(row: Sequence[tuple[int, int, Cell]], columns: int) -> list[str]:
    texts: list[str] = []
    for first, last, cell in row:
        texts += [""] * (first - len(texts))
        over_all = columns > 1 and (first, last) == (0, columns)
        texts += [cell.text, *[""] * (columns - 1)] if over_all else [cell.text] * (last - first)
    return texts
