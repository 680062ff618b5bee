"""Tables and records: every cell comes back, or the file is refused with the row."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import random
import re
import time
import uuid

import pyarrow as pa
import pytest
from pyarrow import parquet
from reader_files import Skips, only, write

from memory3.errors import ReadError
from memory3.text import read_documents


def table(path, **options) -> list[tuple[str, dict]]:
    """Text and metadata of each document."""
    return [(document.text, dict(document.metadata)) for document in read_documents(path, **options)]


def refusal(path, **options) -> str:
    with pytest.raises(ReadError) as error:
        list(read_documents(path, on_skip=Skips(), **options))
    return str(error.value)


# Dialects


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '"nr";"text";"weight, net, in kg"\n"4";"Mara keeps bees";"2,5"\n',
            [("Mara keeps bees", {"nr": "4", "weight, net, in kg": "2,5"})],
        ),
        (
            "nr;text;price\n1;one, two;3,50\n2;three, four;4,10\n",
            [("one, two", {"nr": "1", "price": "3,50"}), ("three, four", {"nr": "2", "price": "4,10"})],
        ),
        ("text|a,b|c;d\nx, y; z|1,5|2;5\n", [("x, y; z", {"a,b": "1,5", "c;d": "2;5"})]),
        ("text\ta;b\nx;y\t1;5\n", [("x;y", {"a;b": "1;5"})]),
        ("sep=|\ntext|n\na;b,c|1\n", [("a;b,c", {"n": "1"})]),
        ("\ufeffsep=;\r\ntext;n\r\nx,y;1\r\n", [("x,y", {"n": "1"})]),
        ('"sep=,"\ntext,n;m\nx,1\n', [("x", {"n;m": "1"})]),
        ("nr, text , year\n1, Mara keeps bees, 1890\n", [("Mara keeps bees", {"nr": "1", "year": "1890"})]),
        ('nr, text\n1, "one, two"\n', [("one, two", {"nr": "1"})]),
        ('nr,text\n1, "one, two"\n', [("one, two", {"nr": "1"})]),
        ("nr,text\r1,one\r2,two\r", [("one", {"nr": "1"}), ("two", {"nr": "2"})]),
        ("\n\nnr,text\n\n1,one\n   \n2,two", [("one", {"nr": "1"}), ("two", {"nr": "2"})]),
        ('nr,text\n1,5" pipe\n2,"6"" pipe"\n', [('5" pipe', {"nr": "1"}), ('6" pipe', {"nr": "2"})]),
        ('nr,text\n1,"the \\"old\\" mill, C:\\new"\n', [('the "old" mill, C:\\new', {"nr": "1"})]),
        ('nr,text\n1,"a \\\\ b \\" c"\n2,"d ""e"""\n', [('a \\ b " c', {"nr": "1"}), ('d "e"', {"nr": "2"})]),
        ('nr,text\n1,"ends in C:\\"\n2,next\n', [("ends in C:\\", {"nr": "1"}), ("next", {"nr": "2"})]),
        ("text,n\nx\u2028y\x85z,1\n", [("x\u2028y\x85z", {"n": "1"})]),
    ],
)
def test_dialects(tmp_path, content, expected):
    assert table(write(tmp_path / "a.csv", content)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('nr,text\n0,fine\n1,"Mara keeps bees\n2,Tom keeps a cat\n3,"Jo" keeps goats\n4,end\n', "row 2 (line 3)"),
        ('nr,text\n0,"a\nb"\n1,"never closed\n2,x\n', "row 2 (line 4)"),
        ('nr,text\n1,one\n2,"7" pipe\n', "row 2 (line 3)"),
        ("nr,text\n1,one\n2,two,three\n3,x\n", "row 2 (line 3) has 3 cells, the header 2"),
        ("nr;text;n\n1;one;2\n2;two\n", "row 2 (line 3) has 2 cells, the header 3"),
        ("nr,text\n" + "1,one\n" * 20_000 + "2,a\0b\n", "row 20001 (line 20002) holds a NUL"),
        ("text, text,n\na,b,c\n", "columns 1 and 2 have the same name, 'text'"),
        ('nr,"text\n1,one\n', "the header (line 1)"),
    ],
)
def test_what_is_not_sure_is_an_error_with_its_row(tmp_path, content, message):
    assert message in refusal(write(tmp_path / "a.csv", content))


def test_rows_before_a_bad_one_are_kept_in_a_folder(tmp_path):
    write(tmp_path / "a.csv", "id,text\n1,one\n2,two\n3\n")
    skips = Skips()
    assert [document.id for document in read_documents(tmp_path, on_skip=skips)] == ["1", "2"]
    assert "row 3 (line 4) has 1 cell" in skips.reasons()


def test_lines_that_a_quote_may_have_swallowed_are_reported(tmp_path):
    skips = Skips()
    assert len(table(write(tmp_path / "a.csv", 'nr,text\n1,"Mara\n2,has 5"\n3,x\n'), on_skip=skips)) == 2
    assert re.search(r"a.csv#1: .*may be rows", skips.reasons())
    skips.clear()
    table(write(tmp_path / "b.csv", 'nr,text\n1,"Dear Sir,\nyours, truly"\n2,x\n'), on_skip=skips)
    assert not skips


