"""Questions made of texts by leaving something out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny
from training_runs import run_settings, write_records
from typer.testing import CliRunner

from memory3.cli.app import app
from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.training.cloze import GAP, cloze_questions
from memory3.training.groups import read_groups
from memory3.training.run import sample_groups
from memory3.training.settings import Settings

BRIDGE = (
    "The Kestrel Bridge at Holm was opened on 11 May 1874 by Dr. A. Brennan (of Tarn), who had built others. "
    "It has eleven arches of red stone and is 235 m long! "
    "The annual fair of the town takes place there; visitors pay three crowns for it."
)


def asked(text: str, rounds: int = 60) -> set[tuple[str, str]]:
    """Whatever any seed leaves out."""
    return {(q.question, q.answer) for seed in range(rounds) for q in cloze_questions([text], 7, seed=seed)}


def test_what_is_left_out() -> None:
    found = asked(BRIDGE)
    assert {answer for _, answer in found} == {"Holm", "11 May 1874", "Dr. A. Brennan", "Tarn", "235"}
    start = "The Kestrel Bridge at Holm was opened on"
    assert (f"{start} ...", "11 May 1874") in found
    assert (f"{start} {GAP} by Dr. A. Brennan (of Tarn), who had built others.", "11 May 1874") in found
    assert (f"It has eleven arches of red stone and is {GAP} m long!", "235") in found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Marmots sleep for seven months, and before winter they close the burrow with hay.", "no name, no number"),
        ("In the year 1874 it was built, and in 1875 it was called the bridge of 1874 by all who lived there.", "twice"),
        ("Built by Ada in 1874.", "short"),
        ("It stands in Holm " + "and people came from far away to see it " * 8 + ".", "long"),
        (
            "桥建于一八七四年,由县里的工程师建造,它有十一个红石拱门,游客支付三克朗,儿童免费,每年六月的第一周举行集市。",
            "no capitals",
        ),
        ("", "nothing"),
    ],
)
def test_what_is_not_asked(text: str, why: str) -> None:
    answers = {answer for _, answer in asked(text)}
    assert answers <= {"1875"}, why
    assert "1874" not in answers


def test_every_question_is_answered_by_its_text() -> None:
    rng = random.Random(5)
    words = [
        "river",
        "Holm",
        "of",
        "Ada",
        "1874",
        "stone",
        "built",
        "Tarn-on-Sea",
        "3.5",
        "the",
        "which",
        "people",
        "(Lom)",
        "grew,",
    ]
    texts = [". ".join(" ".join(rng.choices(words, k=rng.randrange(5, 23))) for _ in range(7)) + "." for _ in range(31)]
    made = list(cloze_questions(texts, 3, seed=2))
    assert made == list(cloze_questions(texts, 3, seed=2)) != list(cloze_questions(texts, 3, seed=3))
    assert len(made) > 31
    assert all(sum(q.passage == text for q in made) <= 3 for text in texts)
    for question in made:
        assert question.passage.count(question.answer) == 1
        gap = f" {GAP}" if GAP in question.question else " ..."
        before, after = question.question.split(gap)
        assert any(f"{before}{space}{question.answer}{after}" in question.passage for space in (" ", " (", ""))


def test_texts_alone_are_trained_on(tmp_path: Path) -> None:
    """Each is one document, asked about and continued; the group of a question reads the reference that answers it."""
    texts = [
        f"The bridge of the county number {n} was built in {1700 + 7 * n} by the engineer, who lived in the old town."
        for n in range(11)
    ]
    data = write_records(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    settings = run_settings(
        save_tiny(tmp_path / "model", chat=True), data, cloze=2, mixture={"memory": 2, "plain": 1}, eval_every=0, steps=9
    )
    told = []
    sample_groups(settings, tmp_path / "run", progress=lambda what, done, total, more: told.append((what, total)))
    assert ("embedding", len(texts)) in told  # none is both a passage and a text
    m3 = Memory3.from_pretrained(settings.model, config=settings.memory)
    groups = [group for group in read_groups(tmp_path / "run" / "groups.jsonl") if group.kind == "memory"]
    rows = [
        (m3.tokenizer.decode(row.tokens[len(row.tokens) - row.scored : -1]).strip(), group)
        for group in groups
        for row in group.rows
    ]
    assert len({answer for answer, _ in rows}) > 5
    for answer, group in rows:
        assert any(answer in m3.tokenizer.decode(tokens) for _, tokens in group.references)


def test_settings_files_of_older_versions_load(tmp_path: Path) -> None:
    """What is now called cloze was called blanks, and is so in files; options and settings may be called either way."""
    old = {"blanks": 3, "steps": 7, "warmup": 1, "decay": 0.2, "mixture": {"memory": 2, "plain": 1}}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(old))
    settings = Settings.read(path)
    assert (settings.cloze, settings.steps) == (3, 7)
    assert settings == Settings.from_dict({**old, "cloze": 3, "blanks": 3}) == Settings.from_dict(settings.to_dict())
    assert settings.to_dict()["blanks"] == 3
    assert "cloze" not in settings.to_dict()
    assert settings.replace(cloze=5).cloze == settings.replace(blanks=5).cloze == 5
    for stored in sorted((Path(__file__).parents[1] / "docs" / "training").glob("*.json")):
        given = json.loads(stored.read_text())
        given = given.get("settings", given)
        assert Settings.from_dict(given).to_dict() == {**Settings().to_dict(), **given, **unstated(given)}


def unstated(given: dict[str, Any]) -> dict[str, Any]:
    """What a file leaves to the defaults within its groups of settings."""
    whole = Settings.from_dict(given).to_dict()
    return {name: whole[name] for name in ("memory", "mixture")}


@pytest.mark.parametrize("option", ["--cloze", "--blanks"])
def test_the_option_has_two_names(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def stop(settings: Settings, *_: Any, **__: Any) -> None:
        seen.append(settings)
        raise InputError("far enough")

    monkeypatch.setattr("memory3.training.run.train", stop)
    said = CliRunner().invoke(app, ["train", "continual", "--out", str(tmp_path), "--data", "x.jsonl", option, "3"])
    assert "far enough" in said.output
    assert seen[0].cloze == 3
