"""``memory3 prepare``: what each stage keeps and removes, the same bytes however it ran, and folders from strangers."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bank_writer import HashingEmbedder
from command_line import error, run, run_json
from prepared_texts import lines, page, prose, warc_record, zipped

from memory3 import read_documents
from memory3.bank.embedder import Embedder
from memory3.errors import ConfigError, InputError, Memory3Error
from memory3.preparing import STAGES, PrepareSettings, prepare
from memory3.preparing.documents import as_step
from memory3.preparing.duplicates import signatures
from memory3.preparing.grading import embedder, least_grade
from memory3.preparing.personal import masked
from memory3.preparing.quality import STRENGTHS, agreement, fit, ridge
from memory3.preparing.reading import find_same
from memory3.preparing.rules import Rules, entropy, mean_word_length, non_alphabetic, proper_words
from memory3.preparing.settings import PrepareSettings as Settings
from memory3.preparing.shards import deal
from memory3.types import Document


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Embedder, "load", lambda name, **_: HashingEmbedder(name))
    embedder.cache_clear()


def only(*stages, **settings):
    return PrepareSettings(without=tuple(stage for stage in STAGES if stage not in stages), **settings)


def stage(report, name):
    return next(one for one in report["stages"] if one["stage"] == name)


def content(folder):
    """Everything that a finished folder holds, but for what says how it was made."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


# ---- rules ---------------------------------------------------------------------------------------------------------------

NORMAL = prose(1)
LONG = " ".join(["Donaudampfschifffahrtsgesellschaft"] + [f"konstitutionell{n}" for n in range(60)])
RULES = [
    ("too few words", " ".join(NORMAL.split()[:49]), " ".join(NORMAL.split()[:50])),
    ("words too long", LONG, "Donaudampfschifffahrtsgesellschaft " + NORMAL),
    ("too few letters", " ".join(f"{n} 17:05 +{n * 7}% a{n}" for n in range(60)), NORMAL + " 17:05 +12%"),
    ("entropy too low", "buy cheap shoes now here today " * 20, NORMAL),
    ("repeated lines", "\n".join([NORMAL] + ["Share this page"] * 2), "\n".join([NORMAL, "Share this page", prose(2)])),
]


@pytest.mark.parametrize(("reason", "bad", "good"), RULES, ids=[rule[0] for rule in RULES])
def test_each_rule_removes_one_and_keeps_another(reason, bad, good, tmp_path):
    rules = Rules(Settings(), tmp_path / "removed")
    assert rules.filter(as_step(Document("b", bad))) == (False, reason)
    assert rules.filter(as_step(Document("g", good))) is True


def test_thresholds_are_options_and_what_they_compare_is_what_they_say():
    text = "Drei Wörter, und 7 — 12%!"
    words = ["Drei", "Wörter", "und", "7", "12"]
    assert proper_words(text) == words
    assert mean_word_length(words) == pytest.approx((4 + 6 + 3 + 1 + 2) / 5)
    visible = [character for character in text if not character.isspace()]
    assert non_alphabetic(text) == pytest.approx(sum(not c.isalpha() for c in visible) / len(visible))
    assert entropy(["a", "b", "A", "c"]) == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert (non_alphabetic(" "), entropy([]), mean_word_length([])) == (1.0, 0.0, 0.0)
    assert len(proper_words("桥于一八七四年建成。")) == 9  # each character, and not the full stop


# ---- near-duplicates -----------------------------------------------------------------------------------------------------


