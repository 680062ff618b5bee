"""Which heads looked at what: each weight beside a softmax written out, each token found by its value, texts of strangers."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from ram_bank import RamBank
from tiny import tiny_model, tiny_tokenizer

from memory3.attention.reading import Reading
from memory3.attention.watching import Watch
from memory3.config import Budget, MemoryConfig
from memory3.errors import RecallError
from memory3.interpret.explained import explained
from memory3.interpret.explaining import bounded, explain, pieces
from memory3.llm import Memory3

TEXTS = [
    "The river rises in the mountains. It reaches the sea near the old town.",
    "The bridge <script>alert(1)</script> was built in 1874.",
    "Emoji 🙂 and naïve café & </script> more.",
]
QUESTION = "Who built the bridge over the river, and when was it built?"
NEW = 17


@pytest.fixture(scope="module")
def m3() -> Memory3:
    """With renewals every 7 tokens, 2 references at once, and a budget that heads spend unevenly."""
    settings: dict[str, Any] = {"reference_length": 31, "chunk_length": 7, "references_per_chunk": 2, "dtype": "float32"}
    config = MemoryConfig(**settings, budget=Budget("adaptive", 40), layers=(0, 2, 3), score_gap=2.0)
    return Memory3(tiny_model(), tiny_tokenizer(adds_bos=False), config, name="tiny")


@pytest.fixture(scope="module")
def asked(m3: Memory3) -> tuple[Any, Any, Watch, list[Any]]:
    """Bank, answer, what was watched, and what every pass of one query saw."""
    bank, watch, passes = RamBank(m3, TEXTS), Watch(), []
    plain = Reading.attend

    def spied(self: Reading, layer: int, query: Any, key: Any, value: Any, bias: Any, **how: Any) -> Any:
        passes.append((self, layer, query.clone(), key.clone(), bias, how))
        return plain(self, layer, query, key, value, bias, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "attend", spied)
        answer = m3.generate(QUESTION, bank=bank, watch=watch, max_new_tokens=NEW, min_new_tokens=NEW)
    return bank, answer, watch, passes


def test_weights_are_those_of_one_softmax_and_lie_at_their_tokens(m3, asked):
    bank, answer, watch, passes = asked
    per_layer: dict[int, list[Any]] = {}
    for one in passes:
        per_layer.setdefault(one[1], []).append(one)
    got = [(stretch, row) for stretch in watch.stretches for row in range(stretch.tokens)]
    assert len(got) == NEW == len(answer.token_ids)
    assert len({stretch.references for stretch in watch.stretches}) > 1, "what is read must change, or this shows less"
    compared = 0
    for layer in m3.config.layers:
        assert len(per_layer[layer]) == NEW  # the prompt's pass, then one for each token but the last
        for n, (reading, _, query, key, _, how) in enumerate(per_layer[layer]):
            stretch, row = got[n]
            # The last chunk of a prompt is what its last token reads.
            memory, chunk = reading.batch.layers[layer], len(reading.batch.references) - 1
            assert tuple(reading.batch.references[chunk]) == stretch.references
            looks = stretch.layers[layer]
            for head in range(6):
                own = head // 3
                pairs = [p for p in range(memory.keys.shape[2]) if memory.owner[chunk, own, p] >= 0]
                prefix = (
                    []
                    if memory.bias is None
                    else [p for p in range(memory.keys.shape[2]) if p not in pairs and memory.bias[chunk, own, 0, p] > -1e4]
                )
                bias = 0 if memory.bias is None else memory.bias[chunk, own, 0]
                mine = (memory.keys[chunk, own] @ query[0, head, -1]) * how["scale"] + bias
                logits = torch.cat([mine[[*pairs, *prefix]], (key[0, own] @ query[0, head, -1]) * how["scale"]])
                expected = torch.softmax(logits, 0)[: len(pairs)]
                shown = np.flatnonzero(looks.owner[own] >= 0)
                np.testing.assert_allclose(looks.weights[row, head, shown], expected, rtol=2e-4, atol=1e-6)
                for at, pair in zip(shown, pairs, strict=True):
                    name = stretch.references[looks.owner[own, at]]
                    assert looks.positions[own, at] in _positions(
                        bank.stored[name], layer, own, memory.values[chunk, own, pair]
                    )
                    compared += 1
    assert compared > 500


def _positions(memory: Any, layer: int, head: int, value: torch.Tensor) -> set[int]:
    """The places of the tokens whose value in this head is ``value``; values are never moved nor scaled. In the first layer
    a token that stands twice has the same value twice.
    """
    before = 0
    for row, number in enumerate((0, 2, 3)):
        for other in range(2):
            count = int(memory.counts[row, other])
            if (number, other) == (layer, head):
                same = [n for n in range(before, before + count) if torch.allclose(memory.values[n], value, atol=1e-6)]
                assert len(same) == 1 or layer == 0
                return {int(memory.positions[n]) for n in same}
            before += count
    raise AssertionError("no such head")


def _found(m3: Memory3, asked: Any) -> dict[str, Any]:
    bank, answer, watch, _ = asked
    references = bank.references([c.reference_id for c in answer.citations])
    return explain(watch, m3.tokenizer, answer.token_ids, answer.citations, [r.token_ids for r in references])


def test_sums_over_heads_are_told_at_the_texts_own_tokens(m3, asked):
    bank, answer, watch, _ = asked
    found = _found(m3, asked)
    assert found["layers"] == [0, 2, 3]
    assert (found["heads"], found["memory_heads"], found["left_out"]) == (6, 6, 0)
    assert "".join(token["text"] for token in found["answer"]) == m3.tokenizer.decode(answer.token_ids)
    for passage in found["passages"]:
        memory = bank.stored[passage["id"]]
        assert "".join(token["text"] for token in passage["tokens"]) == bank.all[passage["id"]].text
        kept = [int((memory.positions == n).sum()) for n in range(len(passage["tokens"]))]
        assert [token["kept"] for token in passage["tokens"]] == kept
        assert all(token["mass"] == 0 for token in passage["tokens"] if not token["kept"])
    assert any(t["kept"] == 0 for p in found["passages"] for t in p["tokens"]), "or this shows less"
    assert sum(t["mass"] for p in found["passages"] for t in p["tokens"]) == pytest.approx(1, abs=1e-3)
    number = {passage["id"]: n for n, passage in enumerate(found["passages"])}
    flat = [(stretch, row) for stretch in watch.stretches for row in range(stretch.tokens)]
    for (stretch, row), token in zip(flat, found["answer"], strict=True):
        assert token["reads"] == [number[name] for name in stretch.references]
        slow: dict[tuple[int, int], float] = {}
        for at, layer in enumerate((0, 2, 3)):
            looks = stretch.layers[layer]
            for head in range(6):
                mine = [
                    (o, p, w)
                    for o, p, w in zip(
                        looks.owner[head // 3], looks.positions[head // 3], looks.weights[row, head], strict=True
                    )
                    if o >= 0
                ]
                assert token["map"][at][head] == pytest.approx(sum(w for _, _, w in mine), abs=1e-4)
                for o, p, w in mine:
                    place = (number[stretch.references[o]], int(p))
                    slow[place] = slow.get(place, 0.0) + float(w)
        whole = sum(slow.values())
        for passage_number, place, share in token["looks"]:
            assert share == pytest.approx(slow[passage_number, place] / whole, abs=1e-5)
        (first, *_) = token["heads"]
        assert first["mass"] == max(max(row) for row in token["map"])


def test_watching_changes_neither_answer_nor_citations(m3, asked):
    bank, answer, _, _ = asked
    plain = m3.generate(QUESTION, bank=bank, max_new_tokens=NEW, min_new_tokens=NEW)
    assert plain.token_ids == answer.token_ids
    assert [(c.reference_id, c.share) for c in plain.citations] == [(c.reference_id, c.share) for c in answer.citations]


def test_several_answers_cannot_be_watched_as_one(m3, asked):
    with pytest.raises(RecallError, match="ask one question, no beams"):
        m3.generate(QUESTION, bank=asked[0], watch=Watch(), max_new_tokens=2, num_beams=2)


def test_characters_of_several_tokens_stand_at_the_last(m3):
    text = "a 🙂 café 東"
    ids = m3.prompts.ids(text)
    found = pieces(m3.tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == text
    assert "" in found
    assert not any("\ufffd" in piece for piece in found)


def test_texts_of_strangers_stay_texts(m3, asked):
    found = _found(m3, asked)
    page = explained(found, "<script>alert(2)</script>", "<b>model", 'bank"><img src=x>')
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2  # data, and the one that is ours
    allowed = base64.b64encode(hashlib.sha256(scripts[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'" in page
    assert "alert(" not in scripts[0].replace("\\u003c", "<").split("<")[0]
    assert not set("<>&") & set(scripts[0])
    assert "<img" not in page
    assert "<b>model" not in page
    data = json.loads(scripts[0])
    sections = re.findall(r"<section.*?</section>", page, re.DOTALL)
    assert len(sections) == len(found["passages"])
    for passage, section, told in zip(found["passages"], sections, data["passages"], strict=True):
        text = asked[0].all[passage["id"]].text
        assert "".join(told) == text
        assert html.unescape(re.sub(r"<[^>]*>", "", section.partition('<div class="text">')[2])) == text
    assert any("<script>" in asked[0].all[passage["id"]].text for passage in found["passages"])


def test_what_a_terminal_gets_is_bounded(m3, asked):
    found = bounded(_found(m3, asked))
    assert all(len(token["looks"]) <= 8 and len(token["heads"]) <= 8 and "map" not in token for token in found["answer"])
    assert all(token["kept"] for passage in found["passages"] for token in passage["tokens"])
    json.dumps(found)
