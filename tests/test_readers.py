"""Reading documents: every format once as it should be, then everything that can be wrong with it."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pypdf import PdfReader, PdfWriter
from reader_files import Skips, only, parquet_bytes, pdf_bytes, texts, write

from memory3.errors import InputError, ReadError
from memory3.text import read_documents

# Sources and ids


def test_folder_is_read_in_order_with_relative_ids(tmp_path, monkeypatch):
    for name in ("b.txt", "a.md", "sub/deep/c.rst", "sub/d.py", ".hidden.txt", ".git/config", "CVS/Root", "__pycache__/x"):
        write(tmp_path / "docs" / name, f"text of {name}")
    expected = {name: f"text of {name}" for name in ("a.md", "b.txt", "sub/d.py", "sub/deep/c.rst")}
    assert list(texts(tmp_path / "docs").items()) == list(expected.items())
    monkeypatch.chdir(tmp_path / "docs" / "sub")
    assert texts("..") == expected
    assert only("d.py").source == "d.py"


def test_pattern_ids_are_relative_to_its_fixed_part(tmp_path):
    for name in ("a.md", "sub/b.md", "sub/c.txt", ".hidden/d.md"):
        write(tmp_path / "docs" / name, name)
    assert texts(f"{tmp_path}/docs/**/*.md") == {"a.md": "a.md", "sub/b.md": "sub/b.md"}
    assert set(texts(f"{tmp_path}/docs/**")) == {"a.md", "sub/b.md", "sub/c.txt"}


def test_a_name_that_exists_is_no_pattern(tmp_path):
    path = write(tmp_path / "a[1].txt", "one")
    assert only(path).id == path.as_posix()


def test_explicit_files_are_called_by_their_path(tmp_path, monkeypatch):
    write(tmp_path / "x" / "readme.md", "one")
    write(tmp_path / "y" / "readme.md", "two")
    monkeypatch.chdir(tmp_path)
    assert texts("x/readme.md", "./y/readme.md") == {"x/readme.md": "one", "y/readme.md": "two"}


def test_source_is_the_path_as_given(tmp_path, monkeypatch):
    write(tmp_path / "docs" / "a.md", "one")
    monkeypatch.chdir(tmp_path)
    assert only("docs").source == os.path.join("docs", "a.md")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing", "does not exist"),
        (lambda p: f"{p}/*.nothing", "no file matches"),
        (lambda p: f"{p}/a**b", "not understood|no file matches"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "holds no files"),
        (lambda p: "", "empty path"),
        (lambda p: "a\0b", "cannot be|does not exist"),
        (lambda p: "x" * 5000, "cannot be|does not exist"),
    ],
)
def test_missing_sources(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        list(read_documents(make(tmp_path)))


def test_missing_sources_are_told_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_documents(write(tmp_path / "a.txt", "fine"), tmp_path / "missing")


def test_no_sources():
    with pytest.raises(InputError, match="nothing to read"):
        read_documents()


def test_a_file_reached_twice_is_read_once(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    skips = Skips()
    assert texts(tmp_path, path, on_skip=skips) == {"a.txt": "one"}
    assert "read before" in skips.reasons()


def test_one_id_with_two_texts_is_an_error_that_names_both(tmp_path):
    write(tmp_path / "x" / "readme.md", "one")
    write(tmp_path / "y" / "readme.md", "two")
    with pytest.raises(InputError, match=r"'readme.md', one from .*x.readme.md and one from .*y.readme.md"):
        list(read_documents(tmp_path / "x", tmp_path / "y"))


def test_one_id_with_one_text_is_skipped(tmp_path):
    write(tmp_path / "x" / "readme.md", "one")
    write(tmp_path / "y" / "readme.md", "one")
    skips = Skips()
    assert texts(tmp_path / "x", tmp_path / "y", on_skip=skips) == {"readme.md": "one"}
    assert "same id and text" in skips.reasons()


def test_links(tmp_path):
    write(tmp_path / "docs" / "sub" / "a.txt", "one")
    for name, target in (("loop", ".."), ("self", "self"), ("broken", "missing"), ("z.txt", "a.txt")):
        (tmp_path / "docs" / "sub" / name).symlink_to(target)
    (tmp_path / "docs" / "loop2").symlink_to(".")
    skips = Skips()
    found = [*texts(tmp_path / "docs", on_skip=skips).values(), *texts(f"{tmp_path}/docs/**/*.txt").values()]
    assert len(found) == 2
    assert skips.reasons().count("link to a folder") == 2
    assert skips.reasons().count("broken link") == 2
    assert "z.txt: was read before" in skips.reasons()


def test_pipes_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    write(tmp_path / "a.txt", "one")
    skips = Skips()
    assert texts(tmp_path, on_skip=skips) == {"a.txt": "one"}
    assert "no regular file" in skips.reasons()
    with pytest.raises(ReadError, match="no regular file"):
        read_documents(tmp_path / "pipe.txt")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_forbidden_files_and_folders(tmp_path):
    write(tmp_path / "ok.txt", "one")
    write(tmp_path / "no.txt", "two").chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    skips = Skips()
    assert texts(tmp_path, on_skip=skips) == {"ok.txt": "one"}
    assert "no.txt: cannot be read: Permission denied" in skips.reasons()
    assert "closed: cannot be listed: Permission denied" in skips.reasons()
    with pytest.raises(ReadError, match="Permission denied"):
        list(read_documents(tmp_path / "no.txt"))


def test_undecodable_file_names(tmp_path):
    try:
        write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")), "one")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    document = only(tmp_path)
    assert document.id == "caf\ufffd.txt"
    document.source.encode()


# Standard input


@pytest.mark.parametrize("stream", [io.BytesIO("tür\r\nzwei".encode()), io.StringIO("tür\r\nzwei")])
def test_stdin(stream):
    document = only("-", stdin=stream)
    assert document.id.startswith("stdin-")  # of its text, so that another pipe does not replace it
    assert (document.source, document.text) == ("stdin", "tür\nzwei")


def test_stdin_failures():
    with pytest.raises(ReadError, match="more than 5 bytes"):
        list(read_documents("-", stdin=io.BytesIO(b"123456"), max_bytes=5))
    with pytest.raises(ReadError, match="looks binary"):
        list(read_documents("-", stdin=io.BytesIO(b"12\x0034")))
    with pytest.raises(InputError, match=r"no text|empty"):
        list(read_documents("-", stdin=io.BytesIO(b" \n")))
    with pytest.raises(InputError, match="only once"):
        read_documents("-", "-")


# Emptiness


def test_empty_files_are_reported(tmp_path):
    for name in ("a.txt", "b.html", "c.pdf", "d.jsonl", "e.json", "f.csv", "g.tsv", "h.parquet", "i.unknown"):
        write(tmp_path / name, b"")
    write(tmp_path / "j.txt", " \n\t")
    write(tmp_path / "k.csv", "id,text\n")
    write(tmp_path / "l.parquet", parquet_bytes({"text": pa.array([], pa.string())}))
    write(tmp_path / "m.json", "[]")
    skips = Skips()
    with pytest.raises(InputError, match=r"no document was read. First reason: .*a.txt"):
        list(read_documents(tmp_path, on_skip=skips))
    assert [Path(place).name[0] for place, _ in skips] == list("abcdefghijklm")


def test_an_explicit_empty_file_matters_only_alone(tmp_path):
    empty, full = write(tmp_path / "a.txt", ""), write(tmp_path / "b.txt", "one")
    skips = Skips()
    assert list(texts(empty, full, on_skip=skips).values()) == ["one"]
    assert len(skips) == 1
    with pytest.raises(InputError, match=r"a.txt"):
        list(read_documents(empty))


def test_unheard_reports_are_logged(tmp_path, caplog):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt", "one")
    assert texts(tmp_path) == {"b.txt": "one"}
    assert "a.txt" in caplog.text


# Encodings

PROSE = "Die Straße führt über die Brücke, und das Mädchen hört die schöne alte Musik aus München. " * 5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1"])
def test_encodings(tmp_path, encoding):
    assert only(write(tmp_path / "a.txt", PROSE.encode(encoding))).text == PROSE


def test_unusual_scripts_survive(tmp_path):
    text = "😀👩‍👩‍👧‍👦 مرحبا שלום e\u0301 नमस्ते 한국어\n"
    assert only(write(tmp_path / "a.txt", text)).text == text


def test_line_ends_become_newlines(tmp_path):
    assert only(write(tmp_path / "a.txt", b"a\r\nb\rc\n")).text == "a\nb\nc\n"


def test_damaged_utf8_is_replaced_and_reported(tmp_path):
    damaged = PROSE.encode().replace("ß".encode(), b"\xff", 1)
    skips = Skips()
    assert only(write(tmp_path / "a.txt", damaged), on_skip=skips).text == PROSE.replace("ß", "\ufffd", 1)
    assert "U+FFFD" in skips.reasons()


@pytest.mark.parametrize("content", [b"MZ\x00\x01" * 100, bytes(range(256)) * 20, b"\x89PNG\r\n\x1a\n\x00\x00"])
@pytest.mark.parametrize("name", ["a.txt", "a.bin", "a.html"])
def test_binary_files(tmp_path, content, name):
    path = write(tmp_path / name, content)
    with pytest.raises(ReadError, match="looks binary"):
        list(read_documents(path))
    write(tmp_path / "fine.txt", "one")
    assert texts(tmp_path) == {"fine.txt": "one"}


def test_unknown_suffixes_are_text_only_when_utf8(tmp_path):
    write(tmp_path / "LICENSE", "free")
    write(tmp_path / "a.weird", PROSE.encode("latin-1"))
    skips = Skips()
    assert texts(tmp_path, on_skip=skips) == {"LICENSE": "free"}
    assert "looks binary" in skips.reasons()


@pytest.mark.parametrize("name", ["a.docx", "A.XLSX", "a.png", "a.zip", "a.docx.gz"])
def test_a_file_that_is_called_as_another_format_is_never_text(tmp_path, name):
    junk = b"This is no document of that kind, but it is text."
    path = write(tmp_path / name, gzip.compress(junk) if name.endswith(".gz") else junk)
    with pytest.raises(ReadError, match=r"by its name \(\.\w+\), which is not read: \w+"):
        list(read_documents(path))
    write(tmp_path / "fine.txt", "one")
    skips = Skips()
    assert texts(tmp_path, on_skip=skips) == {"fine.txt": "one"}
    assert "by its name" in skips.reasons()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%PDF-1.4\n1 0 obj << >> endobj", "PDF file: call it .pdf"),
        (b"{\\rtf1\\ansi Some text.}", "RTF document.*save it as"),
        (b"PK\x03\x04" + b"word" * 20, "ZIP file"),
        (b"\xff\xd8\xff\xe0" + b"picture " * 20, "picture"),
        (b"BZh91AY&SYabc", "archive.*unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a", "a.html", "a.csv"])
def test_a_file_that_begins_as_another_format_is_no_text(tmp_path, content, said, name):
    """Without a NUL byte it could be taken for text."""
    with pytest.raises(ReadError, match=said):
        list(read_documents(write(tmp_path / name, content)))


def test_text_on_formats_is_text(tmp_path):
    for n, text in enumerate(("GIF89a is a format of pictures.", "PK is what ZIP files begin with.", "ID3 tags", "PDF-1.4")):
        assert only(write(tmp_path / f"{n}.txt", text)).text == text


def test_nul_in_json_does_not_survive(tmp_path):
    assert only(write(tmp_path / "a.jsonl", '{"text": "a\\u0000b"}')).text == "a\ufffdb"


# Limits and gzip


def test_limit_names_size_and_remedy(tmp_path):
    path = write(tmp_path / "a.txt", "x" * 2000)
    with pytest.raises(ReadError, match=r"holds 2,000 bytes, the limit is 1,000 bytes.*max_bytes"):
        list(read_documents(path, max_bytes=1000))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_small_gzip_file_may_not_explode(tmp_path, name):
    path = write(tmp_path / name, gzip.compress(b"x" * 10_000_000))
    tracemalloc.start()
    with pytest.raises(ReadError, match="limit"):
        list(read_documents(path, max_bytes=100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_limit_holds_for_each_record_not_for_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": "y" * 80}) + "\n" for _ in range(100)))
    assert len(texts(path, max_bytes=200)) == 100
    table = write(tmp_path / "a.parquet", parquet_bytes({"text": ["ü" * 80]}))
    with pytest.raises(ReadError, match=r"row 1 holds a text over the limit of 100 bytes"):
        list(read_documents(table, max_bytes=100))


def test_gzip_is_looked_through(tmp_path):
    write(tmp_path / "a.txt.gz", gzip.compress(b"one"))
    write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"text": "two"}'))
    write(tmp_path / "c.csv.gz", gzip.compress(b"text\nthree\n"))
    assert list(texts(tmp_path).values()) == ["one", "two", "three"]


@pytest.mark.parametrize(
    "content",
    [gzip.compress(PROSE.encode() * 50)[:-40], b"no gzip at all", gzip.compress(b"x")[:5]],
    ids=["cut short", "no gzip", "cut in the header"],  # gzip writes the time, and test processes must agree on names
)
def test_damaged_gzip(tmp_path, content):
    with pytest.raises(ReadError, match=r"truncated|cannot be read|damaged"):
        list(read_documents(write(tmp_path / "a.txt.gz", content)))


# HTML


def test_html(tmp_path):
    markup = """<!doctype html><html><head><title> A &amp; B </title><style>p{}</style></head><body><!-- no -->
    <h1>Head</h1><p>One <b>bo</b>ld
    word.<br>Next</p><script>var x;</script><ul><li>first</li><li>second</li></ul>
    <table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table><pre>  a
    b</pre><p hidden>gone</p><p style="color:red; display: none">gone</p><div>last</div></body></html>"""
    document = only(write(tmp_path / "a.html", markup))
    assert document.metadata == {"title": "A & B"}
    assert document.text == "Head\n\nOne bold word.\nNext\n\nfirst\nsecond\n\n1\t2\n3\n\n  a\n    b\n\nlast"


def test_html_declares_its_encoding(tmp_path):
    markup = f'<html><head><meta charset="koi8-r"></head><body><p>{"Привет, мир. " * 9}</p></body></html>'
    assert only(write(tmp_path / "a.htm", markup.encode("koi8-r"))).text.startswith("Привет, мир.")


@pytest.mark.parametrize(
    "markup", ["<div>" * 3_000 + "deep", "just words deep", "<p>broken <b deep", "<frameset><frame></frameset>"]
)
def test_odd_html(tmp_path, markup):
    write(tmp_path / "b.txt", "fine")
    write(tmp_path / "a.html", markup)
    assert "b.txt" in texts(tmp_path)


# PDF


def test_pdf(tmp_path):
    document = only(write(tmp_path / "a.pdf", pdf_bytes(title="Name")))
    assert (document.text, dict(document.metadata)) == ("Words in a PDF", {"title": "Name"})


def encrypted(password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_bytes())))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_encrypted_pdf(tmp_path):
    with pytest.raises(ReadError, match=r"encrypted.*qpdf"):
        list(read_documents(write(tmp_path / "a.pdf", encrypted("secret"))))
    assert only(write(tmp_path / "b.pdf", encrypted(""))).text == "Words in a PDF"


def test_pdf_without_text(tmp_path):
    with pytest.raises(ReadError, match=r"no text layer.*ocrmypdf"):
        list(read_documents(write(tmp_path / "a.pdf", pdf_bytes(" "))))


@pytest.mark.parametrize("content", [pdf_bytes()[:150], b"%PDF-1.4\n" + bytes(500), b"no pdf", b"%PDF-1.7\n%%EOF"])
def test_damaged_pdf(tmp_path, content):
    with pytest.raises(ReadError, match=r"damaged|no text layer"):
        list(read_documents(write(tmp_path / "a.pdf", content)))


# Records


def test_jsonl(tmp_path):
    lines = [
        {"_id": "x", "text": "one", "year": 1999, "score": 0.5, "ok": True, "none": None, "list": [1], "long": "z" * 2000},
        {"text": "two", "body": "kept"},
        "three",
        {"title": "empty", "text": " "},
    ]
    content = "\ufeff" + "\n\n".join(json.dumps(line) for line in lines)
    skips = Skips()
    documents = list(read_documents(write(tmp_path / "d" / "a.jsonl", content).parent, on_skip=skips))
    assert [(d.id, d.text, dict(d.metadata)) for d in documents] == [
        ("x", "one", {"year": 1999, "score": 0.5, "ok": True}),
        ("a.jsonl#3", "two", {"body": "kept"}),
        ("a.jsonl#5", "three", {}),
    ]
    assert "a.jsonl#7: has no text" in skips.reasons()


def test_fields_can_be_named(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "no", "abstract": "yes", "key": 7, "id": "no"}')
    document = only(path, text_field="abstract", id_field="key")
    assert (document.id, document.text, dict(document.metadata)) == ("7", "yes", {"text": "no", "id": "no"})
    assert only(path, id_field="").id == f"{path.as_posix()}#1"


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ('{"text": "cut of', {}, "line 2 is not valid JSON"),
        ("[1, 2]", {}, "line 2 is neither an object.*a list"),
        ("5", {}, "line 2 is neither an object.*a number"),
        ("null", {}, "line 2 is neither an object.*null"),
        ('{"name": "x"}', {}, "line 2 has none of the fields text.*Its fields are 'name'.*--text-field"),
        ('{"text": 5}', {}, "line 2: the field 'text' is no text but a number"),
        ('{"text": 5}', {"text_field": "text"}, "line 2: the field 'text' is no text but a number"),
        ('{"text": "x"}', {"text_field": "abstract"}, "line 2 has no field 'abstract'"),
        ('{"text": "x"}', {"id_field": "key"}, "line 2 has no id in the field 'key'"),
        ("[" * 100_000, {}, "line 2 is not valid JSON"),
        ('{"text": "x", "n": ' + "9" * 5000 + "}", {}, "line 2 is not valid JSON"),
        (b'{"text": "\xe9t\xe9"}', {}, "line 2 is not UTF-8.*iconv"),
        (b'{"text": "a\x00b"}', {}, "line 2 is not"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, options, message):
    first = json.dumps({options.get("text_field", "text"): "fine", options.get("id_field", "id"): "1"})
    path = write(tmp_path / "a.jsonl", first.encode() + b"\n" + (line.encode() if isinstance(line, str) else line))
    documents = read_documents(path, **options)
    assert next(documents).id == "1"
    with pytest.raises(ReadError, match=message):
        next(documents)
    skips = Skips()
    assert len(texts(tmp_path, on_skip=skips, **options)) == 1, "what came before the line is kept"
    assert len(skips) == 1


def test_utf16_lines_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(ReadError, match="save it as UTF-8"):
        list(read_documents(write(tmp_path / "a.jsonl", '{"text": "x"}'.encode("utf-16"))))


def test_lone_surrogates_are_replaced(tmp_path):
    path = write(tmp_path / "a.jsonl", r'{"text": "a\ud800b \ud83d\ude00", "id": "\udfff", "na\ud800me": "v\ud800"}')
    document = only(path)
    assert (document.text, document.id, dict(document.metadata)) == ("a\ufffdb 😀", "\ufffd", {"na\ufffdme": "v\ufffd"})


def test_numbers_that_json_cannot_write_are_left_out(tmp_path):
    assert only(write(tmp_path / "a.jsonl", '{"text": "x", "a": NaN, "b": Infinity}')).metadata == {}


def test_json_list_and_object(tmp_path):
    write(tmp_path / "a.json", json.dumps([{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]))
    write(tmp_path / "b.json", json.dumps({"text": "three"}))
    write(tmp_path / "c.json", json.dumps({"name": "a setting", "version": 1}))
    skips = Skips()
    assert texts(tmp_path, on_skip=skips) == {"1": "one", "2": "two", "b.json#1": "three"}
    assert "c.json: row 1 has none of the fields" in skips.reasons()


def test_clashing_record_ids_tell_the_way_out(tmp_path):
    write(tmp_path / "a.jsonl", '{"id": 1, "text": "one"}')
    write(tmp_path / "b.jsonl", '{"id": 1, "text": "two"}')
    with pytest.raises(InputError, match=r"a.jsonl and one from .*b.jsonl.*number them"):
        list(read_documents(tmp_path))
    with pytest.raises(InputError, match="two records called '1'"):
        list(read_documents(write(tmp_path / "other" / "c.jsonl", '{"id": 1, "text": "one"}\n{"id": 1, "text": "two"}')))
    numbered = texts(tmp_path / "a.jsonl", tmp_path / "b.jsonl", id_field="")
    assert [Path(id_).name for id_ in numbered] == ["a.jsonl#1", "b.jsonl#1"]


def test_lines_are_streamed(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as out:
        for i in range(5_000):
            out.write(json.dumps({"id": i, "text": f"{i} " * 400}) + "\n")
    tracemalloc.start()
    documents = read_documents(path)
    assert len(list(itertools.islice(documents, 5))) == 5
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    assert sum(1 for _ in documents) == 4_995
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000 < path.stat().st_size / 3


# Tables


def test_csv(tmp_path):
    content = 'id,text,year\n007,"one, with\na newline and ""quotes""",1999\nx,tür,n/a\n'
    documents = list(read_documents(write(tmp_path / "a.csv", content)))
    assert [(d.id, d.text, dict(d.metadata)) for d in documents] == [
        ("007", 'one, with\na newline and "quotes"', {"year": "1999"}),
        ("x", "tür", {"year": "n/a"}),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "key\ttext\n1\tsüß\n"),
        ("a.csv", "key;text\n1;süß\n"),
        ("a.csv", "\ufeffkey,text\r\n1,süß\r\n"),
        ("a.csv", "key,text\n1,süß\n".encode("utf-16")),
        ("a.csv", ("key,text\n1,süß\n" + f"2,{PROSE.replace(',', '')}\n").encode("cp1252")),
    ],
)
def test_dialects(tmp_path, name, content):
    first = next(read_documents(write(tmp_path / name, content)))
    assert (first.text, dict(first.metadata)) == ("süß", {"key": "1"})


