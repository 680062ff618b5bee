"""A bank's folder from a stranger: nothing in it leads out of it, hangs, takes all memory or ends the process. And what is deleted is gone."""

import dataclasses
import enum
import json
import os
import shutil
from datetime import timedelta

import codebooks
import lancedb
import numpy as np
import pytest
from bank_writer import HashingEmbedder, HashingWriter, contents, expected, open_bank
from memory3.bank import Bank, upkeep, writing
from memory3.bank import store as store_module
from memory3.bank.faults import reading
from memory3.bank.folder import deletion_faults
from memory3.codec import CodeBook, CodedCodec
from memory3.errors import BankCorrupt, BankError, InputError, Memory3Error
from memory3.files import UnsafeFile, append, parse_json, read_bounded, write_atomically
from memory3.policy import WritePolicy
from memory3.values import Document

DOCUMENTS = [Document("one", "iron copper tin lead zinc"), Document("two", "oak elm ash")]


@pytest.fixture
def bank(tmp_path):
    path = tmp_path / "bank"
    with open_bank(path) as opened:
        opened.write(DOCUMENTS)
        opened.memories(["one#0"])
    return path


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious"
    file.write_text("mine")
    return file


def use_it(path):
    """All that a user does with a bank; errors must be memory3's."""
    for task in (
        lambda bank: bank.search(["iron"], 2),
        lambda bank: bank.memories(["one#0"]),
        lambda bank: bank.recalls(),
        lambda bank: bank.write([Document("three", "new words")]),
        lambda bank: bank.delete("two"),
        lambda bank: bank.compact(),
        lambda bank: bank.verify(),
        lambda bank: bank.close(),
    ):
        try:
            task(open_bank(path, create=False, write=WritePolicy("auto")))
        except Memory3Error:
            pass


@pytest.mark.parametrize(
    "name", ["recalls.jsonl", "writer.lock", "policy.json", "CURRENT", "recalls.new", "policy.json.new", "CURRENT.new"]
)
@pytest.mark.parametrize("how", ["link", "hard link"])
def test_no_file_of_a_bank_leads_to_another(bank, precious, name, how):
    (bank / name).unlink(missing_ok=True)
    if how == "link":
        (bank / name).symlink_to(precious)
    else:
        (bank / name).hardlink_to(precious)
    use_it(bank)
    try:
        Bank.rebuild(bank, HashingWriter(name="other"), embedder=HashingEmbedder())
    except Memory3Error:
        pass
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("inside", ["", "data", "_versions", "_transactions", "_deletions", "_indices"])
def test_no_folder_of_a_table_leads_to_another(bank, tmp_path, inside):
    folder, away = bank / "references-1.lance" / inside, tmp_path / "away"
    away.mkdir()
    if folder.exists():
        away.rmdir()
        shutil.move(folder, away)
    (away / "diary.txt").write_text("dear")
    folder.symlink_to(away)
    before = sorted(str(file) for file in away.rglob("*"))
    with pytest.raises(BankCorrupt, match="symbolic link"):
        open_bank(bank, create=False)
    assert sorted(str(file) for file in away.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["references-7.lance", "references-1-staging.lance", "references-3.removed-5", "codec-x.safetensors"]
)
def test_removing_what_is_left_over_follows_no_link(bank, tmp_path, name):
    away = tmp_path / "away"
    away.mkdir()
    (away / "diary.txt").write_text("dear")
    (bank / name).symlink_to(away)
    with open_bank(bank) as opened:
        opened.compact()
    assert (away / "diary.txt").read_text() == "dear"
    assert not os.path.lexists(bank / name)