def jaccard(one, other, n=5):
    """Of n-grams of words: what MinHash estimates."""
    grams = [set(zip(*(text.split()[i:] for i in range(n)), strict=False)) for text in (one, other)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_near_duplicates_are_found_across_files(tmp_path):
    text = prose(3, 31)
    near = text + " One more sentence stands here at the end of it."
    other = prose(4, 31)
    assert jaccard(text, near) > 0.9
    assert jaccard(text, other) < 0.1
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text(text)
    (folder / "b.jsonl").write_text(lines([{"id": "x", "text": other}, {"id": "y", "text": near}]))
    (folder / "c.txt").write_text("word " + prose(5, 31))
    (folder / "d.txt").write_text("Same three words.")
    (folder / "e.txt").write_text("Same three words.")
    report = prepare([folder], "out", only("duplicates"))
    found = stage(report, "duplicates")
    assert (report["read"], report["kept"], found["removed"]) == (6, 4, 2)
    pairs = {frozenset((sample["id"], sample["near"])) for sample in found["samples"]}
    assert pairs == {frozenset(("a.txt", "y")), frozenset(("d.txt", "e.txt"))}
    kept = {document.id for document in read_documents("out")}
    assert all(len(pair & kept) == 1 for pair in pairs)


def test_signatures_of_long_texts_are_those_of_the_whole_at_once(tmp_path, monkeypatch):
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    monkeypatch.setattr("memory3.preparing.duplicates._AT_A_TIME", 7)
    step = signatures(tmp_path / "s")
    shingles = step.get_shingles(prose(6, 5))
    assert len(shingles) > 3 * 7
    assert step.get_signature(shingles) == MinhashDedupSignature.get_signature(step, shingles)


# ---- pages and archives --------------------------------------------------------------------------------------------------


def test_the_main_text_of_pages_is_taken_or_the_visible_one(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.html").write_text(page(NORMAL, "Bridges"))
    (folder / "b.html").write_text("<html><body></body></html>")
    (folder / "c.txt").write_text("No page, and as it was.")
    (folder / "d.html").write_text("<html><body><script>x()</script><p>.</p></body></html>")
    prepare([folder], "main", only("extraction"))
    prepare([folder], "seen", only())
    main, seen = ({one.id: one for one in read_documents(out)} for out in ("main", "seen"))
    assert "Menu entry" in seen["a.html"].text
    assert "Menu entry" not in main["a.html"].text
    assert NORMAL in main["a.html"].text
    assert main["a.html"].metadata == {"title": "Bridges"}
    assert main["c.txt"].text == "No page, and as it was."


def test_archives_are_read_and_what_is_damaged_in_them_is_passed_over(tmp_path):
    first, second = prose(11), prose(12)
    records = [
        warc_record("https://a.example/1", page(first, "One")),
        warc_record("https://a.example/gone", page(NORMAL), status="404 Not Found"),
        warc_record("https://a.example/x.png", b"\x89PNG\r\n\x1a\n", media="image/png"),
        warc_record("https://a.example/2", page(second, "Two").encode("latin-1"), media="text/html; charset=iso-8859-1"),
        warc_record("https://a.example/3", prose(13), kind="conversion"),
    ]
    damaged = bytearray(gzip.compress(records[0], mtime=0))
    damaged[40:60] = b"\xff" * 20
    bomb = gzip.compress(warc_record("https://a.example/bomb", b"<p>" + b"a" * 3_000_000), mtime=0)
    nonsense = gzip.compress(b"WARC/1.0\r\nContent-Length: nine\r\n\r\n", mtime=0)
    archive = zipped(records[0]) + bytes(damaged) + zipped(*records[1:4]) + bomb + nonsense + zipped(records[4])
    (tmp_path / "c.warc.gz").write_bytes(archive)
    (tmp_path / "plain.warc").write_bytes(
        b"".join(records[:2]) + b"WARC/1.0\r\nrubbish\r\n\r\n" + records[3] + records[4][:-90]
    )
    report = prepare(["c.warc.gz", "plain.warc"], "out", only("extraction", max_bytes=1_000_000))
    found = {one.id: one for one in read_documents("out")}
    urls = {id_: one.source for id_, one in found.items()}
    assert list(urls.values()) == [f"https://a.example/{n}" for n in (1, 2, 3, 1, 2)]
    assert all(id_.startswith(("c.warc.gz#", "plain.warc#")) for id_ in urls)
    assert [one.metadata.get("title") for one in found.values()] == ["One", "Two", None, "One", "Two"]
    assert second in found["c.warc.gz#5"].text
    said = " ".join(f"{one['place']} {one['reason']}" for one in report["skipped"]["first"])
    for part in (
        "cannot be unzipped",
        "holds more than",
        "does not say its length",
        "cut off",
        "status 404: 1",
        "image/png: 1",
    ):
        assert part in said, part


def test_a_damaged_archive_loses_only_the_damaged_record(tmp_path):
    """Wherever the damage lies, the records around it are read."""
    records = [warc_record(f"https://a.example/{n}", page(prose(n))) for n in range(3)]
    members = [gzip.compress(record, mtime=0) for record in records]
    for place in (0, 5, 12, len(members[1]) // 2, len(members[1]) - 4):
        middle = bytearray(members[1])
        middle[place : place + 4] = b"\xa5" * 4
        (tmp_path / "c.warc.gz").write_bytes(members[0] + bytes(middle) + members[2])
        urls = [document.source[-1] for document in read_documents("c.warc.gz", on_skip=lambda *_: None)]
        assert urls[0] == "0", place
        assert urls[-1] == "2", place


# ---- language, quality, personal data ------------------------------------------------------------------------------------


def test_languages_are_kept_or_only_counted(tmp_path):
    german = "Die Brücke wurde von den Bürgern der Stadt im Jahre 1874 über den Fluss gebaut und steht noch heute dort."
    (tmp_path / "in.jsonl").write_text(
        lines([{"id": "en", "text": NORMAL}, {"id": "de", "text": german}, {"id": "short", "text": "De Voortrekkers."}])
    )
    report = prepare(["in.jsonl"], "one", only("language", languages=("en",)))
    assert [document.id for document in read_documents("one")] == ["en", "short"]
    assert stage(report, "language")["reasons"] == {"de": 1}
    report = prepare(["in.jsonl"], "all", only("language"))
    assert (report["kept"], report["languages"]) == (3, {"de": 1, "en": 1, "unsure": 1})
    with pytest.raises(ConfigError, match="klingon"):
        prepare(["in.jsonl"], "none", only("language", languages=("klingon",)))


def test_ridge_is_the_solution_of_its_normal_equations_and_its_strength_that_of_leaving_one_out():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(23, 5)), draw.normal(size=23)
    weights, bias = ridge(x, y, 0.7)
    with_one = np.hstack([x, np.ones((23, 1))])
    plain = np.linalg.solve(with_one.T @ with_one + 0.7 * np.diag([1.0] * 5 + [0.0]), with_one.T @ y)
    np.testing.assert_allclose([*weights, bias], plain)

    def left_out(strength):
        errors = []
        for i in range(23):
            rest = np.arange(23) != i
            w, b = ridge(x[rest], y[rest], strength)
            errors.append((x[i] @ w + b - y[i]) ** 2)
        return np.mean(errors)

    assert fit(x, y).strength == min(STRENGTHS, key=left_out)


def test_agreement_and_the_least_grade_are_counted():
    predicted, grades = np.array([0.1, 0.5, 0.5, 0.9, 0.2]), np.array([1.0, 1.0, 2.0, 3.0, 3.0])
    right = [
        1.0 if p > q else 0.5 if p == q else 0.0
        for (p, g), (q, h) in itertools.permutations(zip(predicted, grades, strict=True), 2)
        if g > h
    ]
    assert agreement(predicted, grades) == pytest.approx(sum(right) / len(right))
    parts = [np.array([3.0, 1.0]), np.zeros(0), np.array([2.0, 5.0, 4.0])]
    assert [least_grade(parts, share) for share in (1, 0.6, 0.61, 0.2)] == [1.0, 3.0, 2.0, 5.0]
    assert least_grade(parts, 0) == math.inf


def test_a_judge_keeps_the_share_that_it_grades_best(tmp_path):
    good = [f"bridge river library {n} castle orchard" for n in range(30)]
    bad = [f"casino bonus jackpot {n} spins winner" for n in range(30)]
    (tmp_path / "graded.jsonl").write_text(
        lines(
            [
                {"text": text, "grade": grade}
                for pair in zip(good, bad, strict=True)
                for text, grade in zip(pair, (5, 1), strict=True)
            ]
        )
    )
    texts = [("castle orchard bridge 77", "casino spins bonus 77"), ("river library bridge 78", "jackpot winner casino 78")]
    (tmp_path / "in.jsonl").write_text(lines([{"id": t, "text": t} for pair in texts for t in pair]))
    report = prepare(["in.jsonl"], "out", only("quality", graded="graded.jsonl", keep_best=0.5))
    assert [document.id for document in read_documents("out")] == [pair[0] for pair in texts]
    judge = report["judge"]
    assert judge["agreement"] > 0.9
    assert (judge["examples"], judge["source"], judge["embedder"]) == (60, "graded.jsonl", "all-minilm-l6-v2")
    assert report["kept"] == prepare(["in.jsonl"], "x", only("quality", graded="graded.jsonl", min_grade=3.0))["kept"] == 2
    (tmp_path / "few.jsonl").write_text(lines([{"text": "a", "grade": 1}]))
    with pytest.raises(InputError, match="at least 20"):
        prepare(["in.jsonl"], "y", only("quality", graded="few.jsonl", keep_best=0.5))
    (tmp_path / "none.jsonl").write_text(lines([{"text": "a", "mark": 1}]))
    with pytest.raises(InputError, match="no grade"):
        prepare(["in.jsonl"], "z", only("quality", graded="none.jsonl", keep_best=0.5))


def test_addresses_are_masked_in_texts_titles_and_samples(tmp_path):
    text = f"Write to jane.doe@example.org or 8.8.8.8. {NORMAL}"
    records = [
        {"id": "a", "text": text, "title": "By jane.doe@example.org", "year": 1874},
        {"id": "b", "text": "short: joe@example.org"},
    ]
    (tmp_path / "in.jsonl").write_text(lines(records))
    report = prepare(["in.jsonl"], "out", only("personal", "rules"))
    (kept,) = read_documents("out")
    assert kept.text.startswith("Write to [e-mail] or [IP address]. The ")
    assert kept.metadata == {"title": "By [e-mail]", "year": 1874}
    assert report["masked"] == 1
    assert "joe@" not in json.dumps(report)
    assert "joe@" not in Path("out/report.html").read_text()


def test_masking_finds_what_the_pattern_finds_and_takes_linear_time():
    from datatrove.pipeline.formatters.pii import PIIFormatter

    whole = PIIFormatter(email_replacement="[e-mail]", ip_replacement="[IP address]")
    texts = [
        ("word " * 150).join(["a@b.org", "x.y@z.example.com", "no@", "@", "1.2.3.4 and 10.0.0.1"]),
        "a@b.org",
        "",
        "@" * 900,
    ]
    for text in texts:
        assert masked(text) == whole.format(text)
    began = time.monotonic()
    masked("a!" * 200_000 + "@" + "b." * 200_000)
    assert time.monotonic() - began < 10


# ---- what comes out ------------------------------------------------------------------------------------------------------


def corpus(folder):
    folder.mkdir()
    (folder / "a.md").write_text("# Bridges\n\n" + prose(21))
    (folder / "b.jsonl").write_text(
        lines(
            [
                {"id": f"b{n}", "text": prose(30 + n), "title": f"B {n}", "source": "wiki", "rank": "../../x", "n": n}
                for n in range(7)
            ]
            + [{"id": "short", "text": "Too short."}]
        )
    )
    (folder / "c.html").write_text(page(prose(22), "A page of ours"))
    (folder / "d.csv").write_text('id,text,year\nd1,"' + prose(23) + '",1874\n')
    (folder / "e.jsonl").write_text(
        lines([{"id": "b3", "text": prose(33), "title": "B 3", "source": "wiki", "rank": "../../x", "n": 3}])
    )
    (folder / "f.docx").write_bytes(b"PK\x03\x04")


def test_documents_come_out_as_they_went_in(tmp_path):
    """Ids, texts, sources, origins and metadata, whatever their names: what `write` reads is what it would have read."""
    corpus(tmp_path / "in")
    report = prepare(["in"], "out", only())
    before = list(read_documents("in", on_skip=lambda *_: None))
    after = list(read_documents("out"))
    assert after == before
    assert [one.origin for one in after] == [one.origin for one in before]
    assert list(read_documents("out/part-00001.jsonl.gz")) == [one for one in before if one.source == "in/b.jsonl"]
    assert stage(report, "ids")["removed"] == 1  # b3 of e.jsonl
    assert any(one["place"] == "in/f.docx" for one in report["skipped"]["first"])
    assert not list(tmp_path.parent.glob("x*"))


def test_a_bank_is_written_from_it_and_cites_the_files_behind_it(tmp_path, tiny_model_path):
    corpus(tmp_path / "in")
    run("prepare", "in", "--out", "clean", "--without", "extraction")
    written = run_json("write", "clean", "--bank", "bank", "--model", tiny_model_path)
    assert written["written"] == 10
    again = run_json("write", "in", "--bank", "bank")  # the same places: nothing is in conflict, and nothing changed
    assert (again["unchanged"], again["written"], again["conflicts"]) == (10, 1, [])


def test_two_runs_give_the_same_bytes(tmp_path, capfd):
    corpus(tmp_path / "in")
    prepare(["in"], "one")
    first = content("one")
    assert {"part-00000.jsonl.gz", "report.json", "report.html"} <= set(first)
    prepare(["in"], "two")
    assert content("two") == first
    assert capfd.readouterr().err == ""  # datatrove and its bars say nothing


def _prepare(pipe, workers):
    """In a process that will be killed."""
    prepare(["in"], "out", workers=workers, tell=lambda what, done, total, more: pipe.send(f"{what} {done}"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("moment", "workers"),
    [("reading 3", 1), ("near-duplicates: comparing 5", 1), ("writing 2", 2)],
    ids=["early", "mid", "late"],
)
def test_killed_and_run_again_it_gives_the_same_bytes(tmp_path, moment, workers):
    """Also where other processes did the work: they end with the one that is killed, else they would write over what the
    next run writes.
    """
    corpus(tmp_path / "in")
    prepare(["in"], "whole")
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    killed = multiprocessing.get_context("fork").Process(target=_prepare, args=(theirs, workers))
    killed.start()
    what, _, number = moment.rpartition(" ")
    try:
        while True:
            said, _, done = ours.recv().rpartition(" ")
            if said == what and int(done) >= int(number):
                break
        processes = [int(path.stem) for path in Path("out/.prepare/workers").glob("*.lock")]
        os.kill(killed.pid, signal.SIGKILL)
    finally:
        killed.kill()
        killed.join()
    assert len(processes) == (workers if workers > 1 else 0)
    assert not Path("out/report.json").exists()
    with pytest.raises(InputError, match="has not come to its end"):
        list(read_documents("out"))
    told = []
    prepare(["in"], "out", tell=lambda what, done, total, more: told.append((what, done)))
    assert min(done for one, done in told if one == what) >= int(number)  # what was done was not done again
    assert content("out") == content("whole")
    for process in processes:
        state = Path(f"/proc/{process}/stat")
        assert not state.is_file() or state.read_text().split()[2] == "Z"


# ---- refusals ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_other_settings_files_or_owners_is_refused(tmp_path):
    corpus(tmp_path / "in")
    first = prepare(["in"], "out", only("rules", min_words=10))
    assert prepare(["in"], "out", only("rules", min_words=10))["kept"] == first["kept"]  # finished, and as it was
    with pytest.raises(InputError, match="min_words 10, not 11"):
        prepare(["in"], "out", only("rules", min_words=11))
    (tmp_path / "in/new.txt").write_text(NORMAL)
    with pytest.raises(InputError, match="other files"):
        prepare(["in"], "out", only("rules", min_words=10))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("Dear reader,")
    with pytest.raises(InputError, match="holds other files"):
        prepare(["in"], "mine")
    from filelock import FileLock

    with FileLock("out/.prepare/lock"), pytest.raises(Memory3Error, match="another process"):
        prepare(["in"], "out", only("rules", min_words=10))


def test_one_id_with_two_texts_is_refused_and_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines([{"id": "x", "text": prose(1)}, {"id": "y", "text": prose(2)}]))
    (tmp_path / "b.jsonl").write_text(lines([{"id": "y", "text": prose(3)}]))
    with pytest.raises(InputError, match=r"'y', from a\.jsonl and from b\.jsonl"):
        prepare(["a.jsonl", "b.jsonl"], "out", only())
    marks = tmp_path / "marks"
    marks.mkdir()
    np.save(marks / "00000.npy", np.array([[5, 1], [6, 2], [5, 1]], np.uint64))
    np.save(marks / "00001.npy", np.array([[7, 3], [6, 2], [5, 1]], np.uint64))
    assert find_same(marks, 2, lambda *_: ("", ""), tmp_path / "same") == 3
    left_out = [np.load(tmp_path / f"same/0000{task}.npy").tolist() for task in range(2)]
    assert left_out == [[2], [1, 2]]


def test_files_are_dealt_in_order_and_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("memory3.preparing.shards._MOST_TASKS", 5)
    folder = tmp_path / "in"
    folder.mkdir()
    sizes = (1000, 10, 10, 10, 900, 10, 10, 10, 10, 10, 10)
    for number, size in enumerate(sizes):
        (folder / f"{number:02d}.txt").write_text("x" * size)
    tasks = deal(["in"], tmp_path / "out").tasks
    assert [Path(file.path).name for task in tasks for file in task] == [f"{n:02d}.txt" for n in range(11)]
    assert len(tasks) == 5
    assert all(tasks)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"without": ("spelling",)}, "no such stage"),
        ({"max_repeated_lines": 1.5}, "between 0 and 1"),
        ({"keep_best": 0.5}, "need examples"),
        ({"graded": "x"}, "needs one of"),
        ({"languages": ("en",), "without": ("language",)}, "one of both"),
        ({"min_words": -1}, "not negative"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ConfigError, match=said):
        PrepareSettings(**settings)