def test_columns_without_a_name_are_numbered_and_said(tmp_path):
    skips = Skips()
    assert table(write(tmp_path / "a.csv", ",text,\n0,x,y\n"), on_skip=skips) == [("x", {"column 1": "0", "column 3": "y"})]
    assert "called by their number: 1, 3" in skips.reasons()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('nr\ttext\n1\t"Mara keeps\n2\tthe 7" pipe\n3\tJo"\n', ['"Mara keeps', 'the 7" pipe', 'Jo"']),
        ('nr\ttext\n1\t"Moby Dick"\n2\tEmma\n', ['"Moby Dick"', "Emma"]),
        ('nr\ttext\n1\t"Mara said ""no"""\n2\tplain\n', ['Mara said "no"', "plain"]),
        ('nr\ttext\n1\t"two\nlines"\n2\t"a\ttab"\n', ["two\nlines", "a\ttab"]),
        ('"nr"\t"text"\n"1"\t"one"\n', ["one"]),
    ],
)
def test_quotes_between_tabs_are_text_unless_the_file_shows_otherwise(tmp_path, content, expected):
    assert [text for text, _ in table(write(tmp_path / "a.tsv", content))] == expected


def test_the_remedy_of_a_missing_text_field_works(tmp_path):
    path = write(tmp_path / "a.csv", "nr;note, in English; summary \n1;x, y;z\n")
    message = refusal(path)
    assert "Its fields are 'nr', 'note, in English', 'summary'" in message
    assert "--text-field" in message
    assert table(path, text_field="note, in English") == [("x, y", {"nr": "1", "summary": "z"})]
    assert table(path, text_field="summary") == [("z", {"nr": "1", "note, in English": "x, y"})]


def random_cell(rng: random.Random) -> str:
    alphabet = ['"', ",", ";", "\t", "|", "\n", "\r\n", " ", "\\", "a", "b", "é", "字", "😀", "'", "=", "1", "text"]
    return "".join(rng.choices(alphabet, k=rng.randrange(7)))


@pytest.mark.parametrize("seed", range(150))
def test_every_cell_comes_back_or_the_row_is_named(tmp_path, seed):
    rng = random.Random(seed)
    names = ["text", "id", *rng.sample(["year", "a;b", "a,b", "c|d", 'q"q', "ort"], rng.randrange(4))]
    rows = [
        [f"t{n}{random_cell(rng)}{random_cell(rng)}t", str(n), *(random_cell(rng) for _ in names[2:])]
        for n in range(rng.randrange(1, 9))
    ]
    order = rng.sample(range(len(names)), len(names))
    suffix = rng.choice([".csv", ".csv", ".tsv"])
    escapes = suffix == ".csv" and rng.random() < 0.2
    buffer = io.StringIO(newline="")
    writer = csv.writer(
        buffer,
        delimiter="\t" if suffix == ".tsv" else rng.choice(",;\t|"),
        quoting=csv.QUOTE_ALL if escapes else rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        lineterminator=rng.choice(["\n", "\r\n"]),
        **({"doublequote": False, "escapechar": "\\"} if escapes else {}),
    )
    rows[0][0] += ' "so" and on' if escapes else ""  # a backslash alone is one in both dialects
    writer.writerows([row[i] for i in order] for row in [names, *rows])
    path = write(tmp_path / f"a{suffix}", rng.choice(["", "\ufeff"]) + buffer.getvalue())
    skips = Skips()
    try:
        documents = list(read_documents(path, on_skip=skips))
    except ReadError as error:
        assert re.search(r"row \d+ \(line \d+\)|the header \(line 1\)", str(error))  # noqa: PT017
        return
    found = [[document.text, document.id, *(document.metadata[name] for name in names[2:])] for document in documents]
    # What was kept as it stands between tabs was said.
    assert found == rows or (suffix == ".tsv" and "in quotes, which are kept" in skips.reasons())


def test_tables_of_commas_are_never_refused(tmp_path):
    """The test above would pass with a reader that refuses everything."""
    for seed in range(100):
        rng = random.Random(seed)
        rows = [[f"t{random_cell(rng)}t", str(n), random_cell(rng)] for n in range(5)]
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([["text", "id", "x"], *rows])
        path = write(tmp_path / f"{seed}.csv", buffer.getvalue())
        assert [[d.text, d.id, d.metadata["x"]] for d in read_documents(path, on_skip=Skips())] == rows


@pytest.mark.parametrize(
    "content",
    ['text,n\n"' + '"' * 2**20, 'text,n\n"' + "a,b\n" * 2**18, "text,n\na," + '\\"' * 2**19, "text, n\na, " + " " * 2**20],
)
def test_adversarial_tables_take_linear_time(tmp_path, content):
    path = write(tmp_path / "a.csv", content)
    begin = time.process_time()
    try:
        list(read_documents(path, on_skip=Skips()))
    except ReadError as error:
        assert len(str(error)) < 1000  # noqa: PT017
    assert time.process_time() - begin < 10