@pytest.mark.parametrize("name", ["recalls.jsonl", "writer.lock", "policy.json", "CURRENT"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "large"])
def test_a_small_file_that_is_none_neither_hangs_nor_takes_all_memory(bank, name, kind):
    path = bank / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    use_it(bank)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"at":1,"recalls":{"one#0":Infinity}}',
        '{"heats":{"one#0":[1e999,1]}}',
        '{"at":1,"recalls":{"one#0":-1,"two#0":"x"}}',
        '{"at":1,"recalls":{"one#0":' + "9" * 4000 + "}}",
        '{"at":1,"recalls":{"one#0":"5"}}',
    ],
)
def test_a_line_of_recalls_that_is_none_is_passed_over(bank, line):
    with open(bank / "recalls.jsonl", "a") as file:
        file.write(line + "\n")
    with open_bank(bank) as opened:
        counts = opened.recalls()
        opened.compact()
        assert counts == {"one": 1, "two": 0}
        assert opened.recalls() == counts


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", '{"a":1,"a":2}', "[" * 100_000, "9" * 5000, "{"])
def test_json_of_a_folder_is_the_standards(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_files_are_bounded_plain_and_whole(tmp_path):
    write_atomically(tmp_path / "a", "12345")
    assert read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UnsafeFile, match="more than 4 bytes"):
        read_bounded(tmp_path / "a", 4)
    assert append(tmp_path / "a", "6") == 6
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert append(tmp_path / "b", "7") == 7
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("123456", "1234567")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def with_manifest(path, change):
    """The bank with another manifest in its schema."""
    rows = lancedb.connect(path).open_table("references-1").to_arrow()
    manifest = json.loads(rows.schema.metadata[b"memory3"])
    text = change(manifest)
    rows = rows.replace_schema_metadata({b"memory3": text if isinstance(text, str) else json.dumps(manifest)})
    shutil.rmtree(path / "references-1.lance")
    lancedb.connect(path).create_table("references-1", rows, schema=rows.schema)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["shape"].update(pairs=10**15),
        lambda m: m["shape"].update(pairs=3),
        lambda m: m["shape"].update(pairs=7.0),
        lambda m: m["shape"].update(pairs=True),
        lambda m: m["shape"].update(layers=[4, 1, 6]),
        lambda m: m["shape"].update(layers=list(range(10**6))),
        lambda m: m["shape"].update(kv_heads=10**9),
        lambda m: m["shape"].update(head_dim=-5),
        lambda m: m["shape"].update(dtype="__class__"),
        lambda m: m.update(dimension=10**12),
        lambda m: m.update(dimension="11"),
        lambda m: m.update(format_version="1"),
        lambda m: m.update(fingerprint=None),
        lambda m: m.update(model=["x"]),
        lambda m: m.update(record_bytes=1),
        lambda m: m.update(references=10**9),
        lambda m: m.update(codec="product:../../x", code_book="../../../etc/passwd", record_bytes=9),
        lambda m: m.update(model="x" * (2 << 20)),
        lambda m: '{"format_version": 1e999}',
        lambda m: '{"format_version": 1, "config": ' + "[" * 100_000,
        lambda m: "[]",
    ],
)
def test_a_manifest_that_lies_is_refused_before_anything_is_made_of_it(bank, change):
    with_manifest(bank, change)
    for m3 in (HashingWriter(), None):
        with pytest.raises(BankError):
            Bank.open(bank, m3, embedder=HashingEmbedder(), create=False)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("start", -7),
        ("end", -1),
        ("document_references", 2**31 - 1),
        ("document_references", -3),
        ("ordinal", -2),
        ("metadata", "{"),
        ("metadata", "[" * 100_000),
        ("metadata", "3"),
    ],
)
def test_damaged_rows_are_listed_and_refused(bank, column, value):
    lancedb.connect(bank).open_table("references-1").update(where="reference_id = 'one#0'", values={column: value})
    opened = open_bank(bank)
    assert "one#0" in opened.verify().bad
    with pytest.raises((BankCorrupt, InputError)):
        opened.references(["one#0"])
    if value == 2**31 - 1:
        with pytest.raises(BankCorrupt, match="delete it"):
            opened.write([Document("one", "short")])
        assert opened.delete("one") == 1
    assert opened.references(["two#0"])[0].text == "oak elm ash"


