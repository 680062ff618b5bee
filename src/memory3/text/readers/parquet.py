"""Parquet tables, read batch by batch.

Text, numbers and booleans are taken as they are; dates and times become ISO 8601 text (instants in UTC), decimals their
digits, UUIDs their usual form. Columns of any other type are left out and reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pyarrow import parquet

from memory3.errors import ReadError
from memory3.text.readers.records import TEXT_FIELDS, from_record
from memory3.text.readers.source import FoundFile, SourceFile

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".parquet",)

#: Rows held at a time.
_ROWS = 64
#: Bytes of the file read ahead per column. Without it a column of a row group is read whole.
_READ_AHEAD = 2**20
#: Values of a column, as they become text or metadata.
_Told = Callable[[pa.Array], Sequence[object]]
_ZEROS = re.compile(r"(\.\d*?)0+(?=Z?$)")


def read(file: SourceFile) -> Iterator[FoundFile]:
    """A text per row."""
    with file.open() as stream:
        if not stream.read(1):
            return
        stream.seek(0)
        try:
            table = parquet.ParquetFile(stream, buffer_size=_READ_AHEAD, pre_buffer=False)
            columns = _columns(file, table.schema_arrow)
            row = 0
            for batch in table.iter_batches(_ROWS, columns=list(columns), use_threads=False):
                # Asked for "a.b", pyarrow also gives the field b of a struct a.
                kept = [i for i, name in enumerate(batch.schema.names) if name in columns]
                names = [batch.schema.names[i] for i in kept]
                values = [columns[name](batch.column(i)) for i, name in zip(kept, names, strict=True)]
                for cells in zip(*values, strict=True) if values else ():
                    row += 1
                    yield from from_record(file, row, dict(zip(names, cells, strict=True)))
        except ReadError:
            raise
        except (pa.ArrowException, ValueError, OverflowError, OSError) as error:  # pyarrow calls damage an OSError at times
            raise file.error(f"is truncated, damaged or no Parquet file: {error}") from None


def _columns(file: SourceFile, schema: pa.Schema) -> dict[str, _Told]:
    """How the values of each column are told, by its name."""
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise file.error(f"has {Counter(schema.names)[twice[0]]} columns called {twice[0]!r}: rename them")
    told = {column.name: _told(column.type) for column in schema}
    wanted, id_field = file.options.text_field, file.options.id_field
    texts = [name for name in ((wanted,) if wanted else TEXT_FIELDS) if name in told]
    needed = (texts[:1] if not any(told[name] for name in texts) else []) + ([id_field] if id_field in told else [])
    for name in needed:
        if told[name] is None:
            raise file.error(
                f"the column {name!r} holds {schema.field(name).type}, which is no text: name another, or convert it"
            )
    for name, values in told.items():
        if values is None:
            file.report(f"the column {name!r} is left out: metadata cannot hold {schema.field(name).type}")
    if told and not any(told.values()):
        raise file.error(f"has no column of text: it holds {str(schema.remove_metadata())[:500]}")
    return {name: values for name, values in told.items() if values is not None}


def _told(type_: pa.DataType) -> _Told | None:
    """How values of a type are told; None: not at all."""
    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        if type_.extension_name == "arrow.uuid":
            return lambda array: [None if value is None else str(value) for value in array.to_pylist()]
        inner = _told(type_.storage_type)
        return inner and _after(lambda array: array.storage, inner)
    if types.is_dictionary(type_):
        inner = _told(type_.value_type)
        return inner and _after(pa.DictionaryArray.dictionary_decode, inner)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return pa.Array.to_pylist
    if types.is_boolean(type_) or types.is_integer(type_) or types.is_floating(type_) or types.is_null(type_):
        return pa.Array.to_pylist
    if types.is_timestamp(type_) and type_.tz:
        return lambda array: _iso(array.cast(pa.timestamp(type_.unit, "UTC")))
    if types.is_date(type_) or types.is_time(type_) or types.is_timestamp(type_):
        return _iso
    if types.is_decimal(type_):
        return lambda array: array.cast(pa.string()).to_pylist()
    return None


def _after(first: Callable[[pa.Array], pa.Array], then: _Told) -> _Told:
    return lambda array: then(first(array))


def _iso(array: pa.Array) -> list[str | None]:
    """ISO 8601, without zeros that say nothing. (Not by way of Python's types, which end at microseconds and the year
    9999.)
    """

    def shortened(value: str) -> str:
        return _ZEROS.sub(lambda found: found[1].rstrip("."), value.replace(" ", "T")) if value[0] != "<" else value

    return [value and shortened(value) for value in array.cast(pa.string()).to_pylist()]