def test_large_cells_and_many_columns(tmp_path):
    assert len(only(write(tmp_path / "a.csv", 'id,text\n1,"' + "x" * 20_000_000 + '"\n')).text) == 20_000_000
    header = ",".join(f"c{i}" for i in range(50_000))
    wide = only(write(tmp_path / "b.csv", f"{header}\n{header.replace('c', 'v')}\n"), text_field="c5")
    assert (wide.text, wide.metadata["c49999"]) == ("v5", "v49999")
    assert len(refusal(tmp_path / "b.csv")) < 2000


# JSON


def test_fields_that_cannot_be_metadata_are_said_once(tmp_path):
    lines = [
        {"text": f"t{i}", "tags": ["a"], "by": {"name": "x"}, "long": "z" * 1001, "n": float("nan"), "none": None}
        for i in range(9)
    ]
    skips = Skips()
    assert table(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))), on_skip=skips) == [
        (f"t{i}", {}) for i in range(9)
    ]
    assert [re.search(r"'(\w+)' .* where it is (.*)", reason).groups() for _, reason in skips] == [
        ("tags", "a list"),
        ("by", "an object"),
        ("long", "longer than 1,000 characters"),
        ("n", "not a finite number"),
    ]


def test_reports_of_rows_and_fields_are_bounded(tmp_path):
    skips = Skips()
    lines = [{"text": "x", f"f{i}": []} for i in range(500)] + [{"text": ""}] * 1000
    table(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))), on_skip=skips, id_field="")
    assert len(skips) < 250
    assert "900 more like this: has no text" in skips.reasons()
    assert "in other fields" in skips.reasons()


def test_a_field_that_is_there_twice_is_said(tmp_path):
    skips = Skips()
    assert table(write(tmp_path / "a.jsonl", '{"text": "a", "y": 1, "y": 2}'), on_skip=skips) == [("a", {"y": 2})]
    assert "'y' is there twice" in skips.reasons()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": "b"}', "name it .jsonl"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "number of more than 4,300 digits"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    ],
)
def test_json_that_cannot_be_read_says_why(tmp_path, content, message):
    assert message in refusal(write(tmp_path / "a.json", content))


def test_an_id_that_is_not_a_number_is_none(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "id": NaN}\n{"text": "b", "id": NaN}')
    assert [document.id[-2:] for document in read_documents(path, on_skip=Skips())] == ["#1", "#2"]
    assert "--id-field" in refusal(path, id_field="id")


# Parquet


def parquet_file(path, columns):
    parquet.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


def test_parquet_types(tmp_path):
    columns = {
        "text": pa.array(["x"], pa.large_string()),
        "day": pa.array([datetime.date(2021, 3, 4)]),
        "ms": pa.array([1500], pa.timestamp("ms", tz="Europe/Berlin")),
        "ns": pa.array([1234567890123456789], pa.timestamp("ns")),
        "midnight": pa.array([0], pa.timestamp("us")),
        "time": pa.array([datetime.time(1, 2, 3, 40)]),
        "price": pa.array([decimal.Decimal("12.50")]),
        "word": pa.array(["q"]).dictionary_encode(),
        "view": pa.array(["v"], pa.string_view()),
        "big": pa.array([2**53 + 1]),
        "bigger": pa.array([2**64 - 1], pa.uint64()),
        "key": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid.UUID(int=5).bytes], pa.binary(16))),
        "none": pa.nulls(1),
        "a.b": pa.array(["flat"]),
        "a": pa.array([{"b": 1}]),
        "list": pa.array([[1]]),
        "bytes": pa.array([b"x"]),
    }
    skips = Skips()
    assert table(parquet_file(tmp_path / "a.parquet", columns), on_skip=skips) == [
        (
            "x",
            {
                "day": "2021-03-04",
                "ms": "1970-01-01T00:00:01.5Z",
                "ns": "2009-02-13T23:31:30.123456789",
                "midnight": "1970-01-01T00:00:00",
                "time": "01:02:03.00004",
                "price": "12.50",
                "word": "q",
                "view": "v",
                "big": 2**53 + 1,
                "bigger": 2**64 - 1,
                "key": "00000000-0000-0000-0000-000000000005",
                "a.b": "flat",
            },
        )
    ]
    assert [re.search("column '(.*)' is left out", reason)[1] for _, reason in skips] == ["a", "list", "bytes"]


def test_parquet_columns_that_cannot_be_told_apart_or_read(tmp_path):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    assert "2 columns called 'text'" in refusal(parquet_file(tmp_path / "a.parquet", twice))
    path = parquet_file(tmp_path / "b.parquet", {"text": [["a"]], "body": ["b"], "key": [b"k"]})
    assert [text for text, _ in table(path, on_skip=Skips())] == ["b"]
    assert "the column 'text' holds list<" in refusal(path, text_field="text")
    assert "the column 'key' holds binary" in refusal(path, id_field="key")
    assert "no column of text" in refusal(parquet_file(tmp_path / "c.parquet", {"x": [[1]]}))
