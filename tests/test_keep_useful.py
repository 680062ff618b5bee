"""``memory3 write --keep-useful``: exactly the most useful references have memories, all others are found as text."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from command_line import _stand_in, error, run, run_json  # noqa: F401 (fixtures)

from memory3 import Bank, Memory3
from memory3.bank.lazy import lazy_among
from memory3.bank.store import Store
from memory3.cli.keep_useful import Wanted
from memory3.usefulness import Gains, most_useful

TEXTS = {
    "bridge": "The old bridge of the town was built in 1874 by Ada Stone of Norwich. It is of grey granite from Aberdeen.",
    "empty": "see also",
    "river": "Below the market the river is called Orwell by those who live there. In the winter of 1902 it froze over.",
    "ferry": "Every day at noon the ferry of Captain Reed left for Harwich with the mail of the county.",
    "mill": "Behind the church stood the mill of Jonah Pike, who ground the corn of Suffolk until the year 1911.",
}


@pytest.fixture(name="notes")
def notes_file(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in TEXTS.items()))
    return path


def stored(model):
    """Ids of all references in order, and of those that have memories."""
    m3 = Memory3.from_pretrained(model)
    with Bank.open("bank", m3) as bank:
        ids = sorted(f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references))
        references, lazy = bank.references(ids), lazy_among(Store("bank").snapshot(), ids)
        assert not any(bank.recalls().values())
    return m3, references, {reference.id for reference in references} - set(lazy)


def test_half_are_written_and_they_are_the_most_useful(notes, tiny_model_path, tmp_path):
    given = ("write", notes, "--bank", "bank", "--model", tiny_model_path, "--keep-useful", "50%")
    said = run_json(*given)["useful"]
    m3, references, kept = stored(tiny_model_path)
    half = -(-len(references) // 2)
    assert kept == set(most_useful(Gains(m3, None).of(references), {}, half))
    assert (said["references"], said["kept"], said["encoded"]) == (len(references), half, half)
    assert said["left_as_text"] == len(references) - half
    assert said["without_a_question"] >= 1
    assert not list(tmp_path.glob("*.gains.jsonl"))
    assert run_json(*given)["useful"]["encoded"] == 0  # again: all is there


def test_a_log_decides_and_what_it_does_not_know_is_told(notes, tiny_model_path, tmp_path):
    def gains(references, m3):
        return Gains(m3, None).of(references)

    log = tmp_path / "log.csv"
    log.write_text("document,count\nmill,1000000\ngone,4\n")
    result = run("write", notes, "--bank", "bank", "--model", tiny_model_path, "--keep-useful", "1", "--usage", log)
    assert "gone" in result.stderr
    assert "1 most useful" in " ".join(result.stdout.split())
    m3, references, kept = stored(tiny_model_path)
    found = gains(references, m3)
    mine = [r.id for r in references if r.document_id == "mill"]
    usage = dict.fromkeys(mine, 1 + 1000000 / len(mine))
    assert kept == set(most_useful(found, usage, 1))


def test_shares_and_numbers():
    assert Wanted.parse("50%") == Wanted(Fraction(1, 2))
    assert [Wanted.parse(" 12.5 % ").of(n) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]
    assert [Wanted.parse("3").of(n) for n in (2, 3, 4)] == [2, 3, 3]


@pytest.mark.parametrize("text", ["0%", "0", "101%", "-5", "half", "0.5", "", "%", "١٠%", "1e3"])
def test_nonsense_is_refused(text, notes):
    assert "such as 50%, or a number" in error("write", notes, "--bank", "bank", f"--keep-useful={text}", code=2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--usage", "log.csv"], "give --keep-useful too"),
        (["--keep-useful", "50%", "--cold"], "give one of them"),
        (["--keep-useful", "50%", "--disk", "1GB"], "give one of them"),
        (["--keep-useful", "50%", "--workers", "2"], "leave out --workers and --ray"),
    ],
)
def test_what_contradicts_is_refused(more, said, notes):
    assert said in error("write", notes, "--bank", "bank", *more, code=2)


def test_a_broken_log_is_refused_before_anything_is_written(notes, tmp_path):
    (tmp_path / "log.csv").write_text("document,count\nmill,-1\n")
    said = error("write", notes, "--bank", "bank", "--keep-useful", "50%", "--usage", "log.csv")
    assert "give a whole number from 0" in said
    assert not (tmp_path / "bank").exists()
