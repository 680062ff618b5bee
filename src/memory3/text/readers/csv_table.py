"""Tables of comma- or tab-separated values. Every cell is text: CSV has no types, and guesses would change from file to file."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import csv

from memory3.text.readers.records import from_record
from memory3.text.readers.source import Found, SourceFile, megabytes

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".csv", ".tsv")

#: Bytes parsed at a time, and so the longest row.
_BLOCK = 16 * 2**20
#: Bytes from which encoding and delimiter are told.
_SAMPLE = 64 * 2**10


def read(file: SourceFile) -> Iterator[Found]:
    """A text per row below the header line."""
    with file.open() as stream:
        sample = stream.read(_SAMPLE)
    if not sample.strip():
        return
    encoding = file.encoding_of(sample[: sample.rfind(b"\n") + 1] or sample)
    encoding = "utf-8" if encoding == "utf-8-sig" else encoding  # pyarrow drops the mark, and takes damaged UTF-8 only so
    header = sample.decode(encoding, "replace").lstrip("\ufeff\r\n").splitlines()[0]
    delimiter = "\t" if file.kind == ".tsv" else max(",;\t|", key=header.count)
    try:
        with file.open() as stream:
            names = _open(stream, encoding, delimiter).schema.names
        if len(set(names)) < len(names):
            raise file.error(f"two columns have the same name in the header {header[:200]!r}")
        with file.open() as stream:
            row = 0
            for batch in _open(stream, encoding, delimiter, names):
                for cells in batch.to_pylist():
                    row += 1
                    yield from from_record(file, row, {name: _text(file, row, cell) for name, cell in cells.items()})
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise file.error(
            f"is not a table of values separated by {delimiter!r}, with a header line and rows up to {megabytes(_BLOCK)}: {error}"
        ) from None


def _open(stream: object, encoding: str, delimiter: str, columns: list[str] | None = None) -> csv.CSVStreamingReader:
    return csv.open_csv(
        stream,
        # One thread: errors then name their row.
        csv.ReadOptions(use_threads=False, block_size=_BLOCK, encoding=encoding),
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # Bytes: damaged UTF-8 in one cell must not end the reading.
        csv.ConvertOptions(check_utf8=False, column_types=dict.fromkeys(columns or (), pa.binary())),
    )


def _text(file: SourceFile, row: int, cell: bytes) -> str:
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError:
        file.report("read, but damaged places became U+FFFD", row)
        return cell.decode("utf-8", "replace")
