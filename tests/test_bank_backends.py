"""What a backend promises, for each of them; and a whole bank on each, to the same end."""

from __future__ import annotations

import ast
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from bank_writer import HashingEmbedder, HashingWriter, contents, documents, expected, open_bank, same_memory

from memory3 import bank as bank_package
from memory3.bank import Bank, store, upkeep
from memory3.bank.backends.base import Backend
from memory3.bank.backends.folder import FolderBackend
from memory3.bank.backends.memory import MemoryBackend
from memory3.bank.backends.object_store import ObjectBackend
from memory3.bank.write import pace
from memory3.errors import BankBusy, BankNotFound
from memory3.files import UnsafeFile
from memory3.retention import RetentionPolicy
from memory3.types import Document

SCHEMA = pa.schema([pa.field("n", pa.int64())])


@pytest.fixture(params=["folder", "memory", "objects"])
def backend(request, tmp_path):
    if request.param == "objects":
        return ObjectBackend(request.getfixturevalue("s3").place())
    return FolderBackend(tmp_path / "bank") if request.param == "folder" else MemoryBackend()


@pytest.fixture
def place(backend):
    backend.prepare()
    return backend


# ---- the parts -----------------------------------------------------------------------------------------------------------


def test_nothing_is_there_before_something_is(backend):
    assert (backend.names(), backend.tables(), backend.exists("CURRENT"), backend.is_table("references-1")) == (
        [],
        [],
        False,
        False,
    )
    backend.remove_table("references-1")
    for ask in (backend.read, backend.age):
        with pytest.raises(FileNotFoundError):
            ask("CURRENT")


def test_small_files(place):
    place.write("CURRENT", "references-1\n")
    place.write("policy.json", b"{}")
    assert (place.read("CURRENT"), place.names()) == (b"references-1\n", ["CURRENT", "policy.json"])
    place.write("CURRENT", "été")
    assert place.read("CURRENT") == "été".encode()
    assert -1 < place.age("CURRENT") < 60
    assert place.read("CURRENT", 5) == "été".encode()
    with pytest.raises(UnsafeFile, match="more than 4 bytes"):
        place.read("CURRENT", 4)
    assert [place.append("recalls.jsonl", text) for text in ("one\n", "two\n")] == [4, 8]
    assert place.read("recalls.jsonl") == b"one\ntwo\n"
    assert place.total_bytes() >= 5 + 2 + 8
    place.remove("CURRENT")
    place.remove("CURRENT")
    assert not place.exists("CURRENT")
    place.sweep()
    assert place.names() == ["policy.json", "recalls.jsonl"]


def test_one_writer(place):
    with place.lock(), pytest.raises(BankBusy), place.lock(0.05):
        pytest.fail("two writers")
    with pytest.raises(ZeroDivisionError), place.lock():
        1 / 0  # noqa: B018
    with place.lock():
        pass


def test_tables(place):
    made = place.create_table("references-1", SCHEMA)
    assert (place.tables(), place.names(), place.is_table("references-1")) == (["references-1"], ["references-1.lance"], True)
    first = int(made.version)
    reader = place.open_table("references-1")
    place.open_table("references-1").add(pa.table({"n": [3, 5]}))
    assert (reader.count_rows(), place.open_table("references-1").count_rows()) == (0, 2)
    marks = [place.version_mark("references-1", version) for version in (first, first + 1)]
    assert "" not in marks
    assert marks[0] != marks[1]
    assert marks == [place.version_mark("references-1", version) for version in (first, first + 1)]
    assert list(place.table_faults("references-1")) == []
    assert 0 < place.table_bytes("references-1") <= place.total_bytes() < place.free_bytes()
    assert place.table_bytes("references-1", timedelta(hours=1)) == 0
    place.remove_table("references-1")
    assert (place.names(), place.version_mark("references-1", first)) == ([], "")
    anew = place.create_table("references-1", SCHEMA)
    assert place.version_mark("references-1", int(anew.version)) not in ("", *marks)
    assert place.version_mark("references-1", first) != marks[0]
    assert (place.names(), place.open_table("references-1").count_rows()) == (["references-1.lance"], 0)


