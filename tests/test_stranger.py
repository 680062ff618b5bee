"""A bank's folder from a stranger: nothing in it leads out of it, hangs, takes all memory or ends the process. And what
is deleted is gone.
"""

import contextlib
import dataclasses
import enum
import io
import json
import os
import random
import re
import shutil
from datetime import timedelta

import codebooks
import lancedb
import numpy as np
import pytest
import torch
from bank_writer import HashingEmbedder, HashingWriter, contents, expected, open_bank
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file
from typer.testing import CliRunner

from memory3.bank import Bank, upkeep
from memory3.bank import store as store_module
from memory3.bank.backends.lance_folder import deletion_faults
from memory3.bank.embedder import Embedder
from memory3.bank.faults import reading
from memory3.bank.write import pace
from memory3.cli import output
from memory3.cli.app import app
from memory3.codec import Codebook, CodedCodec
from memory3.errors import BankCorrupt, BankError, InputError, Memory3Error, ModelError
from memory3.evaluation.report import write_report
from memory3.files import UnsafeFile, append, parse_json, read_bounded, write_atomically
from memory3.models.adapter import merge_adapter
from memory3.retention import RetentionPolicy
from memory3.types import Document

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
        with contextlib.suppress(Memory3Error):
            task(open_bank(path, create=False, write=RetentionPolicy("auto")))


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
    with contextlib.suppress(Memory3Error):
        Bank.rebuild(bank, HashingWriter(name="other"), embedder=HashingEmbedder())
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
    opened.write([Document("one", "short")])  # whole, in place of the damaged rows
    assert opened.verify().ok
    assert opened.references(["one#0"])[0].text == "short"
    assert opened.references(["two#0"])[0].text == "oak elm ash"


@pytest.mark.parametrize("codec", ["int8", "transform:16", "foretold:16", "product:RQ3x6"])
def test_code_books_that_cannot_be_decoded_with_are_refused_when_loaded(codec):
    book = codebooks.fitted(codec)
    CodedCodec(Codebook.of(book.data, "sound"))
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
            CodedCodec(Codebook.of(dataclasses.replace(book, **change).data, "hostile"))


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


def test_data_that_is_overwritten_under_an_open_bank_is_damage_even_where_lance_panics(tmp_path, capfd):
    """Rust prints a panic by itself, and Python gets an exception of its own: no read may let that one through."""
    for seed in range(4):
        chance = random.Random(seed)
        path = tmp_path / str(seed)
        with open_bank(path) as writer:
            writer.write([Document(f"{n}", f"iron copper tin lead zinc {n} " * 5) for n in range(6)])
        opened = open_bank(path)
        opened.search(["iron"], 1)
        opened.memories(["0#0"])  # by now it knows how the files are laid out
        for file in (path / "references-1.lance" / "data").iterdir():
            size = file.stat().st_size
            file.write_bytes(chance.randbytes(size) if seed % 2 else bytes(size))
        for read in (
            lambda bank: bank.search(["iron"], 2),
            lambda bank: bank.memories(["3#0"]),
            lambda bank: bank.references(["1#0"]),
            lambda bank: list(bank.documents()),
        ):
            with pytest.raises(BankCorrupt):
                read(opened)
        assert not opened.verify().ok
    assert "panicked" in capfd.readouterr().err, "nothing panicked: damage that does has to be found anew"


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

    class Colour(enum.StrEnum):
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


# ---- upkeep
# ------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.long
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
    monkeypatch.setattr(pace, "COMMIT_SECONDS", 0.1)
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
    monkeypatch.setattr(pace, "COMMIT_SECONDS", 0.0)
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
        open_bank(bank, write=RetentionPolicy("auto", after=number))
        assert json.loads((bank / "policy.json").read_text())["after"] == number
    assert not [name for name in os.listdir(bank) if "policy" in name and name != "policy.json"]


# ---- adapters, reports, the terminal
# -----------------------------------------------------------------------------------------


def an_adapter(folder, tensors=None, **config):
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.0.lora_{}.weight"
    halves = {name.format("A"): torch.ones(2, 3), name.format("B"): torch.ones(5, 2), **(tensors or {})}
    save_file(halves, folder / "adapter_model.safetensors")
    return folder


A, B = (f"base_model.model.0.lora_{half}.weight" for half in "AB")


def test_a_sound_adapter_is_merged(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5))
    before = model[0].weight.clone()
    merge_adapter(model, an_adapter(tmp_path / "a"))
    assert torch.allclose(model[0].weight, before + 4.0)