@pytest.mark.parametrize("codec", ["int8", "transform:16", "foretold:16", "product:RQ3x6"])
def test_code_books_that_cannot_be_decoded_with_are_refused_when_loaded(codec):
    book = codebooks.fitted(codec)
    CodedCodec(CodeBook.of(book.data, "sound"))
    wrong = [{"positions": n} for n in (0, -1, 10**9, "7", None, True)]
    wrong += [{"codec": name} for name in ("raw", "auto", "../x", "int8\n", "product:PQ999999999x8")]
    name = next(name for name in book.tensors if name.startswith("keys."))
    tensor = book.tensors[name]
    wrong += [{"tensors": {**book.tensors, name: bad}} for bad in (tensor.new_zeros(0), tensor.double(), tensor * np.nan)]
    angles = book.tensors["keys.angles"]
    wrong.append({"tensors": {**book.tensors, "keys.angles": angles.new_zeros(99)}})
    if "keys.analysis" in book.tensors:
        wrong.append({"tensors": {**book.tensors, "keys.analysis": book.tensors["keys.analysis"] * 0}})
        wrong.append({"tensors": {**book.tensors, "keys.bits": book.tensors["keys.bits"] + 300}})
    for change in wrong:
        with pytest.raises(BankCorrupt):
            CodedCodec(CodeBook.of(dataclasses.replace(book, **change).data, "hostile"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data.replace(b"\x04\x00\x00\x00", b"\xff\xff\xff\x7f"),
    ],
)
def test_a_damaged_deletion_file_is_found_before_lance_reads_it(bank, damage):
    with open_bank(bank) as opened:
        opened.delete("one")
    assert list(deletion_faults(bank / "references-1.lance")) == []
    (file,) = (bank / "references-1.lance" / "_deletions").iterdir()
    opened = open_bank(bank)
    data = file.read_bytes()
    file.write_bytes(damage(data))
    assert "deletion file" in opened.verify().problems[0]
    with pytest.raises(BankCorrupt, match="deletion file"):
        open_bank(bank)


def test_out_of_file_handles_is_no_damage(tmp_path):
    for error, told in (
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("lance error: Too many open files (os error 24)"), "ulimit -n"),
        (PermissionError(13, "Permission denied"), "no permission"),
        (OSError(5, "Input/output error"), "disk"),
        (MemoryError(), "out of memory"),
    ):
        with pytest.raises(BankError, match=told) as found, reading(tmp_path):
            raise error
        assert not isinstance(found.value, BankCorrupt)
    panic = type("RustPanic", (Exception,), {})
    with pytest.raises(BankCorrupt), reading(tmp_path):
        raise panic("index out of bounds")


def test_open_handles_do_not_pile_up(bank):
    opened = open_bank(bank)

    def handles():
        return len(os.listdir("/proc/self/fd"))

    for number in range(30):
        opened.write([Document("one", f"text {number}")])
        opened.search(["text"], 2)
        opened.memories(["one#0"], use_cache=False)
        if number == 5:
            early = handles()
    assert handles() <= early + 5


@pytest.mark.parametrize(
    "document",
    [
        Document(3, "x"),
        Document("a", None),
        Document("a", b"x"),
        Document("a", "x", source=None),
        Document("a", "x", metadata=[1]),
        Document("a", "x", metadata=None),
        Document("a", "x", metadata={"n": 10**5000}),
        Document("a", "x", metadata={"n": float("nan")}),
        {"id": "a"},
        Document("", "x"),
    ],
)
def test_what_is_no_document_is_the_callers_error(bank, document):
    with pytest.raises(InputError):
        open_bank(bank).write([document])


