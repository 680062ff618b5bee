"""Documents that lie in each other's way: one id from two sources, pruning what could not be read, banks among documents,
encodings.
"""

import lancedb
import pytest
from bank_writer import open_bank

from memory3 import read_documents
from memory3.errors import InputError, ReadError, SourceConflict


def shelf(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def texts(bank):
    return {entry.id: bank.references([f"{entry.id}#0"])[0].text for entry in bank.documents()}


@pytest.mark.parametrize("given", ["path", "cwd"])
def test_another_sources_document_is_not_replaced_without_a_word(tmp_path, monkeypatch, given):
    one, two = (
        shelf(tmp_path / "one" / "notes", intro="first text"),
        shelf(tmp_path / "two" / "notes", intro="second", more="new"),
    )
    bank = open_bank(tmp_path / "bank")
    for folder, options, fails in ((one, {}, False), (two, {}, True), (two, {"replace": True}, False)):
        if given == "cwd":
            monkeypatch.chdir(folder.parent)
        source = folder if given == "path" else "notes"
        if fails:
            with pytest.raises(SourceConflict, match=r"intro\.txt"):
                bank.write(read_documents(source), prune=True, **options)
            assert texts(bank) == {"intro.txt": "first text", "more.txt": "new"}
        else:
            report = bank.write(read_documents(source), **options)
    assert [each.id for each in report.replaced] == ["intro.txt"]
    assert texts(bank) == {"intro.txt": "second", "more.txt": "new"}


def test_a_prefix_keeps_both(tmp_path):
    one, two = shelf(tmp_path / "one", intro="first"), shelf(tmp_path / "two", intro="second")
    bank = open_bank(tmp_path / "bank")
    bank.write(read_documents(one))
    bank.write(read_documents(two, prefix="two/"), prune=True)
    assert texts(bank) == {"intro.txt": "first", "two/intro.txt": "second"}


def test_one_source_has_many_spellings(tmp_path, monkeypatch):
    folder = shelf(tmp_path / "docs", a="old words")
    (tmp_path / "link").symlink_to(folder)
    bank = open_bank(tmp_path / "bank")
    monkeypatch.chdir(tmp_path)
    for number, source in enumerate(["docs", folder, "docs/", "link", tmp_path / "link"]):
        (folder / "a.txt").write_text(f"words {number}")
        bank.write(read_documents(source))
        assert texts(bank) == {"a.txt": f"words {number}"}
    assert bank.write(read_documents(folder)).unchanged == 1


@pytest.mark.parametrize("content", [b"\0\1\2", b"x" * 200])
def test_prune_spares_what_could_not_be_read(tmp_path, content):
    folder = shelf(tmp_path / "docs", a="some", b="other", c="third")
    bank = open_bank(tmp_path / "bank")
    bank.write(read_documents(folder))
    (folder / "b.txt").write_bytes(content)
    (folder / "c.txt").unlink()
    report = bank.write(read_documents(folder, max_bytes=100), prune=True)
    assert [id_ for id_, _ in report.kept] == ["b.txt"]
    assert set(texts(bank)) == {"a.txt", "b.txt"}


def test_prune_spares_all_of_a_broken_file_of_records(tmp_path):
    folder = shelf(tmp_path / "docs", a="some")
    (folder / "r.jsonl").write_text('{"id": "k", "text": "one"}\n{"id": "m", "text": "two"}\n')
    bank = open_bank(tmp_path / "bank")
    bank.write(read_documents(folder))
    (folder / "r.jsonl").write_text('{"id": "k", "text": "one"}\n{"id": "m", "te')
    bank.write(read_documents(folder), prune=True)
    assert set(texts(bank)) == {"a.txt", "k", "m"}


def test_banks_are_no_documents(tmp_path, monkeypatch):
    shelf(tmp_path, a="some")
    monkeypatch.chdir(tmp_path)
    bank = open_bank(tmp_path / "bank")
    for source in (".", "**/*"):
        assert [document.id for document in read_documents(source)] == ["a.txt"]
    for source in ("bank", "bank/CURRENT", "bank/*"):
        with pytest.raises(InputError, match="memory3 bank"):
            list(read_documents(source))
    bank.close()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Store below 25 °C and 40 °C at most.", "cp1252"),
        ("Tickets: £9 or £12.", "latin-1"),
        ("המוזיאון פתוח בימי ראשון ושני.", "cp1255"),
        ("พิพิธภัณฑ์เปิดทุกวันจันทร์", "cp874"),
        ("Muzeum jest dziś zamknięte, przyjdź później.", "iso8859-2"),
        ("Plain words without a mark.", "utf-16-le"),
        ("Plain words without a mark.", "utf-32-be"),
    ],
)
def test_legacy_encodings(tmp_path, text, encoding):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    notes = []
    assert [d.text for d in read_documents(tmp_path, on_skip=lambda *note: notes.append(note))] == [text]
    assert len(notes) == 1
    assert notes[0][0].endswith("a.txt")
    assert "guess" in notes[0][1]


