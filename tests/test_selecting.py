"""The selector that is fitted: least squares the slow way, its file, and who uses it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from asked_passages import PASSAGES, memory3
from tiny import FAMILIES, tiny_chat_tokenizer, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from memory3.attention.rotary import rotate
from memory3.calibration import selector as fitting
from memory3.calibration.selector import Passage, calibrate_selector, passages_in, read_questions
from memory3.cli.app import app
from memory3.config import MemoryConfig
from memory3.encode.selector_weights import SelectorWeights, find_weights, keep_weights
from memory3.encode.selectors import Selector, selector
from memory3.encode.selectors.learned import Learned
from memory3.errors import ConfigError, InputError, ModelError
from memory3.llm import Memory3
from memory3.models.calibrated import own_calibrated
from memory3.types import Document


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))


def questions(m3: Memory3, passage: Passage) -> list[list[int]]:
    return [[*m3.question_tokens(q), *m3.prompts.ids(a)] for q, a in passage.questions]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_least_squares_the_slow_way(family: str) -> None:
    """Attention from what transformers reports of a plain forward pass, queries from a hook, and one dense solve for each
    layer.
    """
    m3 = memory3(family)
    learned = calibrate_selector(m3, PASSAGES)
    assert learned.about["passages"] == 2  # the third holds none of its answers
    assert learned.about["questions"] == 3
    shape, first, model = m3.geometry, len(m3.frame.prefix), m3.model
    rows: dict[int, list[torch.Tensor]] = {layer: [] for layer in learned.layers}
    paid: dict[int, list[torch.Tensor]] = {layer: [] for layer in learned.layers}
    model.set_attn_implementation("eager")
    seen: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(shape.base.layers):
        norm = block.self_attn.q_norm if family == "qwen3" else block.self_attn.q_proj
        norm.register_forward_hook(lambda module, args, out, layer=layer: seen.update({layer: out.detach()}))
    for passage in PASSAGES[:2]:
        reference = next(iter(m3.split(Document("d", passage.text))))
        length, best = len(reference.token_ids), {}
        for asked in questions(m3, passage):
            tokens = [*m3.frame.prefix, *reference.token_ids, *asked]
            positions = torch.arange(len(tokens))
            positions[first + length :] += m3.config.reference_length - length
            with torch.no_grad():
                out = model(
                    torch.tensor([tokens]),
                    attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                    position_ids=positions[None],
                    output_attentions=True,
                )
            for layer in learned.layers:
                weights = out.attentions[layer][0, :, first + length :, first : first + length]
                grouped = weights.reshape(shape.kv_heads, -1, length).amax(1)
                best[layer] = torch.maximum(best.get(layer, grouped), grouped)
        for layer in learned.layers:
            queries = seen[layer].reshape(len(tokens), -1)[first : first + length]
            rows[layer].append(torch.cat([queries, torch.ones(length, 1)], 1))
            paid[layer].append(best[layer].T)
    model.set_attn_implementation("sdpa")
    for layer, weights in learned.by_layer.items():
        x, t = torch.cat(rows[layer]).double(), torch.cat(paid[layer]).double()
        ridge = fitting._RIDGE**0.5 * torch.eye(x.shape[1], dtype=torch.float64)
        wanted = torch.linalg.lstsq(torch.cat([x, ridge]), torch.cat([t, torch.zeros(len(ridge), t.shape[1])])).solution
        torch.testing.assert_close(weights.double(), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_products_with_the_tokens_own_queries(family: str) -> None:
    m3 = memory3(family)
    layers = m3.geometry.full_layers
    heads, kv_heads, dim = m3.geometry.heads, m3.geometry.kv_heads, m3.geometry.head_dim
    weights = {layer: torch.randn(heads * dim + 1, kv_heads) for layer in layers}
    seen = {}

    class Watch(Selector):
        name = "watch"

        def score(self, view):
            seen[view.layer] = view
            return torch.zeros(view.key.shape[:3])

    references = [next(iter(m3.split(Document("d", passage.text)))) for passage in PASSAGES[:2]]
    dense = m3.encoder.dense(references, [selector("learned", weights), Watch()])
    for place, layer in enumerate(m3.shape.layers):
        view = seen[layer]
        for n, reference in enumerate(references):
            for j in range(len(reference.token_ids)):
                back = torch.tensor([-(view.offset + j)])
                query = torch.cat([rotate(view.query[n, a, j : j + 1], back, view.inv_freq)[0] for a in range(heads)])
                for h in range(kv_heads):
                    wanted = query @ weights[layer][:-1, h] + weights[layer][-1, h]
                    torch.testing.assert_close(dense.scores[0][n, place, h, j], wanted, rtol=1e-3, atol=1e-4)


def test_without_questions_it_predicts_reconstruction() -> None:
    m3 = memory3()
    learned = calibrate_selector(m3, [Passage(p.text) for p in PASSAGES])
    reference = next(iter(m3.split(Document("d", PASSAGES[1].text))))
    dense = m3.encoder.dense([reference], [selector("reconstruction"), Learned(learned.by_layer)])
    wanted, got = (score.flatten() for score in dense.scores)
    assert float(torch.corrcoef(torch.stack([wanted, got]))[0, 1]) > 0.5


def test_it_is_used_once_it_is_there() -> None:
    before = memory3()
    with pytest.raises(ConfigError, match=r"not fitted to this model yet.*memory3 calibrate --selector learned"):
        memory3(selector="learned")
    learned = calibrate_selector(before, PASSAGES)
    after, same = memory3(selector="learned"), memory3(selector="learned", budget="uniform:3")
    reference = next(iter(after.split(Document("d", PASSAGES[1].text))))
    dense = after.encoder.dense([reference], [Learned(learned.by_layer)])
    best = dense.scores[0][0].topk(3).indices.sort().values.numpy().reshape(-1)
    (memory,) = same.encode([reference])
    np.testing.assert_array_equal(memory.positions, best)
    # Another model, another prefix and another length know nothing of it; other layers and numbers do.
    assert memory3(selector="learned", layers=(1, 3), dtype="bfloat16").learned is not None
    config = MemoryConfig(reference_length=37)
    for other in (
        Memory3(tiny_model(seed=5), tiny_chat_tokenizer(), config),
        Memory3(tiny_model(), tiny_tokenizer(), config),
        memory3(reference_length=31),
    ):
        assert other.learned is None
    # Learned anew, its memories are others.
    keep_weights(SelectorWeights(learned.model, learned.layers, learned.weights + 1))
    assert memory3(selector="learned").fingerprint != after.fingerprint


@pytest.mark.parametrize("harm", ["cut", "other model", "shape", "not finite", "version"])
def test_a_file_that_cannot_be_used(harm: str) -> None:
    weights, name = torch.randn(2, 7, 3), "ab" * 16
    path = keep_weights(SelectorWeights(name, (1, 4), weights, {"passages": 2}))
    found = find_weights(name, (1, 4), 7, 3)
    assert found is not None
    assert torch.equal(found.weights, weights)
    assert found.about == {"passages": 2}
    assert found.fingerprint == SelectorWeights(name, (1, 4), weights).fingerprint
    header = {"version": 1, "model": name, "layers": [1, 4], "about": {}}
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif harm == "shape":
        weights = weights[:, :5]
    elif harm == "not finite":
        weights[1, 2, 0] = torch.inf
    elif harm == "version":
        header["version"] = 2
    else:
        header["model"] = "cd" * 16
    if harm != "cut":
        path.write_bytes(safetensors.torch.save({"weights": weights.contiguous()}, {"memory3": json.dumps(header)}))
    with pytest.raises(ModelError, match=r"delete it, or fit it anew"):
        find_weights(name, (1, 4), 7, 3)


def test_questions_of_a_file(tmp_path: Path) -> None:
    record = {"passage": "a b c", "question": "what?", "answer": "b"}
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, [record, {**record, "answer": "c"}])).encode()))
    assert list(passages_in(read_questions(path))) == [Passage("a b c", [("what?", "b"), ("what?", "c")])]
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"passage": "a", "question": 3, "answer": "b"}\n')
    with pytest.raises(InputError, match=r"wrong\.jsonl, line 1: has no question"):
        list(read_questions(wrong))
    wrong.write_text("no json\n")
    with pytest.raises(InputError, match="cannot be read as JSON lines"):
        list(read_questions(wrong))
    with pytest.raises(InputError, match="no text to fit the selector to"):
        calibrate_selector(memory3(), [PASSAGES[2]])


def test_command(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memory3.calibration import codec

    monkeypatch.setattr(codec, "_FEWEST", 7)
    monkeypatch.setattr(codec, "_MOST", 11)
    path = tmp_path / "reading.jsonl"
    lines = [{"passage": p.text, "question": q, "answer": a} for p in PASSAGES for q, a in p.questions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = CliRunner().invoke
    given = ["--model", tiny_model_path, "--budget", "uniform:3", "--codec", "int8", "--json", "--selector", "learned"]
    done = run(app, ["calibrate", *given, "--questions", str(path)])
    assert done.exit_code == 0, done.output
    (kept,) = own_calibrated("selectors").iterdir()
    first = kept.read_bytes()
    text = tmp_path / "text.txt"
    text.write_text(PASSAGES[0].text * 5)
    done = run(app, ["write", str(text), "--bank", str(tmp_path / "bank"), *given])
    assert done.exit_code == 0, done.output
    assert "fitting" not in done.stderr  # calibrate has done it
    # Without questions the one that is there stays.
    done = run(app, ["calibrate", *given])
    assert done.exit_code == 0, done.output
    assert kept.read_bytes() == first
