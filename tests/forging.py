"""Rows of a bank that nobody honest has written, with checksums that are right."""

from __future__ import annotations

import shutil
from pathlib import Path

import lancedb
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from memory3.bank.format.rows import with_checksums


def forge(path, reference_id, **columns):
    """Change columns of a row and make its checksums fit, as whoever makes a bank can."""
    table = lancedb.connect(path).open_table("references-1")
    rows = table.to_arrow()
    values = {name: rows[name].to_pylist() for name in rows.column_names}
    place = values["reference_id"].index(reference_id)
    for name, value in columns.items():
        values[name][place] = value
    if "codes" in columns:
        values["codes_checksum"][place] = xxh3_64_intdigest(columns["codes"])
    arrays = {name: pa.array(values[name], table.schema.field(name).type) for name in rows.column_names}
    batch = with_checksums(arrays, table.schema)
    lancedb.connect(path).create_table("references-1", pa.table(batch), schema=table.schema, mode="overwrite")


def destroy(path):
    """Delete a bank, its files overwritten, so that not even those who have them open can read them any more."""
    for file in Path(path).rglob("*.lance"):
        if file.is_file():
            with file.open("r+b") as opened:
                opened.write(bytes(file.stat().st_size))
    shutil.rmtree(path)
