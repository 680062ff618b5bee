"""`memory3 bench front` on a tiny model: every arm from one encoding, bytes as a bank's, kept arms, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_tiny

from memory3 import benchmarks
from memory3.bank import Bank
from memory3.calibration import codec as codec_calibration
from memory3.calibration.selector import Passage, calibrate_selector
from memory3.codec import RawCodec
from memory3.config import MemoryConfig
from memory3.encode.selectors import selector
from memory3.errors import ConfigError, InputError
from memory3.llm import Memory3
from memory3.text.readers import read_documents
from research.benchmarks import front
from research.benchmarks.dense import DenseStore, Sparse

FACTS = [
    ("The bridge of Holm was built in", "1874"),
    ("The fair of Holm costs", "three crowns"),
    ("Marmots sleep for", "seven months"),
]
POINTS = "reconstruction/adaptive:29,attention/uniform:3/raw/first_half,random/adaptive:29,learned/adaptive:29,blended/adaptive:1/16,oracle/adaptive:29,first/uniform:3/int8"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(codec_calibration, "_FEWEST", 3)
    kb = [{"id": f"d{n}", "text": f"{start} {end}."} for n, (start, end) in enumerate(FACTS)]
    asked = [
        {"id": f"q{n}", "question": f"{start} what?", "answers": [end], "references": [f"d{n}"]}
        for n, (start, end) in enumerate(FACTS)
    ]
    asked.append({"id": "q9", "question": "Who?", "answers": ["nobody"], "references": ["d0"]})  # its answer stands nowhere
    for name, rows in (("kb", kb), ("dev", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_tiny(tmp_path, chat=True)
    calibrate_selector(Memory3.from_pretrained(model, config="full"), [Passage(row["text"]) for row in kb])
    return {"data": str(tmp_path), "model": model, "dense": str(tmp_path / "dense"), "k": "2", "max_new_tokens": "3"}


def nlls(rows: list[dict[str, Any]], arm: str) -> list[float]:
    """Of the questions of one arm, in their order, as the file of items has them (an arm that two settings share twice)."""
    return list({row["id"]: row["nll"] for row in rows if row["arm"] == arm}.values())


def assert_summary(said: dict[str, Any], values: list[float]) -> None:
    """Of three values: any of the 27 resamplings that repeats one value alone has 1/27 > 2.5%, so the interval goes from
    end to end.
    """
    assert len(values) == 3
    assert min(values) < max(values), "figures that are all the same would tell nothing"
    assert said["mean"] == pytest.approx(sum(values) / 3)
    assert said["interval"] == pytest.approx([min(values), max(values)])


def test_a_summary_by_hand() -> None:
    """Differences question by question, not of sorted values; the gain is a ratio of means."""
    beside = {"text": {"nll": [3.0, 1.0, 2.0]}, "none": {"nll": [4.0, 6.0, 5.0]}}
    said = front.summary({"nll": [1.0, 7.0, 2.5]}, beside)["nll"]
    assert_summary(said, [1.0, 7.0, 2.5])
    assert_summary(said["minus_text"], [-2.0, 6.0, 0.5])
    assert_summary(said["minus_none"], [-3.0, 1.0, -2.5])
    assert said["gain"] == pytest.approx((3.5 - 5) / (2 - 5))


@pytest.mark.long
@pytest.mark.real  # searches with the default embedder
def test_every_arm(data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_embedder_path: str) -> None:
    monkeypatch.setattr(
        front,
        "Bank",
        type("B", (), {"open": staticmethod(lambda path, m3: Bank.open(path, m3, embedder=default_embedder_path))}),
    )
    options = data | {"points": POINTS, "answers": "all", "settings": "gold,retrieved,near", "questions": "5"}
    pictures = {"figure": str(tmp_path / "front.png"), "items": str(tmp_path / "items.jsonl")}
    found = benchmarks.run("front", options | pictures)
    assert found["questions"] == 3
    assert set(found["closed book"]) == {"nll", "contains", "exact", "f1"}
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * (1 + 3 * (2 + 7) + 1)
    for setting in ("gold", "retrieved", "near"):
        same = ["text of the same"] if setting == "near" else []
        assert list(found[setting]) == ["text", *same, "all pairs", *front._listed(POINTS)]
        text = nlls(rows, f"text, {'retrieved' if setting == 'near' else setting}")
        for name, arm in found[setting].items():
            if not name.startswith("text"):
                mine = nlls(rows, f"{name}, {setting}")
                assert_summary(arm["nll"], mine)
                assert_summary(arm["nll"]["minus_text"], [a - b for a, b in zip(mine, text, strict=True)])
    m3 = Memory3.from_pretrained(data["model"], config=front.parse_point("attention/uniform:3/raw/first_half"))
    assert found["gold"]["attention/uniform:3/raw/first_half"]["bytes"] == RawCodec(m3.shape).record_size
    assert found["gold"]["blended/adaptive:1/16"]["pairs"] == 80
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    whole = found["gold"]["all pairs"]["nll"]
    assert whole["gain"] == pytest.approx(whole["minus_none"]["mean"] / found["gold"]["text"]["nll"]["minus_none"]["mean"])
    assert whole["gain_interval"][0] <= whole["gain"] <= whole["gain_interval"][1]
    # What was measured is read, not measured again; other questions are.
    monkeypatch.setattr(front, "generate_rows", None)
    again = benchmarks.run("front", options)
    for arms in ("closed book", "gold", "retrieved", "near"):
        assert again[arms] == found[arms]
    with pytest.raises(TypeError):
        benchmarks.run("front", options | {"questions": "2"})


@pytest.fixture
def store(data: dict[str, str], tmp_path: Path) -> tuple[Memory3, DenseStore, list[Any]]:
    m3 = Memory3.from_pretrained(data["model"], config="full", batch_size=2)
    bank = Bank.open(tmp_path / "bank", m3)
    references = [next(iter(m3.split(d))) for d in read_documents(tmp_path / "kb.jsonl")]
    return m3, DenseStore(tmp_path / "store", m3, bank), references


def test_cut_from_the_store_as_written(store: tuple[Memory3, DenseStore, list[Any]]) -> None:
    m3, dense, references = store
    assert m3.learned is not None
    dense.fill(references[:2], [selector("reconstruction")])
    dense.fill(references, [selector("reconstruction"), selector("learned", m3.learned.by_layer)])  # adds what lacks
    again = DenseStore(dense.folder, m3, dense.bank)
    assert again.names == sorted(r.id for r in references)
    for name in ("reconstruction", "learned", "blended"):
        config = MemoryConfig(selector=name, budget="adaptive:23", layers=(1, 3, 4))
        written = Memory3(m3.model, m3.tokenizer, config).encode(references)
        for reference, memory in zip(references, written, strict=True):
            got = Sparse(again, config).cut(reference.id)
            np.testing.assert_array_equal(got.counts, memory.counts)
            np.testing.assert_array_equal(got.positions, memory.positions)
            torch.testing.assert_close(got.keys, memory.keys, rtol=1e-2, atol=1e-3)
    with pytest.raises(InputError, match="has no attention among the dense memories"):
        again.tensors(references[0].id, "attention")


def test_points() -> None:
    config = front.parse_point("learned/adaptive:1/8/transform:96+160/middle_half")
    assert (config.selector, str(config.budget), config.codec, config.layers) == (
        "learned",
        "adaptive:0.125",
        "transform:96+160",
        "middle_half",
    )
    assert front._listed("a/all/product:RQ3x4,PQ5x4,b/uniform:3") == ["a/all/product:RQ3x4,PQ5x4", "b/uniform:3"]
    for wrong in ("learned", "learned/adaptive:8/raw/all/more"):
        with pytest.raises(ConfigError, match="write SELECTOR/BUDGET"):
            front.parse_point(wrong)
    with pytest.raises(InputError, match=r"pass data=FOLDER"):
        benchmarks.run("front", {"data": "nowhere"})