@pytest.mark.parametrize(
    ("tensors", "config", "told"),
    [
        ({}, {"r": 0}, "r: 0"),
        ({}, {"r": 10**9}, "r: 1000000000"),
        ({}, {"r": 2.0}, "r: 2.0"),
        ({}, {"lora_alpha": 1e30}, "lora_alpha"),
        ({}, {"lora_alpha": float("nan")}, "NaN"),
        ({}, {"lora_alpha": -1}, "lora_alpha"),
        ({A: torch.ones(2, 3) * np.nan}, {}, A),
        ({B: torch.full((5, 2), torch.inf)}, {}, B),
        ({A: torch.ones(3, 3)}, {}, A),
        ({B: torch.ones(5)}, {}, B),
        ({A: torch.ones(2, 3, dtype=torch.int32)}, {}, A),
        ({A: torch.ones(0, 3), B: torch.ones(5, 0)}, {}, A),
        ({A: torch.full((2, 3), 3e38)}, {}, "not finite"),
    ],
)
def test_an_adapter_that_is_none_is_refused_and_its_tensor_named(tmp_path, tensors, config, told):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5))
    before = model[0].weight.clone()
    with pytest.raises(ModelError, match=re.escape(told)):
        merge_adapter(model, an_adapter(tmp_path / "a", tensors, **config))
    assert torch.equal(model[0].weight, before)


def test_an_embedders_folder_runs_no_code(tmp_path):
    ran = tmp_path / "ran"
    folder = tmp_path / "embedder"
    folder.mkdir()
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "strange_module.Strange"}]))
    (folder / "strange_module.py").write_text(
        f"open({str(ran)!r}, 'w')\nimport torch\nclass Strange(torch.nn.Module):\n    pass\n"
    )
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(ModelError, match="embedder"):
        Embedder.load(str(folder))
    assert not ran.exists()


STEERING = "\x1b]0;title\x07\x1b[2J\x9bm\x7f\x00\u202ecba\u2066\u200f\u061c\u2028\ud800 [red]red[/red] [/nope] :smile:"
RAW = "\x1b\x9b\x07\x7f\x00\u202e\u2066\u200f\u061c\u2028"


def test_nothing_that_is_printed_steers_the_terminal(monkeypatch):
    for console in (output.SafeConsole(force_terminal=True, width=300, file=io.StringIO()),):
        monkeypatch.setattr(output, "err", console)
        table = Table(STEERING, title=STEERING)
        table.add_row(STEERING, Text(STEERING))
        console.print(STEERING, Text(STEERING), table, output.facts({STEERING: STEERING}))
        output.message(STEERING, kind="error")
        with console.status(STEERING) as status:
            status.update(STEERING + "2")
            console.print(status.renderable)
        with Progress(TextColumn("{task.fields[status]}", markup=False), console=console) as bar:
            bar.add_task("", status=STEERING)
        shown = console.file.getvalue()
        ours = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", lambda code: "" if code[0] != "\x1b[2J" else "STEERED", shown)
        assert not [letter for letter in RAW if letter in ours]
        assert "STEERED" not in ours
        assert ours.count("[red]red[/red]") >= 8
        assert "\\x1b]0;title" in ours
        assert "\\u202e" in ours


def test_reports_take_no_markup_from_data(tmp_path):
    evil = "<script>alert(1)</script>![x](http://evil/y)[a](javascript:b)[c]: http://evil `d`|\n# e $x^{ <img src=x onerror=f>"
    found = {"value": 0.5, "interval": [0.4, 0.6]}
    mode = {"metrics": {evil: found}, "seconds": 1.0, "count": 2}
    task = {
        "title": evil,
        "count": 2,
        "items": 2,
        "notes": evil,
        "metrics": {evil: {"label": evil, "percent": True, "higher_is_better": True}},
        "modes": {evil: mode},
        "differences": [],
        "flags": [],
    }
    machine = {"versions": {evil: evil}, "cores": 1, "device": evil, "commit": evil}
    results = {
        "suite": evil,
        "model": evil,
        "machine": machine,
        "seed": 0,
        "limit": None,
        "finished": evil,
        "tasks": {evil: task},
    }
    write_report(tmp_path, results)
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<" not in markdown
    assert not re.search(r"\]\(|\]\[|\]:|(^|[^\\])`", markdown)
    assert not re.search(r"^# e", markdown, re.MULTILINE)
    with pytest.raises(InputError, match="memory3 eval"):
        write_report(tmp_path, {"suite": "x", "model": 3})


def test_delete_tells_that_text_stays_and_purge_that_it_does_not(bank, monkeypatch):
    run = CliRunner().invoke(app, ["delete", "one", "--bank", str(bank)])
    assert run.exit_code == 0
    assert "--purge" in run.stderr
    run = CliRunner().invoke(app, ["delete", "--purge", "--bank", str(bank)])
    assert run.exit_code == 0
    assert "no byte" in run.stdout
    assert holding(bank, "one#0") == []
    assert CliRunner().invoke(app, ["delete", "--bank", str(bank)]).exit_code == 2