def test_a_named_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("Größe".encode("cp437"))
    assert next(read_documents(tmp_path / "a.txt", encoding="cp437")).text == "Größe"
    with pytest.raises(ReadError, match="byte 2 is 0x94"):
        list(read_documents(tmp_path / "a.txt", encoding="utf-8"))
    with pytest.raises(InputError, match="unknown"):
        read_documents(tmp_path / "a.txt", encoding="nonsense")


def test_prune_with_a_prefix_spares_what_could_not_be_read_after_a_move(tmp_path):
    bank = open_bank(tmp_path / "bank")
    shelf(tmp_path / "old", a="first text", b="second text", c="third")
    bank.write(read_documents(tmp_path / "old", prefix="blog/"))
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "b.txt").write_bytes(b"\0\1")
    (tmp_path / "new" / "c.txt").unlink()
    report = bank.write(read_documents(tmp_path / "new", prefix="blog/"), prune=True, replace=True)
    assert [id_ for id_, _ in report.kept] == ["blog/b.txt"]
    assert set(texts(bank)) == {"blog/a.txt", "blog/b.txt"}


def test_prune_spares_a_damaged_document_whose_file_could_not_be_read(tmp_path):
    bank = open_bank(tmp_path / "bank")
    folder = shelf(tmp_path / "docs", a="first text", b="second text")
    bank.write(read_documents(folder))
    table = lancedb.connect(tmp_path / "bank").open_table("references-1")
    table.update(where="document_id = 'b.txt'", values={"document_references": 7})
    (folder / "b.txt").write_bytes(b"\0\1")
    report = bank.write(read_documents(folder), prune=True)
    assert (report.removed, [id_ for id_, _ in report.kept]) == (0, ["b.txt"])


@pytest.mark.parametrize("stray", [b"text\nhello\x00\n", b"lines of notes\x00\x00and\n", b"ab\x00cdef g\n"])
def test_a_stray_nul_does_not_make_wide_characters_of_letters(tmp_path, stray):
    (tmp_path / "a.txt").write_bytes(stray)
    with pytest.raises(ReadError):
        list(read_documents(tmp_path / "a.txt"))


def test_the_encoding_of_a_table_is_told_from_all_of_it(tmp_path):
    rows = [f"{n},plain words of row {n}" for n in range(2600)] + ["last,Café Müller in der Straße"]
    (tmp_path / "a.csv").write_bytes("\n".join(["id,text", *rows, ""]).encode("latin-1"))
    notes = []
    *_, last = read_documents(tmp_path / "a.csv", on_skip=lambda place, reason: notes.append(reason))
    assert last.text == "Café Müller in der Straße"
    assert any("a guess" in note for note in notes)
    wide = ",".join(f"é{n}" for n in range(20_000))
    (tmp_path / "b.csv").write_text("x" * 3 + f",text,{wide}\n1,words{',' * 20_000}\n", encoding="utf-8")
    assert [d.text for d in read_documents(tmp_path / "b.csv")] == ["words"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_of_a_byte_order_mark_alone_is_empty(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(InputError, match="holds no text"):
        list(read_documents(tmp_path / name))
