"""`memory3 bench scale` at a tiny size: what it reports against the bank that it made, and against plain counting."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory3 import benchmarks
from memory3.bank import Bank
from memory3.benchmarks import scale
from memory3.benchmarks.scale_predictions import beside
from memory3.benchmarks.scale_questions import questions
from memory3.benchmarks.synthetic import NoiseEmbedder, NoiseWriter, noise_text, question
from memory3.codec.raw import record_size
from memory3.errors import BankNotFound, InputError

pytestmark = pytest.mark.long

ROWS, DIMENSION, PAIRS, QUESTIONS, K = 300, 11, 130, 70, 5


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the benchmark says, and what there was in the bank after each step. All steps in this process."""
    with pytest.MonkeyPatch.context() as patch:
        there: dict[str, Any] = {}
        told: list[dict[str, Any]] = []

        def step(name: str, *arguments: object) -> dict[str, Any]:
            getattr(scale, f"_{name}")(*map(str, arguments))
            with Bank.open(arguments[0], None) as bank:
                ids = [f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references)]
                there[" ".join(map(str, [name, *arguments[1:2]]))] = bank.info(), sorted(ids)
            return told.pop()

        patch.setattr(scale, "_step", step)
        patch.setattr(scale, "_tell", lambda one: told.append(json.loads(json.dumps(one))))
        sizes = {"rows": ROWS, "dimension": DIMENSION, "pairs": PAIRS, "questions": QUESTIONS, "shard": 41, "workers": 3}
        folder = str(tmp_path_factory.mktemp("scale"))
        others = {"real": 0, "searches": 20, "ram": 1, "machine": "cpu-16", "folder": folder}
        found = benchmarks.run("scale", {name: str(value) for name, value in {**sizes, **others}.items()})
        assert list(Path(folder).iterdir()) == []  # it leaves nothing
        return found, there


def test_rows_and_commits_are_those_of_the_bank(reported: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, there = reported
    (line,) = found["cluster"]
    info, ids = there[f"write {ROWS}"]
    wrote = line["write"]
    assert ids == sorted(f"d{number}#0" for number in range(ROWS))
    assert (wrote["rows"], wrote["fragments"], wrote["record_bytes"]) == (info.references, info.fragments, info.record_bytes)
    assert wrote["record_bytes"] == record_size(NoiseWriter(PAIRS).shape)
    assert wrote["bytes_per_row"] == info.bytes / ROWS
    assert (wrote["lost"], wrote["conflicts"]) == (0, 0)
    assert 1 <= wrote["commits"] < ROWS / 41 + 3
    compacted, same = there["compact"]
    assert same == ids
    assert line["compact"]["fragments"][1] == compacted.fragments
    ratio = line["predicted"]["bytes_per_row"]
    assert ratio["measured"] == wrote["bytes_per_row"]
    assert ratio["ratio"] == pytest.approx(ratio["predicted"] / ratio["measured"])


def test_a_bank_searched_in_ram_finds_all_that_is_nearest(reported: tuple[dict[str, Any], dict[str, Any]]) -> None:
    recall = reported[0]["cluster"][0]["recall"]
    assert (recall["index"], recall["of_the_nearest_5"], recall["searches"]) == ("exact", 1.0, 20)
    assert recall["own_document"] == recall["own_document_exactly"] > 0.5


@pytest.mark.parametrize("kind", ["zipf", "new"])
def test_hits_are_those_of_plain_counting(reported: tuple[dict[str, Any], dict[str, Any]], kind: str) -> None:
    """Searches by a product of matrices, and the least recently used goes: both again, in the plain way."""
    said = reported[0]["cluster"][0][kind]
    embedder = NoiseEmbedder(DIMENSION)
    vectors = embedder.encode([noise_text(number) for number in range(ROWS)])
    size = record_size(NoiseWriter(PAIRS).shape)
    kept: OrderedDict[int, None] = OrderedDict()
    count = Counter[bool]()
    for text in questions(kind, QUESTIONS, ROWS):
        best = np.argsort(-(vectors @ embedder.encode([text])[0]))[:K].tolist()
        for number in best:  # all are looked for, then what was missing is kept
            count[number in kept] += 1
            if number in kept:
                kept.move_to_end(number)
        for number in best:
            if number not in kept:
                kept[number] = None
                if len(kept) * size > 1_000_000:
                    kept.popitem(last=False)
    assert said["questions"] * K == sum(count.values()) == QUESTIONS * K
    assert said["ram"] == pytest.approx(count[True] / (QUESTIONS * K))
    assert said["bank"] == pytest.approx(count[False] / (QUESTIONS * K))
    assert said["ram_bytes"] == len(kept) * size <= said["ram_capacity"] == 1_000_000
    assert len(said["windows"]) == 10
    assert said["p50_ms"] <= said["p99_ms"]


def test_questions_follow_what_they_say() -> None:
    asked = Counter(questions("zipf", 20_000, 50))
    shares = sorted((count / 20_000 for count in asked.values()), reverse=True)
    harmonic = sum(1 / rank for rank in range(1, 51))
    assert shares[0] == pytest.approx(1 / harmonic, rel=0.1)
    assert shares[9] == pytest.approx(0.1 / harmonic, rel=0.25)
    assert len(set(questions("new", 500, 50))) == 500
    assert list(questions("new", 5, 50, seed=1)) != list(questions("new", 5, 50))
    embedder = NoiseEmbedder(384)
    own, asked_of = embedder.encode([noise_text(7), question("what", 7)])
    assert float(own @ asked_of) == pytest.approx(0.7, abs=0.1)


def test_predictions_stand_beside_what_was_measured(reported: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert beside({"a": 12.0, "b": 1.0, "c": 5.0}, {"a": 10.0, "b": 2.0}) == {
        "a": {"predicted": 12.0, "measured": 10.0, "ratio": 1.2, "within_25_percent": True},
        "b": {"predicted": 1.0, "measured": 2.0, "ratio": 0.5, "within_25_percent": False},
    }
    rows = reported[0]["tables"]
    assert [(row["machine"], row["references"]) for row in rows] == [
        (name, number) for name in ("h100", "cpu-16") for number in (10**8, 10**9)
    ]
    assert all("2024" in row["prices"] and row["price_an_hour"] > 0 for row in rows)


def test_more_rows_than_the_disk_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"give fewer --rows"):
        benchmarks.run("scale", {"rows": "1000000000000", "real": "0", "machine": "cpu-16", "folder": str(tmp_path)})
    with pytest.raises(BankNotFound):
        Bank.open(tmp_path, None)