def test_numbers_and_texts_of_other_kinds_are_stored_as_pythons_own(tmp_path):
    class Year(enum.IntEnum):
        FIRST = 1991

    class Colour(str, enum.Enum):
        RED = "red"

    given = Document(
        "a",
        np.str_("some words"),
        np.str_("s"),
        {np.str_("n"): np.float64(2.5), "t": np.str_("x"), "y": Year.FIRST, "c": Colour.RED},
    )
    plain = Document("a", "some words", "s", {"n": 2.5, "t": "x", "y": 1991, "c": "red"})
    assert given.content_hash == plain.content_hash
    # The hash of plain values stays what it was: it is in every bank.
    assert plain.content_hash == "e87bc3f43a265675f2d270a0518481a4"
    opened = open_bank(tmp_path / "bank")
    opened.write([given])
    assert opened.write([plain]).unchanged == 1
    assert contents(opened) == expected([plain])
    assert opened.count({"c": Colour.RED, "y": 1991}) == 1
    Bank.rebuild(tmp_path / "bank", HashingWriter(name="other"), embedder=HashingEmbedder())


# ---- upkeep ------------------------------------------------------------------------------------------------------------------


def noise(number):
    """Words that do not compress, so that they can be searched for in files."""
    return f"marker{np.random.default_rng(number).bytes(40).hex()}"


def holding(path, text):
    return [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def test_purging_leaves_no_byte_of_what_was_deleted_or_replaced(tmp_path):
    path = tmp_path / "bank"
    opened = open_bank(path)
    kept = [Document(f"d{n}", f"{noise(n)} words of {n}", source="shelf") for n in range(40)]
    opened.write([*kept, Document("secret-id", noise(100)), Document("again", noise(101))])
    opened.write([Document("again", "quite harmless")])
    opened.memories(["secret-id#0"])
    opened._recalls.flush()
    reader = open_bank(path)
    old = {str(file) for file in path.rglob("*") if ".lance" in str(file)}
    assert holding(path, noise(100))
    assert holding(path, "secret-id")
    assert opened.delete("secret-id") == 1
    assert holding(path, noise(100)), "deleted is not purged"
    assert opened.delete([], purge=True) == 0
    for text in (noise(100), noise(101), "secret-id"):
        assert holding(path, text) == []
    assert not old & {str(file) for file in path.rglob("*")}
    left = [*kept, Document("again", "quite harmless")]
    assert contents(opened) == expected(left)
    assert opened.verify().ok
    reader.refresh()
    assert contents(reader) == expected(left)
    assert opened.write(left).unchanged == len(left)


def test_updates_of_one_document_do_not_fill_the_disk(tmp_path, monkeypatch):
    for module in (store_module, upkeep):
        monkeypatch.setattr(module, "GRACE", timedelta(0))
    monkeypatch.setattr(upkeep, "_WASTE_BYTES", 10_000)
    path = tmp_path / "bank"
    opened = open_bank(path)
    size = []
    for number in range(80):
        opened.write([Document("one", " ".join(f"{number}x{k}" for k in range(40)))])
        size.append(sum(file.stat().st_size for file in (path / "references-1.lance" / "data").iterdir()))
    assert size[-1] < 10 * size[0] + 20_000
    assert opened.verify().ok


def test_a_slow_model_commits_by_time_from_the_first_group_on(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0.1)
    m3 = HashingWriter(delay=0.02, batch_size=2)
    seen = []
    opened = open_bank(tmp_path / "bank", m3)
    opened.write(
        [Document(f"d{n}", f"word{n}") for n in range(40)], progress=lambda told: seen.append((told.references, told.written))
    )
    waiting = max(references - written for references, written in seen)
    assert waiting <= 16, "encoded and not committed"
    assert next(written for references, written in seen if written) <= 8


def test_a_slow_source_does_not_keep_the_first_documents_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0.0)
    opened = open_bank(tmp_path / "bank", HashingWriter(batch_size=50))
    seen = []

    def documents():
        for n in range(5):
            yield Document(f"d{n}", f"word{n}")
            seen.append(len(open_bank(tmp_path / "bank")))

    opened.write(documents())
    assert seen == [1, 2, 3, 4, 5]


def test_a_policy_is_never_read_half_written(bank):
    for number in range(1, 50):
        open_bank(bank, write=WritePolicy("auto", after=number))
        assert json.loads((bank / "policy.json").read_text())["after"] == number
    assert not [name for name in os.listdir(bank) if "policy" in name and name != "policy.json"]
