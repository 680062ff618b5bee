"""Calibration: a uniform draw, the codebook in the cache, and the commands that make and use it."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from bank_writer import HashingWriter, documents
from typer.testing import CliRunner

from memory3.attention.rotary import rotate
from memory3.bank import Bank
from memory3.bank.codebooks import cached_codebook
from memory3.calibration import codec as codec_calibration
from memory3.calibration.codec import calibrate
from memory3.calibration.metrics import error_metrics
from memory3.calibration.sample import default_documents, memories_of, sample
from memory3.cli.app import app
from memory3.codec import CodedCodec, fit
from memory3.config import MemoryConfig
from memory3.encode.selectors import Selector
from memory3.errors import ConfigError
from memory3.llm import Memory3
from memory3.models.adapter import write_about
from memory3.types import Document


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(codec_calibration, "_FEWEST", 7)
    monkeypatch.setattr(codec_calibration, "_MOST", 11)


def test_a_draw_is_uniform():
    m3 = HashingWriter()
    docs = documents(3)
    every = [reference.id for document in docs for reference in m3.split(document)]
    drawn = Counter(reference.id for seed in range(2000) for reference in sample(m3, docs, 3, seed=seed))
    expected = 2000 * 3 / len(every)
    assert set(drawn) == set(every)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())
    assert [reference.id for reference in sample(m3, docs, 1000)] == every


def test_memories_of_references_are_told():
    told = []
    m3 = HashingWriter(batch_size=2)
    references = sample(m3, documents(3), 5)
    assert len(list(memories_of(m3, references, lambda done, total: told.append((done, total))))) == 5
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_calibrating_keeps_a_book_for_these_memories(tiny_model, tiny_tokenizer):
    m3 = Memory3(tiny_model(), tiny_tokenizer, MemoryConfig(codec="int8", budget="uniform:3"), name="tiny")
    told = []
    texts = [Document("d", "The river rises in the mountains and reaches the sea. " * 30)]
    book = calibrate(m3, texts, progress=lambda what, done, total: told.append((what, done, total)))
    assert (book.codec, book.memories, book.shape, book.positions) == ("int8", m3.fingerprint, m3.shape, 128)
    assert cached_codebook("int8", m3.fingerprint).fingerprint == book.fingerprint
    assert book.tensors["keys.angles"].shape == (7,)
    assert book.tensors["values.angles"].shape == (0,)
    # So short a text is made up by the default one.
    assert told[0] == ("encoding references", 0, 11)
    assert [what for what, _, total in told if not total] == ["fitting keys", "fitting values"]
    assert calibrate(m3, texts).fingerprint == book.fingerprint
    with pytest.raises(ConfigError, match="nothing to fit"):
        calibrate(m3, texts, codec="raw")


class Queries(Selector):
    """Keeps what later queries are, one by one."""

    name, repeats = "queries", True

    def __init__(self):
        self.of = defaultdict(list)

    def score(self, view):
        for row, lse in zip(view.later_query, view.later_lse, strict=True):
            for head, (queries, seen) in enumerate(zip(row, lse, strict=True)):
                group = head // (row.shape[0] // view.key.shape[1])
                self.of[view.layer, group] += [
                    query * view.scale for query, one in zip(queries, seen, strict=True) if torch.isfinite(one)
                ]
        return torch.zeros(view.key.shape[:3])


def test_what_errors_cost_the_slow_way(tiny_model, tiny_tokenizer):
    """An error in a key at any place against the squared errors of the logits; in a value, of the attention's output."""
    m3 = Memory3(
        tiny_model(), tiny_tokenizer, MemoryConfig(budget="uniform:3", layers=(1, 3), reference_length=17), name="tiny"
    )
    m3.batch_size = 2
    references = sample(m3, documents(2), 3)
    metrics = error_metrics(m3, references)
    queries = Queries()
    for reference in references:
        m3.encoder.dense([reference], [queries])
    generator = torch.Generator().manual_seed(5)
    for at, layer in enumerate((1, 3)):
        for head in range(m3.shape.kv_heads):
            error = torch.randn(m3.shape.head_dim, generator=generator)
            # Places are taken every 8 tokens: 0, 8 and 16 of the 17.
            costs = [
                float(query @ rotate(error[None], torch.tensor([place]), m3.angles)[0]) ** 2
                for place in (0, 8, 16)
                for query in queries.of[layer, head]
            ]
            cost = float(error @ metrics["keys"][at * m3.shape.kv_heads + head] @ error)
            assert cost == pytest.approx(sum(costs) / len(costs), rel=1e-3)
            output = m3.model.model.layers[layer].self_attn.o_proj.weight
            grouped = output.shape[1] // m3.shape.kv_heads // m3.shape.head_dim
            costs = []
            for query_head in range(head * grouped, (head + 1) * grouped):
                given = torch.zeros(output.shape[1])
                given[query_head * m3.shape.head_dim : (query_head + 1) * m3.shape.head_dim] = error
                costs.append(float((output @ given).square().sum()))
            cost = float(error @ metrics["values"][at * m3.shape.kv_heads + head] @ error)
            assert cost == pytest.approx(sum(costs) / grouped, rel=1e-3)