def test_damaged_utf8_in_a_cell(tmp_path):
    skips = Skips()
    rows = b"text\n" + "grün und schön\n".encode() * 3 + b"a\xffb\n"
    assert list(texts(write(tmp_path / "a.csv", rows), on_skip=skips).values())[-1] == "a\ufffdb"
    assert "a.csv#4" in skips.reasons()


@pytest.mark.parametrize("content", ["text,n\nfine,1\nragged\n", "text,text\na,b\n"])
def test_malformed_csv(tmp_path, content):
    with pytest.raises(ReadError, match=r"row 2 .line 3. has 1 cell, the header 2|1 and 2 have the same name"):
        list(read_documents(write(tmp_path / "a.csv", content)))


def test_parquet(tmp_path):
    columns = {"doc_id": ["a", None], "content": ["one", "two"], "n": [1, 2], "nested": [[1], [2]], "nan": [0.5, float("nan")]}
    documents = list(read_documents(write(tmp_path / "d" / "a.parquet", parquet_bytes(columns)).parent))
    assert [(d.id, d.text, dict(d.metadata)) for d in documents] == [
        ("a", "one", {"n": 1, "nan": 0.5}),
        ("a.parquet#2", "two", {"n": 2}),
    ]


@pytest.mark.parametrize("cut", [10, -10, None])
def test_damaged_parquet(tmp_path, cut):
    content = parquet_bytes({"text": ["one", "two"] * 100})[:cut] if cut else b"PAR1" + bytes(100) + b"PAR1"
    with pytest.raises(ReadError, match="Parquet"):
        list(read_documents(write(tmp_path / "a.parquet", content)))


def test_parquet_columns_are_not_read_whole(tmp_path):
    column = [os.urandom(750).hex() for _ in range(20_000)]  # 30 MB in one row group
    path = write(tmp_path / "a.parquet", parquet_bytes({"text": column}))
    before = pa.total_allocated_bytes()
    peaks = [pa.total_allocated_bytes() - before for _ in read_documents(path)]
    assert len(peaks) == 20_000
    assert max(peaks) < 10_000_000
