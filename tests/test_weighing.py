"""The selector that is weighed: its features and gates the slow way, its loss against transformers' own attention, and who
uses it.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from asked_passages import PASSAGES, memory3
from tiny import tiny_chat_tokenizer, tiny_model
from typer.testing import CliRunner

from memory3.calibration import weighing
from memory3.calibration.selector import Passage, answered
from memory3.calibration.weighing import calibrate_weighed, gates
from memory3.cli.app import app
from memory3.config import MemoryConfig
from memory3.encode.encoder import Encoder
from memory3.encode.selectors import Selector
from memory3.encode.selectors.weighed import FEATURES, Weighed, features
from memory3.errors import ConfigError, InputError
from memory3.llm import Memory3
from memory3.models.calibrated import own_calibrated
from memory3.types import Document


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))


def fit_of(m3: Memory3) -> weighing._Fit:
    encoder = Encoder(m3.model, m3.geometry, m3.frame, m3.config.replace(layers="all", budget="all", selector="first"))
    fit = weighing._Fit(m3, encoder, random.Random(3))
    fit.read(list(answered(m3, PASSAGES, 2)))
    fit.begin()
    return fit


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_features_query_by_query(family: str) -> None:
    m3 = memory3(family)
    seen = {}

    class Watch(Selector):
        name = "watch"
        repeats = True

        def score(self, view):
            seen[view.layer] = view
            return torch.zeros(view.key.shape[:3])

    references = [next(iter(m3.split(Document("d", passage.text)))) for passage in PASSAGES]
    m3.encoder.dense(references, [Watch()])
    view = seen[2]
    got = features(view)
    group = view.later_query.shape[1] // view.key.shape[1]
    for n, reference in enumerate(references):
        tokens = len(reference.token_ids)
        for h in (0, view.key.shape[1] - 1):
            for j in (0, tokens - 1):
                paid = [
                    [
                        math.exp(
                            float(view.later_query[n, h * group + g, t] @ view.key[n, h, j]) * view.scale
                            - float(view.later_lse[n, h * group + g, t])
                        )
                        for g in range(group)
                    ]
                    for t in range(tokens)
                ]
                every = [p for row in paid for p in row]
                wanted = (
                    max(every),
                    math.sqrt(sum(p * p for p in every) / len(every)),
                    max(map(sum, paid)),
                    sum(every) / len(every),
                )
                logs = torch.tensor([math.log(max(one, 1e-6)) for one in wanted])
                torch.testing.assert_close(got[n, h, j], logs, rtol=1e-4, atol=1e-4)


def test_gates_sum_up_to_the_budget() -> None:
    scores = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    real = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    for hot in (1.0, 0.15, 1e-4):
        found = gates(scores, real, 23, hot).exp()
        assert found.sum((1, 2, 3))[:2].tolist() == pytest.approx([23, 23], rel=1e-3)
        assert float(found[2].sum()) == pytest.approx(10, rel=1e-2)  # there is room for all of it
        assert not found.movedim(3, 1)[~real].any()
    best = torch.zeros(70).index_fill(0, scores[0].flatten().topk(23).indices, 1.0)
    torch.testing.assert_close(found[0].flatten(), best, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_answers_behind_gates_as_transformers_reads_them(family: str) -> None:
    """A plain pass over prefix, passage and question, with what gates add to logits in a mask of its own for every head."""
    m3 = memory3(family)
    fit = fit_of(m3)
    model, shape, first = m3.model, m3.geometry, len(m3.frame.prefix)
    batch = fit.held
    asked = [one.asked[-1] for one in batch]
    longest = max(one.keys.shape[2] for one in batch)
    keys, values = (
        torch.stack([weighing._padded(getattr(one, name), longest) for one in batch]) for name in ("keys", "values")
    )
    keys = keys * m3.config.memory_temperature  # read as text is
    real = torch.arange(longest) < torch.tensor([one.keys.shape[2] for one in batch])[:, None]
    layers, heads = keys.shape[1:3]
    bias = torch.randn(len(batch), 1, heads, longest, generator=torch.Generator().manual_seed(2)).expand(-1, layers, -1, -1)
    got = fit._answers(keys, values, bias.masked_fill(~real[:, None, None], -1e9), asked)
    model.set_attn_implementation("eager")
    wanted = []
    for n, (reference, (question, answer)) in enumerate(zip(answered(m3, PASSAGES, 2), asked, strict=True)):
        tokens = [*m3.frame.prefix, *reference[0].token_ids, *question, *answer]
        length = len(reference[0].token_ids)
        positions = torch.arange(len(tokens))
        positions[first + length :] += m3.config.reference_length - length
        mask = torch.full((len(tokens), len(tokens)), -1e9).triu(1).expand(1, shape.heads, -1, -1).clone()
        added = bias[n, 0].repeat_interleave(shape.heads // heads, 0)[:, None, :length]
        mask[0, :, first + length :, first : first + length] += added
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), attention_mask=mask, position_ids=positions[None]).logits[0]
        wanted.append(logits[-1 - len(answer) : -1].log_softmax(-1))
    torch.testing.assert_close(got, torch.cat(wanted), rtol=1e-4, atol=1e-4)


def test_a_step_goes_down_the_slope() -> None:
    """The gradient of a step against differences of its loss."""
    m3 = memory3(budget="adaptive:1/3")
    fit = fit_of(m3)
    place = (1, 0, 2)

    def loss(change: float) -> tuple[float, float]:
        again = fit_of(m3)
        with torch.no_grad():
            again._weights[place] += change
        again.step(0.5)
        assert again._weights.grad is not None
        return again.losses[0], float(again._weights.grad[place])

    apart = (loss(0.05)[0] - loss(-0.05)[0]) / 0.1
    assert loss(0.0)[1] == pytest.approx(apart, rel=0.05)
    assert abs(apart) > 1e-7
    before = fit._weights.detach().clone()
    fit.step(0.5)
    assert not torch.equal(before, fit._weights)
    assert all(parameter.grad is None for parameter in m3.model.parameters())


def test_it_begins_at_reconstruction_and_keeps_more_of_the_answers() -> None:
    m3 = memory3(budget="adaptive:1/8")
    fit = fit_of(m3)
    fit._late = [fit._weights.detach()]
    references = [reference for reference, _ in answered(m3, PASSAGES, 2)]
    begun = Weighed(dict(zip(fit.encoder.shape.layers, fit.weights(), strict=True)))
    dense = fit.encoder.dense(references, [begun])
    seen = dense.scores[0].flatten(1)
    plain = fit.encoder.dense(references, [memory3().encoder._selector]).scores[0].flatten(1)
    for n, reference in enumerate(references):
        real = len(reference.token_ids)
        shape = dense.scores[0].shape[1:]
        mine, theirs = (x[n].view(shape)[..., :real].flatten() for x in (seen, plain))
        clear = theirs > 1e-5
        torch.testing.assert_close((mine - mine.max())[clear], (theirs / theirs.max()).log()[clear], rtol=1e-3, atol=1e-3)
    found = calibrate_weighed(m3, PASSAGES, steps=30)
    assert found.about["passages"] == 2  # the third holds none of its answers
    assert found.weights.shape == (5, len(FEATURES) + 1, m3.geometry.kv_heads)

    def cold(weights: torch.Tensor) -> float:
        again = fit_of(m3)
        again._weights.data = weights
        again.step(0.15)
        return again.losses[0]

    plainly = found.weights.transpose(1, 2)
    scaled = plainly[..., :-1] * fit._deviation
    offset = plainly[..., -1:] + (plainly[..., :-1] * fit._mean).sum(-1, keepdim=True)
    assert cold(torch.cat([scaled, offset], -1)) < cold(fit._weights.detach().clone())


def test_it_is_used_at_the_budget_it_was_fitted_at() -> None:
    with pytest.raises(ConfigError, match=r"model and budget yet.*--selector weighed --budget adaptive:"):
        memory3(selector="weighed")
    found = calibrate_weighed(memory3(), PASSAGES, steps=2)
    there = memory3(selector="weighed")
    assert there.fitted("weighed") is not None
    assert there.fitted("weighed").fingerprint == found.fingerprint
    for other in ({"budget": "adaptive:1/4"}, {"budget": "uniform:4"}, {"layers": (1, 3)}, {"reference_length": 31}):
        with pytest.raises(ConfigError, match="not fitted to this model and budget yet"):
            memory3(selector="weighed", **other)
    other = calibrate_weighed(memory3(budget="adaptive:1/4"), PASSAGES, steps=2)
    assert other.fingerprint != found.fingerprint
    assert memory3(selector="weighed").fitted("weighed").fingerprint == found.fingerprint  # it is still there


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ConfigError, match="memory in all layers"):
        calibrate_weighed(memory3(layers=(1, 3)), PASSAGES)
    with pytest.raises(ConfigError, match="compares heads"):
        calibrate_weighed(memory3(budget="uniform:3"), PASSAGES)
    with pytest.raises(InputError, match="whose answers stand in their passages"):
        calibrate_weighed(memory3(), [PASSAGES[2], Passage("No question at all.")])
    long = Passage("Of the sea.", [("where " * 200, "sea")])
    with pytest.raises(InputError, match="longer than 96"):
        calibrate_weighed(memory3(), [long])
    kinds = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    model = tiny_model("qwen2", layer_types=kinds, sliding_window=64, use_sliding_window=True)
    windowed = Memory3(model, tiny_chat_tokenizer(), MemoryConfig(reference_length=37))
    with pytest.raises(ConfigError, match="window layers"):
        calibrate_weighed(windowed, PASSAGES)


def test_command(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "STEPS", 3)
    monkeypatch.setattr(calibrate_weighed, "__kwdefaults__", {**calibrate_weighed.__kwdefaults__, "steps": 3})
    path, text = tmp_path / "reading.jsonl", tmp_path / "text.txt"
    lines = [{"passage": p.text, "question": q, "answer": a} for p in PASSAGES for q, a in p.questions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text.write_text(
        "\n\n".join(f"In that year the engineers of the town built bridges for {7 * n} people." for n in range(1870, 1890))
    )
    run = CliRunner().invoke
    model = ["--model", tiny_model_path, "--codec", "raw"]
    weighed = [*model, "--selector", "weighed"]
    done = run(app, ["write", str(text), "--bank", str(tmp_path / "bank"), *weighed])
    assert done.exit_code == 1
    assert "memory3 calibrate --selector weighed" in " ".join(done.stderr.split())
    done = run(app, ["calibrate", *weighed, "--questions", str(path), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["selector"], said["passages"], said["steps"], len(said["losses"])) == ("weighed", 2, 3, 3)
    (kept,) = own_calibrated("selectors").iterdir()
    assert kept.name.endswith(f"-weighed-adaptive-{5 * 2 * 128 // 8}.safetensors")
    first = kept.read_bytes()
    done = run(app, ["write", str(text), "--bank", str(tmp_path / "bank"), *weighed])
    assert done.exit_code == 0, done.output
    done = run(app, ["calibrate", *weighed, "--data", str(text)])  # one that is there stays
    assert done.exit_code == 0, done.output
    assert kept.read_bytes() == first
    kept.unlink()
    done = run(app, ["calibrate", *weighed, "--data", str(text)])  # sentences with a gap
    assert done.exit_code == 0, done.output
    assert "fitted on" in done.stdout
    assert kept.read_bytes() != first
    done = run(app, ["calibrate", *model])
    assert done.exit_code == 1
    assert "nothing to fit" in done.stderr
