"""`research.quality`: ways to choose pairs against plain loops, and the harness from questions to a file and on from it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from memory3 import Document, Memory3
from memory3.config import MemoryConfig
from research.quality import ways
from research.quality.choosing import SCORES, Way, biases, kept, memory, scores
from research.quality.errors import costs, drop_order, written_products
from research.quality.passages import Passage, Passages

TEXT = "The bridge was built in 1874 by the engineer of the county. It crosses the river near the old town."


@pytest.fixture(scope="module")
def m3() -> Memory3:
    return Memory3(tiny_model(), tiny_tokenizer(), MemoryConfig.preset("full"))


@pytest.fixture(scope="module")
def passage(m3: Memory3, tmp_path_factory: pytest.TempPathFactory) -> Passage:
    (reference, *_) = m3.split(Document("bridge", TEXT))
    store = Passages(tmp_path_factory.mktemp("passages"), m3)
    assert store.fill("repeat", [reference], ["bridge"], None, 4) == 1
    assert store.fill("repeat", [reference], ["bridge"], None, 4) == 0
    assert store.fill("true", [reference], ["bridge"], [m3.prompts.ids("Who built it? The engineer.")], 4, [[3, 4, 5]]) == 1
    return store.load("bridge")


def _outputs(m3: Memory3) -> list[torch.Tensor]:
    return ways.output_maps(m3)


def test_attention_is_what_the_encoder_scores(m3: Memory3, passage: Passage) -> None:
    """``max`` of the repetition is the package's own selector."""
    shipped = Memory3(m3.model, m3.tokenizer, MemoryConfig(codec="raw"))
    (reference, *_) = shipped.split(Document("bridge", TEXT))
    (expected,) = shipped.encode([reference])
    found = memory(passage, Way.parse("max 1/8"), [], 128)
    assert (found.counts == expected.counts).all()
    assert (found.positions == expected.positions).all()
    torch.testing.assert_close(found.keys, expected.keys)


def test_moved_is_what_leaving_a_pair_out_does(m3: Memory3, passage: Passage) -> None:
    """By leaving out each pair and renormalising, where the passage is all that a query saw."""
    paid = passage.attention("repeat", 1)
    whole = Passage(passage.keys, passage.values, {"repeat": passage.queries["repeat"]}, passage.scale)
    query, lse = whole.queries["repeat"]
    heads, group = paid.shape[:2]
    lse = lse.clone()
    lse[1] += paid.sum(-1).log().view(heads * group, -1)  # as if nothing else had been seen
    whole.queries["repeat"] = (query, lse)
    outputs = _outputs(m3)
    alone = whole.attention("repeat", 1)
    torch.testing.assert_close(alone.sum(-1), torch.ones_like(alone[..., 0]), atol=1e-3, rtol=0)
    found = scores(whole, Way.parse("moved 1/8"), outputs)[1]
    for head in range(heads):
        for token in (0, 3, 7):
            rest = [s for s in range(alone.shape[-1]) if s != token]
            most = 0.0
            for g in range(group):
                for row in alone[head, g]:
                    assert row[token] < 0.95  # bounded from there on
                    before = row @ passage.values[1][head]
                    after = row[rest] / row[rest].sum() @ passage.values[1][head][rest]
                    most = max(most, float(((after - before) @ outputs[1][head * group + g]).norm()))
            assert math.isclose(float(found[head, token]), most, rel_tol=0.02)


@pytest.mark.parametrize("score", [score for score in SCORES if score not in ("learned", "blended")])
def test_every_score_keeps_as_many(m3: Memory3, passage: Passage, score: str) -> None:
    way = Way.parse(f"{score} 1/16 floor=1 from=true+repeat bias")
    found = scores(passage, way, _outputs(m3))
    keep = kept(found, way, 128)
    assert int(keep.sum()) == round(found[..., 0].numel() * 128 / 16)
    assert int(keep.sum(-1).min()) >= 1
    added = biases(passage, way, keep, _outputs(m3))
    assert added is not None
    assert bool((added[~keep] == 0).all())


def test_words_that_are_no_way() -> None:
    for text in ("most 1/8", "max 1/8 soft", "max 1/8 flat=2"):
        with pytest.raises(ValueError, match=r"no option|a score is"):
            Way.parse(text)


def test_from_questions_to_a_file_and_on(m3: Memory3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "set"
    data.mkdir()
    (data / "kb.jsonl").write_text(json.dumps({"id": "bridge", "text": TEXT}) + "\n")
    asked = [("Who built it?", "the engineer"), ("When?", "1874"), ("Why?", "nobody knows")]
    records = [{"question": q, "answers": [a], "references": ["bridge"]} for q, a in asked]
    (data / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(ways.Memory3, "from_pretrained", lambda *args, **options: m3)
    out = tmp_path / "out.jsonl"

    def run(arms: str) -> list[dict[str, object]]:
        options = ["--model", "tiny", "--data", str(data), "--out", str(out), "--cache", str(tmp_path / "cache")]
        monkeypatch.setattr("sys.argv", ["ways", *options, "--ways", arms, "--generate", "text"])
        ways.main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    rows = run("none,text,all,max 1/8")
    assert [row["arm"] for row in rows] == ["none", "text", "all", "max 1/8"]
    assert [len(row["figures"]["nll"]) for row in rows] == [2] * 4  # type: ignore[index]
    assert "contains" in rows[1]
    again = run("text,max 1/8,sum 1/8 from=true bias=repeat")
    assert again[:4] == rows
    assert [row["arm"] for row in again[4:]] == ["sum 1/8 from=true bias=repeat"]
    # what is kept whole says what the text says, but for the room behind a short passage
    text, whole = rows[1]["nll"]["mean"], rows[2]["nll"]["mean"]  # type: ignore[index]
    assert abs(text - whole) < 0.5


def test_the_error_is_what_heads_no_longer_write(m3: Memory3, passage: Passage) -> None:
    outputs = _outputs(m3)
    products = written_products(passage, "repeat", outputs)
    weights = torch.rand(passage.values.shape[:3], generator=torch.Generator().manual_seed(0)) - 1
    layer, head = 2, 1
    paid = passage.attention("repeat", layer)[head]
    group = paid.shape[0]
    lost = [
        (paid[g] * weights[layer, head]) @ passage.values[layer, head] @ outputs[layer][head * group + g] for g in range(group)
    ]
    expected = sum(float(one.square().sum()) for one in lost)
    mine = weights[layer, head]
    assert math.isclose(float(mine @ products[layer, head] @ mine), expected, rel_tol=1e-3)


def test_pairs_go_in_the_order_of_what_they_cost() -> None:
    """Of one head, against all choices of the next pair, sum by sum."""
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    products = (rows.T @ rows)[None, None]
    order, added = drop_order(products)[0, 0], costs(products)[0, 0]
    gone, most = torch.zeros(6), -math.inf
    for step in range(1, 7):
        sums = {j: float((gone + one) @ products[0, 0] @ (gone + one)) for j, one in enumerate(torch.eye(6)) if not gone[j]}
        best = min(sums, key=sums.__getitem__)
        assert int(order[best]) == step
        most = max(most, sums[best] - float(gone @ products[0, 0] @ gone))
        assert math.isclose(float(added[best]), most, rel_tol=1e-3, abs_tol=1e-4)
        gone[best] = 1
