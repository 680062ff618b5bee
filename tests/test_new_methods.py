"""A codec is one file and a selector is one file: each is written here, registered, and used by the bank, the planner and the
command line.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from bank_writer import HashingEmbedder, HashingWriter, documents, expected, open_bank
from codebooks import fitted
from typer.testing import CliRunner

import memory3
from memory3.bank import Bank
from memory3.cli.app import app
from memory3.codec import CodedCodec, registry
from memory3.config import BUDGET_FORMS, Budget, MemoryConfig
from memory3.encode import selectors
from memory3.errors import ConfigError
from memory3.llm import Memory3
from memory3.models.sizes import SHAPES
from memory3.planner.library import library_costs, writing_tokens
from memory3.planner.storage import library_bytes
from memory3.types import Document, MemoryShape

SIZES = SHAPES["smollm2-135m-instruct"]


@pytest.fixture
def half():
    yield importlib.import_module("toy_codec").Half
    registry.forget("half")
    del sys.modules["toy_codec"]


@pytest.fixture
def norm():
    yield importlib.import_module("toy_selector").Norm
    del selectors.SELECTORS["norm"]
    del sys.modules["toy_selector"]


@pytest.mark.parametrize("codec", ["half", "half+int8", "int4+half"])
def test_a_bank_with_a_new_codec(codec, half, tmp_path):
    m3 = HashingWriter(MemoryShape((1, 4, 6), 2, 5, 7, "float32"), config=MemoryConfig(reference_length=4, codec=codec))
    codebook = fitted(codec, m3)
    with open_bank(tmp_path / "bank", m3, code_book=codebook) as bank:
        bank.write(documents(5))
    with open_bank(tmp_path / "bank", m3) as bank:
        assert bank.manifest.codec == codec
        assert bank.manifest.record_bytes == CodedCodec(codebook).record_size
        assert bank.verify().ok
        for id_, (reference, _) in expected(documents(5), m3).items():
            (found,), made = bank.memories([id_]), m3.memory(reference)
            assert np.array_equal(found.positions, made.positions)
            for side in registry.find(codec).sides.values():
                assert side.cost(5).bytes in (10, 5, 3)
            if not codec.startswith("int"):
                assert torch.equal(found.keys, made.keys.half().float())
            if not codec.endswith("int8"):
                assert torch.equal(found.values, made.values.half().float())


def test_the_planner_and_the_command_line_know_a_new_codec(half):
    raw, new = (MemoryConfig(codec=name) for name in ("raw", "half"))
    pairs = raw.budget.pairs(SIZES.layers * SIZES.kv_heads, 128)
    # A place of one byte and not of two; the numbers are as many.
    assert library_bytes(SIZES, raw).record - library_bytes(SIZES, new).record == pairs
    assert "half (float16, whatever the dtype)" in registry.help()
    assert CliRunner().invoke(app, ["plan", "--codec", "half+int8"]).exit_code == 0
    with pytest.raises(ConfigError, match="half has no options"):
        registry.find("half:3")


def test_a_model_writes_with_a_new_selector(norm, tiny_model, tiny_tokenizer):
    m3 = Memory3(tiny_model(), tiny_tokenizer, MemoryConfig(selector="norm", budget="uniform:3", layers=(1, 3)), name="tiny")
    (reference,) = list(m3.split(Document("d", "The river rises in the mountains and reaches the sea.")))
    (memory,) = m3.encode([reference])
    dense = m3.encoder.dense([reference], [norm()])
    places = iter(memory.positions.tolist())
    for layer in range(2):
        for head in range(m3.shape.kv_heads):
            longest = dense.values[0, layer, head].float().norm(dim=-1).topk(3).indices.sort().values.tolist()
            assert [next(places) for _ in range(3)] == longest


def test_the_planner_and_the_command_line_know_a_new_selector(norm):
    config = MemoryConfig(selector="norm")
    assert writing_tokens(config, 100) == 100  # one pass
    said = {term.name: term.flops for term in library_costs(SIZES, config).explicit.write}
    assert said["selection of tokens"] == SIZES.layers * 2 * 128 * SIZES.attention_width
    assert "norm (tokens with long values)" in selectors.help()


def test_names_are_taken_once(half, norm):
    class Other(half):
        pass

    class Another(norm):
        pass

    with pytest.raises(ConfigError, match="there is a codec 'half' already"):
        registry.register(Other)
    with pytest.raises(ConfigError, match="there is a selector 'norm' already"):
        selectors.register(Another)


def test_names_that_do_not_exist_are_refused_before_any_work(tmp_path, monkeypatch):
    """Where settings meet a model or a bank, and on the command line; no model is loaded for it."""
    monkeypatch.setattr("memory3.llm.load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    for wrong in ({"codec": "zip"}, {"codec": "transform:x"}, {"codec": "product:PQ"}, {"selector": "zip"}):
        with pytest.raises(ConfigError, match=r"is unknown|multiple of 8"):
            Memory3.from_pretrained(config=MemoryConfig(**wrong))
    writer = HashingWriter(config=MemoryConfig(reference_length=4, codec="zip"))
    with pytest.raises(ConfigError, match="'zip' is unknown"):
        open_bank(tmp_path / "bank", writer)
    assert not (tmp_path / "bank").exists()
    with open_bank(tmp_path / "bank") as bank:
        with pytest.raises(ConfigError, match="'zip' is unknown"):
            Bank.rebuild(tmp_path / "bank", writer, embedder=HashingEmbedder())
        assert len(bank) == 0
    text = tmp_path / "text.txt"
    text.write_text("text")
    for command in (
        ["write", str(text), "--bank", str(tmp_path / "new")],
        ["rebuild", "--bank", str(tmp_path / "bank")],
        ["calibrate"],
    ):
        for option in (["--codec", "zip"], ["--selector", "zip"]):
            done = CliRunner().invoke(app, [*command, *option])
            assert (done.exit_code, "'zip' is unknown" in " ".join(done.output.split())) == (2, True), done.output
    assert not (tmp_path / "new").exists()


def test_each_codec_and_each_selector_says_what_it_is():
    """And is found by the file that it lies in: no list names it."""
    for kinds, said in ((registry.codecs(), registry.help()), (selectors.SELECTORS, selectors.help())):
        assert all(kind.help in said for kind in kinds.values())
        assert len({kind.help for kind in kinds.values()}) == len(kinds)
    source = Path(memory3.__file__).parent
    for kinds, folder in ((registry.codecs(), "codec/kinds"), (selectors.SELECTORS, "encode/selectors")):
        files = {path.stem for path in (source / folder).glob("*.py")} - {"__init__", "base"}
        assert {kind.__module__.rpartition(".")[2] for kind in kinds.values()} == files


def test_the_command_line_tells_of_all():
    for command in ("write", "rebuild", "calibrate", "plan"):
        told = {option.name: option.help for option in typer.main.get_command(app).commands[command].params}
        assert registry.help() in told["codec"]
        assert selectors.help() in told["selector"]
        assert Budget.help() in told["budget"]
    assert all(str(Budget.parse(form)).startswith(form.partition(":")[0]) for form in BUDGET_FORMS)


def test_asking_for_costs_imports_no_torch():
    """Not even when the planner is asked, for every codec and selector, new ones too."""
    code = """
import sys
import toy_codec, toy_selector
from memory3.codec import registry
from memory3.config import MemoryConfig
from memory3.encode import selectors
from memory3.models.sizes import SHAPES
from memory3.planner.library import library_costs
from memory3.planner.storage import library_bytes
for codec in ("auto", *registry.codecs()):
    for selector in selectors.SELECTORS:
        config = MemoryConfig(codec=codec, selector=selector)
        library_costs(SHAPES["smollm2-135m-instruct"], config), library_bytes(SHAPES["smollm2-135m-instruct"], config)
print(registry.help() != "", selectors.help() != "", sorted({"torch", "transformers", "faiss"} & set(sys.modules)))
"""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path)
    assert done.stdout == "True True []\n"
