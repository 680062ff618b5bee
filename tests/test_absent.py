"""`research.quality.absent`: asks of a small folder, what a reader keeps of them, the fit and its area against plain loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bank_writer import HashingEmbedder
from tiny import tiny_chat_tokenizer, tiny_model

from memory3 import Memory3, MemoryConfig
from memory3.presence import SIGNALS
from memory3.prompt import PromptRow
from memory3.recall.held import Held
from research.quality.absent_asks import KnowledgeBase, asks
from research.quality.absent_fit import Table, area, fit, model_scores
from research.quality.absent_read import NEW, Reader
from research.quality.absent_words import Words, cosines

KB = {
    f"d{n}": f"{name} was built in {1870 + n} by the engineers of the county. It crosses the river."
    for n, name in enumerate("ABCDEFG")
}


@pytest.fixture(scope="module")
def m3() -> Memory3:
    config = MemoryConfig(reference_length=31, dtype="float32", codec="raw")
    return Memory3(tiny_model("llama", max_position_embeddings=512), tiny_chat_tokenizer(), config, name="tiny")


@pytest.fixture(scope="module")
def base(m3: Memory3, tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    data = tmp_path_factory.mktemp("data")
    folder = data / "wiki_qa"
    folder.mkdir()
    lines = {"kb": [{"id": name, "text": text} for name, text in KB.items()]}
    for split, names in (("dev", ("d0", "d3")), ("test", ("d1", "d2", "d5"))):
        made = [
            {"id": f"q{n}", "question": f"When was {KB[n][0]} built?", "answers": ["18"], "references": [n]} for n in names
        ]
        lines[split] = made
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = KnowledgeBase(data, "wiki_qa", m3, HashingEmbedder(), data / "cache")
    found.data = data  # type: ignore[attr-defined]
    return found


def rows_of(base: KnowledgeBase) -> list[dict]:
    some = asks(base.data, "wiki_qa", 2, 3)  # type: ignore[attr-defined]
    hits = base.search(some, HashingEmbedder().encode([one.question for one in some]))
    words = Words(base)
    return [
        {
            "key": one.key, "set": one.set, "split": one.split, "kind": one.kind, "id": one.id, "question": one.question,
            "hits": found, "scores": cosines(found, 0.1) | words.found(one.question, found, 0.1), "out": one.left_out,
        }
        for one, found in zip(some, hits, strict=True)
    ]  # fmt: skip


def test_each_question_is_asked_with_and_without_its_document(base: KnowledgeBase) -> None:
    rows = rows_of(base)
    assert sorted(row["key"] for row in rows) == sorted(
        f"wiki_qa/{split}/{kind}/q{name}"
        for split, names in (("dev", ("d0", "d3")), ("test", ("d1", "d2", "d5")))
        for name in names
        for kind in ("in", "out")
    )
    for row in rows:
        documents = {name.partition("#")[0] for name, _ in row["hits"]}
        assert (row["id"][1:] in documents) == (row["kind"] == "in")
        assert [score for _, score in row["hits"]] == sorted((score for _, score in row["hits"]), reverse=True)
        assert set(SIGNALS) <= set(row["scores"])


def test_a_reader_keeps_what_scorer_and_recall_say(base: KnowledgeBase, m3: Memory3) -> None:
    rows = rows_of(base)[:3]
    reader = Reader(m3, base, 0.1)
    for row, found in zip(rows, reader.read(rows, text=True), strict=True):
        names = [name for name, score in row["hits"][:5] if score >= row["hits"][0][1] - 0.1]
        references = {name: reader.reference(name) for name in names}
        held = Held(dict(zip(names, m3.encode([references[n] for n in names]), strict=True)), references)
        question = m3.prompts.ids(row["question"])
        for mode, read in (("memory", names), ("none", names), ("text", names[:1])):
            prompt: PromptRow = m3.prompts.row(question, mode, read, held, after=NEW)
            ((score,),) = m3.scorer.score([prompt], [[found["answer"]]], held)
            assert sum(found[f"answer.{mode}"]) == pytest.approx(score.total, abs=2e-3)
        assert found["words"] == question[1:]
        if len(found["answer"]) == NEW:  # else generation read the token that ended it besides
            assert np.mean(found["heads"]["answer"]) == pytest.approx(found["attention"], abs=1e-3)
        assert np.max(found["heads"]["peak"]) <= np.max(found["heads"]["last"]) + 1e-3
        gains = np.array(found["words.memory"]) - np.array(found["words.none"])
        assert model_scores(found)["question: gain"] == pytest.approx(gains.mean())


def test_the_fit_is_where_the_penalised_likelihood_is_highest() -> None:
    draw = np.random.default_rng(0)
    values = draw.standard_normal((57, 3)) * [1, 5, 0.2] + [0, 3, 1]
    present = values[:, 0] + draw.standard_normal(57) > 0.3
    fitted = fit("abc", values, present, ridge=2.0)

    def loss(weights: np.ndarray, bias: float) -> float:
        total = 2.0 / 2 * float((weights**2).sum())
        for x, y in zip((values - fitted.mean) / fitted.spread, present, strict=True):
            total += float(np.log1p(np.exp(-(1 if y else -1) * (x @ weights + bias))))
        return total

    best = loss(fitted.weights, fitted.bias)
    for n in range(4):
        for step in (-0.01, 0.01):
            move = np.zeros(4)
            move[n] = step
            assert loss(fitted.weights + move[:3], fitted.bias + move[3]) > best


def test_an_area_counts_pairs() -> None:
    present = np.array([True, False] * 5)
    scores = np.array([3.0, 1, 2, 2, 5, 4, 1, 0, 7, 9])
    ids = np.array([f"q{n // 2}" for n in range(10)])
    table = Table(("cosine",), np.arange(10.0)[:, None], present, np.full(10, "s"), ids)
    wins = [(a > b) + (a == b) / 2 for a in scores[present] for b in scores[~present]]
    found = area(table, scores)
    assert (found["auroc"], found["questions"]) == (pytest.approx(np.mean(wins)), 5)
    below = np.mean([a > b for a in range(0, 10, 2) for b in range(1, 10, 2)])
    assert found["above cosine"][0] == pytest.approx(np.mean(wins) - below)
    assert found["interval"][0] <= found["auroc"] <= found["interval"][1]
