"""Parquet tables, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import parquet

from memory3.errors import ReadError
from memory3.text.readers.records import from_record
from memory3.text.readers.source import Found, SourceFile

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".parquet",)

#: Rows held at a time.
_ROWS = 64
#: Bytes of the file read ahead per column. Without it a column of a row group is read whole.
_READ_AHEAD = 2**20


def read(file: SourceFile) -> Iterator[Found]:
    """A text per row. Nested columns are left out, for metadata is flat."""
    with file.open() as stream:
        if not stream.read(1):
            return
        stream.seek(0)
        try:
            table = parquet.ParquetFile(stream, buffer_size=_READ_AHEAD, pre_buffer=False)
            flat = [column.name for column in table.schema_arrow if not pa.types.is_nested(column.type)]
            row = 0
            for batch in table.iter_batches(_ROWS, columns=flat, use_threads=False):
                for record in batch.to_pylist():
                    row += 1
                    yield from from_record(file, row, record)
        except ReadError:
            raise
        except (pa.ArrowException, ValueError, OSError) as error:  # pyarrow calls damage an OSError at times
            raise file.error(f"is truncated, damaged or no Parquet file: {error}") from None
