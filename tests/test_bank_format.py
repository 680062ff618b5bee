"""The format as docs/bank-format.md tells it: its reader works, its sizes and its checksum are right."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pytest
from bank_writer import SHAPE, HashingWriter, documents, expected, open_bank
from xxhash import xxh3_64_intdigest

from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.rows import BankRow, row_batch, row_schema
from memory3.types import Reference

DOCUMENT = (Path(__file__).parents[1] / "docs" / "bank-format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a bank named "bank" lies."""
    folder = tmp_path_factory.mktemp("format")
    with open_bank(folder / "bank") as bank:
        bank.write(documents())
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return lancedb.connect(folder / "bank").open_table("references-1")


def test_the_reader_in_the_document_works(folder):
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    m3 = HashingWriter()
    for line in lines:
        id_ = line.split()[0]
        reference = expected(documents())[id_][0]
        pairs = int(m3.memory(reference).counts.sum())
        assert line == f"{id_} {reference.text!r} {pairs} ({pairs}, 5) ({pairs}, 5)"


def test_the_columns_in_the_document_are_those_of_the_table(table):
    cells = [
        line.split("|")[1]
        for line in DOCUMENT.split("## Columns")[1].split("## Raw record")[0].splitlines()
        if line[:3] == "| `"
    ]
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == table.schema.names


def test_the_manifest(table):
    manifest = json.loads(table.schema.metadata[b"memory3"])
    assert sorted(table.schema.metadata) == [b"memory3", b"memory3.table_id"]
    assert len(bytes.fromhex(table.schema.metadata[b"memory3.table_id"].decode())) == 16
    assert manifest == {
        "format_version": 1,
        "model": "hashing",
        "config": {name: value for name, value in HashingWriter().config.to_dict().items() if name != "codec"},
        "shape": {"layers": [1, 4, 6], "kv_heads": 2, "head_dim": 5, "pairs": 7, "dtype": "float16"},
        "fingerprint": HashingWriter().fingerprint,
        "embedder": "hashing",
        "dimension": 11,
        "codec": "raw",
    }
    assert table.schema.field("codes").type.byte_width == 166 == 2 * 6 + 2 * 7 + 2 * 2 * 7 * 5
    assert SHAPE.pairs == 7


def test_the_checksum_as_the_document_says(table):
    for row in table.search().limit(None).to_list():
        pieces = [row["reference_id"].encode(), row["document_id"].encode()]
        pieces += [struct.pack("<q", row[name]) for name in ("ordinal", "start", "end")]
        pieces += [row["source"].encode(), row["text"].encode()]
        pieces += [struct.pack(f"<{len(row['token_ids'])}i", *row["token_ids"]), row["metadata"].encode()]
        pieces += [json.dumps(list(row["tags"])).encode(), row["content_hash"].encode()]
        pieces += [struct.pack("<q", row["document_references"]), struct.pack("<11f", *row["embedding"])]
        pieces += [struct.pack("<Q", row["codes_checksum"])]
        assert row["codes_checksum"] == xxh3_64_intdigest(row["codes"])
        assert row["checksum"] == xxh3_64_intdigest(b"".join(struct.pack("<Q", len(p)) + p for p in pieces))


def test_a_frozen_row():
    """Checksums must not change with a release, or every bank would look damaged."""
    reference = Reference("d#0", "d", 0, 0, 5, "été 🙂", (7, 300), "s", {"b": True, "y": 2020})
    schema = row_schema(BankManifest.of(HashingWriter(), "hashing", 3))
    batch = row_batch([BankRow(reference, "abc", 1)], np.array([[0.0, 0.6, 0.8]]), [bytes(range(166))], schema)
    row = batch.to_pylist()[0]
    assert (row["metadata"], row["tags"]) == ('{"b": true, "y": 2020}', ['["b", true]', '["y", 2020]'])
    assert (row["codes_checksum"], row["checksum"]) == (10875658643950346810, 2710254850190877048)