def test_the_command_reports_and_refuses(tmp_path):
    corpus(tmp_path / "in")
    shown = run("prepare", "in", "--out", "out", "--without", "language,extraction", "--min-words", "20").output
    assert "12 documents read, 10 kept" in shown
    assert "too few words 1" in shown
    assert "report.html" in shown
    found = run_json("prepare", "in", "--out", "out", "--without", "language,extraction", "--min-words", "20")
    assert found["read"] == sum(one["removed"] for one in found["stages"]) + found["kept"]
    assert Counter(one["ran"] for one in found["stages"]) == {True: 3, False: 3}
    assert "no share" in error("prepare", "in", "--out", "x", "--graded", "g", "--keep-best", "7", code=2)
    assert "standard input" in error("prepare", "-", "--out", "x")
    assert "does not exist" in error("prepare", "nothing", "--out", "x")


def test_texts_of_strangers_are_escaped_in_the_page(tmp_path):
    (tmp_path / "in.jsonl").write_text(lines([{"id": "<script>alert(1)</script>", "text": "<img src=x onerror=alert(2)>"}]))
    prepare(["in.jsonl"], "out", only("rules"))
    shown = Path("out/report.html").read_text()
    assert "<script>" not in shown
    assert "<img" not in shown
    assert "&lt;img src=x" in shown