def test_a_codec_that_knows_what_errors_cost_is_fitted_to_it(tiny_model, tiny_tokenizer):
    m3 = Memory3(tiny_model(), tiny_tokenizer, MemoryConfig(codec="transform:16+24", budget="uniform:31"), name="tiny")
    references = sample(m3, default_documents()[:20], 11)
    book = calibrate(m3, [Document("d", "The river rises in the mountains. " * 40)])
    assert (book.codec, book.memories) == ("transform:16+24", m3.fingerprint)
    memories, metrics = m3.encode(references), error_metrics(m3, references)
    costs = []
    for given in (metrics, None):
        fitted = CodedCodec(
            fit("transform:16+24", memories, m3.shape, fingerprint="", positions=128, angles=m3.angles, metrics=given)
        )
        heads = [np.repeat(np.arange(m3.shape.heads), memory.counts.reshape(-1)) for memory in memories]
        decoded = fitted.decode([fitted.encode(memory) for memory in memories])
        errors = [(a.values.float() - b.values.float(), of) for a, b, of in zip(memories, decoded, heads, strict=True)]
        costs.append(sum(float(torch.einsum("pd,pde,pe->", e, metrics["values"][of], e)) for e, of in errors))
    assert costs[0] < costs[1]


def test_taking_rope_back_makes_keys_of_a_model_easier(tiny_model, tiny_tokenizer):
    m3 = Memory3(tiny_model(), tiny_tokenizer, MemoryConfig(budget="uniform:31"), name="tiny")
    memories = m3.encode(sample(m3, default_documents()[:20], 11))
    errors = [
        fit("int4", memories, m3.shape, fingerprint="", positions=128, angles=angles).about["keys_error"]
        for angles in (m3.angles, None)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_commands(tiny_model_path, tmp_path, monkeypatch):
    """calibrate, write --codec with a fitted book and without one, info, rebuild --codec."""
    run = CliRunner().invoke
    text = tmp_path / "text.txt"
    text.write_text("Who built the bridge, and when? The bridge was built in 1874 by the engineer of the county. " * 20)
    model = ["--model", tiny_model_path, "--budget", "uniform:3", "--json"]
    done = run(app, ["calibrate", *model, "--codec", "int8", "--data", str(text)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["record_bytes"] < 0.6 * report["raw_record_bytes"]
    assert report["keys_error"] < 0.01
    for codec, fits in (("int8", False), ("product:RQ3x4", True)):
        bank = tmp_path / codec.replace(":", "-")
        done = run(app, ["write", str(text), "--bank", str(bank), *model, "--codec", codec])
        assert done.exit_code == 0, done.output
        assert ("fitting the codec" in done.stderr) == fits
        assert Bank.describe(bank).codec == codec
        assert run(app, ["verify", "--bank", str(bank)]).exit_code == 0
    refused = run(app, ["write", str(text), "--bank", str(tmp_path / "int8"), "--codec", "raw"])
    assert refused.exit_code == 1
    assert "codec 'int8', not 'raw'" in refused.output
    done = run(app, ["rebuild", "--bank", str(tmp_path / "int8"), "--codec", "int4", "--json"])
    assert done.exit_code == 0, done.output
    assert Bank.describe(tmp_path / "int8").codec == "int4"
    wrong = run(app, ["write", str(text), "--bank", str(tmp_path / "new"), "--codec", "zip"])
    assert wrong.exit_code == 2
    assert run(app, ["calibrate", "--codec", "raw"]).exit_code == 1


def test_a_book_is_fitted_to_what_a_trained_model_writes(tiny_model_path, tmp_path):
    """`write` finds what `calibrate` fitted, though neither is told the settings: the model says them."""
    trained = tmp_path / "trained"
    shutil.copytree(tiny_model_path, trained)
    write_about(trained, "tiny", MemoryConfig(budget="uniform:3", selector="attention", layers="1:4"))
    text = tmp_path / "text.txt"
    text.write_text("Who built the bridge, and when? The bridge was built in 1874 by the engineer of the county. " * 20)
    model = ["--model", str(trained), "--codec", "int8", "--json"]
    done = CliRunner().invoke(app, ["calibrate", *model, "--data", str(text)])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["write", str(text), "--bank", str(tmp_path / "bank"), *model])
    assert done.exit_code == 0, done.output
    assert "fitting the codec" not in done.stderr
    assert Bank.describe(tmp_path / "bank").config.selector == "attention"
