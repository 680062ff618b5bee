"""Scores by the model's own heads: the logits that the model computes, and a head set by hand that finds a token."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from memory3 import Document, Memory3, MemoryConfig
from memory3.attention.attach import Seen, attached
from memory3.cli.progress import StepMeter
from research.circuits.own_queries import Heads, Searched, chosen_heads, compare, fitted, fused
from research.circuits.own_scores import KINDS, best_tokens, head_scores, mean_reciprocal_rank, ranks
from research.circuits.own_sets import Asked, Pool, bm25, layer_of, make_pool, read_keys, read_queries, token_weights

TEXTS = (
    "The river rises in the mountains.",
    "Füße, naïve café, 東京.",
    "The bridge was built in 1874 by the engineer of the county, and the old town reaches the sea.",
)


def _quiet(what: str, done: int, total: int) -> None: ...


def _m3(model: torch.nn.Module | None = None) -> Memory3:
    return Memory3(model or tiny_model(), tiny_tokenizer(adds_bos=False), config=MemoryConfig(budget="all"))


def _pool(m3: Memory3, questions: tuple[Asked, ...]) -> Pool:
    return Pool("tiny", [next(iter(m3.split(Document(str(n), text)))) for n, text in enumerate(TEXTS)], list(questions))


def _searched(m3: Memory3, pool: Pool, folder: Path) -> Searched:
    queries = read_queries(m3, [one.text for one in pool.asked], folder, _quiet)
    known = np.random.default_rng(0).normal(size=(2, len(pool.asked), len(pool.references)))
    return Searched(pool, read_keys(m3, pool.references, folder, _quiet), queries, {"minilm": known[0], "bm25": known[1]})


@torch.no_grad()
def test_placed_scores_are_the_models_own_logits(tmp_path: Path) -> None:
    m3 = _m3()
    pool = _pool(m3, (Asked("Who built it?", "dev", (2,)), Asked("Where is the sea, and when?", "dev", (2,))))
    found = _searched(m3, pool, tmp_path)
    placed = Heads(m3).scores(found, np.arange(2), lambda kind, layer, heads: range(heads) if kind == "placed" else ())
    begin, length = len(m3.frame.prefix), m3.config.reference_length
    for n, one in enumerate(pool.asked):
        asked = m3.frame.after(m3.prompts.ids(one.text))
        # All of it moved: what is read stays the same, and the question lies where it does behind a memory.
        mine = _look(m3, [*m3.frame.prefix, *asked], length + torch.arange(begin + len(asked))[None])
        for number, reference in enumerate(pool.references):
            tokens = [*m3.frame.prefix, *reference.token_ids]
            theirs = _look(m3, tokens, torch.arange(len(tokens))[None])
            for layer in range(5):
                query, key = mine.layers[layer][0][0, :, begin:], theirs.layers[layer][1][0, :, begin:]
                logits = query @ key.repeat_interleave(3, 0).transpose(1, 2) * m3.geometry.head_dim**-0.5
                best = logits.amax(-1)
                taken = slice(len(asked) - len(m3.prompts.ids(one.text)) - len(m3.frame.tail), len(asked) - len(m3.frame.tail))
                for head in range(6):
                    even, last = (float(placed["placed", how][layer, head][n, number]) for how in ("even", "last"))
                    assert even == pytest.approx(float(best[head, taken].mean()), abs=0.02)
                    assert last == pytest.approx(float(best[head, -1]), abs=0.02)


def _look(m3: Memory3, tokens: list[int], places: torch.Tensor) -> Seen:
    seen, row = Seen(), torch.tensor([tokens])
    with attached(m3.model):
        m3.geometry.base(row, position_ids=places, use_cache=False, memory3=seen)
    return seen


@torch.no_grad()
def test_a_head_that_matches_tokens_finds_the_passage_that_has_one(tmp_path: Path) -> None:
    model = tiny_model()
    embedded, block = model.get_input_embeddings().weight, model.base_model.layers[0]
    embedded.zero_()
    embedded[:, :14] = torch.nn.functional.normalize(torch.randn(len(embedded), 14, generator=torch.manual_seed(0)), dim=-1)
    block.input_layernorm.weight.fill_(1)
    for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
        projection.weight[:14] = torch.eye(14, 24)
        if projection.bias is not None:
            projection.bias[:14] = 0
    m3 = _m3(model)
    pool = _pool(m3, tuple(Asked(text, "dev", (n,)) for n, text in ((0, "mountains"), (1, "東京"), (2, "1874"))))
    found = _searched(m3, pool, tmp_path)
    scores = Heads(m3).scores(found, np.arange(3), lambda kind, layer, heads: range(heads) if layer == 0 else ())
    for kind in ("free", "cosine"):
        assert ranks(scores[kind, "rare"][0, 0], pool.right).tolist() == [1, 1, 1]
    assert mean_reciprocal_rank(scores["free", "rare"][0, 4], pool.right) < 1  # a head of random weights does not


def test_the_best_token_is_none_of_the_padding() -> None:
    keys = torch.tensor([[[1.0, 0], [0, 2]], [[-1, 0], [9, 9]]])
    assert best_tokens(torch.tensor([[1.0, 0], [0, 1]]), keys, torch.tensor([2, 1])).tolist() == [[1, -1], [2, 0]]


def test_the_mean_key_changes_no_order() -> None:
    torch.manual_seed(0)
    query, keys, lengths = torch.randn(7, 14), torch.randn(5, 11, 14), torch.tensor([11, 3, 5, 7, 2])
    moved = best_tokens(query, keys - keys.mean((0, 1)), lengths) - best_tokens(query, keys, lengths)
    assert torch.allclose(moved, moved[:, :1].expand_as(moved), atol=1e-5)


def test_an_unknown_kind_is_refused() -> None:
    some = torch.zeros(1)
    with pytest.raises(ValueError, match="'near' is unknown: use one of placed, free, cosine, pooled"):
        head_scores("near", some, some, some, some, some, some, some, some, [0], 1, 0)


def test_ranks_count_equals_against_the_right_one() -> None:
    right = np.array([[False, True, False, True]])
    assert ranks(np.array([[1.0, 3, 2, 0]]), right).tolist() == [1]
    assert ranks(np.array([[3.0, 3, 2, 0]]), right).tolist() == [2]
    assert ranks(np.array([[[5.0, 3, 4, 0]], [[0, 0, 1, 0]]]), right).tolist() == [[3], [3]]
    assert mean_reciprocal_rank(np.array([[3.0, 3, 2, 0]]), right) == 0.5
    assert ranks(np.full((1, 4), np.nan), right).tolist() == [3]  # no numbers are no success


def test_ranks_are_fused() -> None:
    a, b = np.array([[3.0, 2, 1]]), np.array([[1.0, 3, 2]])
    assert fused(a, b)[0].tolist() == pytest.approx([1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])


def test_what_is_learned_leans_on_the_feature_that_tells() -> None:
    noise = np.random.default_rng(0)
    right = np.eye(7, dtype=bool)
    features = np.stack([noise.normal(size=(7, 7)), right + 0.5 * noise.normal(size=(7, 7))])
    weights = fitted([(features, right)], 0.01)
    assert weights[1] > 2 * abs(weights[0])


def test_weights_of_tokens_add_up_and_rare_ones_count_more() -> None:
    m3 = _m3()
    pool = _pool(m3, ())
    common, rare = 0, 0
    counts: dict[int, int] = {}
    for reference in pool.references:
        for token in set(reference.token_ids):
            counts[token] = counts.get(token, 0) + 1
    common, rare = max(counts, key=lambda t: counts[t]), min(counts, key=lambda t: counts[t])
    tokens, owner = torch.tensor([common, rare, -1, rare, -1]), torch.tensor([0, 0, 0, 1, 1])
    assert token_weights(tokens, owner, pool.references, "even").tolist() == [0.5, 0.5, 0, 1, 0]
    assert token_weights(tokens, owner, pool.references, "last").tolist() == [0, 0, 1, 0, 1]
    weights = token_weights(tokens, owner, pool.references, "rare")
    assert weights[1] > weights[0] > 0
    assert float(weights[:2].sum()) == pytest.approx(1)


def test_bm25_likes_rare_words_and_short_texts() -> None:
    m3 = _m3()
    scores = bm25(_pool(m3, ()).references, ["the bridge", "the of", "river or bridge"])
    assert scores[0].argmax() == 2
    assert scores[1].tolist() == [0, 0, 0]  # common words say nothing
    assert scores[2, 0] > scores[2, 2] > scores[2, 1] == 0


def test_a_pool_has_whole_documents_and_questions_with_an_answer_in_them(tmp_path: Path) -> None:
    kb = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
    dev = [
        {"question": "When?", "answers": ["1874"], "references": [2]},
        {"question": "What?", "answers": ["nowhere"], "references": [0]},
    ]
    for name, records in (("kb", kb), ("dev", dev), ("test", [dev[0] | {"references": [7]}])):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    pool = make_pool(_m3(), tmp_path, 3, 5, 0)
    assert sorted(r.text for r in pool.references) == sorted(TEXTS)
    assert [(one.text, one.split) for one in pool.asked] == [("When?", "dev")]
    assert [pool.references[n].text for n in pool.asked[0].right] == [TEXTS[2]]


@torch.no_grad()
def test_files_are_read_again_and_the_whole_is_compared(tmp_path: Path) -> None:
    m3 = _m3()
    asked = tuple(
        Asked(f"{text} {n}", split, (n % 3,))
        for n, (text, split) in enumerate(zip(("river", "café", "bridge") * 4, ("dev", "dev", "test") * 4, strict=True))
    )
    found = [_searched(m3, _pool(m3, asked), tmp_path / name) for name in ("a", "b")]
    before = layer_of(found[0].keys, "1")
    times = {path: path.stat().st_mtime_ns for path in (*found[0].keys, *found[0].queries)}
    assert all(path.stat().st_mtime_ns == times[path] for path in _searched(m3, _pool(m3, asked), tmp_path / "a").keys)
    assert torch.equal(layer_of(found[0].keys, "1"), before)
    with StepMeter() as meter:
        best = chosen_heads(found, Heads(m3), meter)
    assert {kind for kind, _ in best} == set(KINDS)
    with torch.enable_grad():
        report = compare(found, best)
    table = report["test"]["tiny"]
    assert {"minilm", "bm25", "own", "minilm+bm25+own, learned", "minilm+own, ranks"} <= set(table)
    assert table["own"]["questions"] == 4
    assert 0 <= table["own"]["recall at 1"][0] <= table["own"]["recall at 3"][0] == 1