def test_places_are_equal_where_they_are_the_same(tmp_path):
    assert FolderBackend(tmp_path / "a") == FolderBackend(f"{tmp_path}/a/")
    assert FolderBackend(tmp_path / "a") != FolderBackend(tmp_path / "b")
    assert MemoryBackend() != MemoryBackend()
    assert len({FolderBackend(tmp_path / "a"), FolderBackend(tmp_path / "a"), MemoryBackend()}) == 2


# ---- a bank on each ------------------------------------------------------------------------------------------------------


def test_a_whole_bank(backend, monkeypatch):
    """Written, changed, deleted from, compacted, searched; large documents, tombstones, staging; opened anew each time."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)
    with pytest.raises(BankNotFound):
        open_bank(backend, create=False)
    large = Document("large", " ".join(f"w{n}" for n in range(70)))
    with open_bank(backend) as bank:
        assert bank.write([*documents(), large]).written == 13
    with open_bank(backend) as bank:
        assert contents(bank) == expected([*documents(), large])
        assert bank.write([*documents(), large]).written == 0
        newer = [Document(d.id, d.text[: len(d.text) // 2], d.source, d.metadata) for d in documents()]
        assert bank.write(newer, prune=True).removed == 1
        assert contents(bank) == expected(newer)
        assert bank.delete("doc3") == 1
    left = [d for d in newer if d.id != "doc3"]
    with open_bank(backend) as bank, open_bank(backend) as reader:
        assert reader.search(["w3 w77"], 3) == bank.search(["w3 w77"], 3)
        bank.compact()
        assert contents(bank) == contents(reader) == expected(left)
        assert bank.verify().ok
        assert bank.info().references == len(expected(left))
    assert Bank.describe(backend).documents == len(left)


def test_a_bank_whose_memories_are_made_when_recalled(backend):
    m3 = HashingWriter()
    with open_bank(backend, m3, write=RetentionPolicy("auto")) as bank:
        bank.write(documents(5))
        first = bank.memories(["doc1#0", "doc2#0"])
    with open_bank(backend, m3) as bank:
        again = bank.memories(["doc1#0", "doc2#0"], use_cache=False)
        assert m3.encoded == 2
        assert all(same_memory(a, b) for a, b in zip(first, again, strict=True))
        assert (bank.policy, bank.recalls()["doc1"]) == (RetentionPolicy("auto"), 2)


def test_a_bank_rebuilt_and_purged(backend, monkeypatch):
    other = HashingWriter(name="other")
    with open_bank(backend) as bank:
        bank.write(documents())
    Bank.rebuild(backend, other, embedder=HashingEmbedder())
    with open_bank(backend, other) as bank:
        assert contents(bank) == expected(documents(), other)
        for module in (store, upkeep):
            monkeypatch.setattr(module, "GRACE", timedelta(0))
        bank.delete("doc1", purge=True)
        assert contents(bank) == expected([d for d in documents() if d.id != "doc1"], other)
    assert backend.tables() == ["references-3"]


def test_two_writers_of_one_bank(backend):
    with open_bank(backend) as bank, backend.lock(), pytest.raises(BankBusy):
        bank.write(documents(1))


# ---- the rest of the bank knows no place ---------------------------------------------------------------------------------

#: Of the file system, of locks, and of Lance's folders.
DISK = {
    "glob",
    "rglob",
    "iterdir",
    "scandir",
    "listdir",
    "replace_file",
    "st_mtime",
    "st_mtime_ns",
    "FileLock",
    "lstat",
    "unlink",
}
FOLDER = Path(bank_package.__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_only_backends_know_the_disk(path):
    if path.parent.name == "backends" or path == FOLDER / "disk.py":  # a device's own cache is no bank's storage
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import) for alias in node.names}
    assert not names & DISK
    text = path.read_text(encoding="utf-8")
    assert "os.replace" not in text
    assert '"_versions"' not in text


@pytest.mark.parametrize("path", sorted((FOLDER / "format").glob("*.py")), ids=lambda path: path.stem)
def test_the_format_is_pure(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {name.split(".")[0] for name in modules} & {"os", "pathlib", "shutil", "tempfile", "lancedb", "filelock"}
    assert not {
        name for name in modules if name.startswith(("memory3.bank.backends", "memory3.bank.store", "memory3.bank.snapshot"))
    }


def test_backends_fulfil_the_whole_interface():
    for kind in (FolderBackend, MemoryBackend, ObjectBackend):
        assert issubclass(kind, Backend)
        assert not kind.__abstractmethods__
