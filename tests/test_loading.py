"""Model folders that are damaged, incomplete, quantised, hostile or no models: each is one sentence that says what is
wrong, and no code of theirs runs.
"""

from __future__ import annotations

import io
import json
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file

from memory3 import Memory3
from memory3.errors import ModelError
from memory3.models.adapter import read_adapter
from memory3.models.causes import missing_weights
from memory3.models.load import check_device, load_model


@pytest.fixture
def folder(tmp_path):
    tiny.save_tiny(tmp_path / "model", chat=True)
    return tmp_path / "model"


def configured(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def no_header(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 3)


def pointer(name):
    return lambda folder: (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n")


def shards(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    names = {f"w{n}": f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def pickled(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def quantised(**how):
    return lambda folder: configured(folder, quantization_config=how)


def of_type(kind):
    return lambda folder: configured(folder, model_type=kind)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut_short, r"model.safetensors cannot be read \(.*\). Is the download complete\?"),
        (no_header, r"model.safetensors cannot be read \(.*header too small\)"),
        (
            pointer("model.safetensors"),
            "model.safetensors is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`",
        ),
        (pointer("tokenizer.json"), "tokenizer.json is a Git LFS pointer"),
        (shards, "lacks model-00002-of-00003.safetensors and model-00003-of-00003.safetensors, which its index names"),
        (pickled, "pytorch_model.bin is a pickle, .* save_pretrained, which writes safetensors"),
        (without("model.safetensors"), "has no weights"),
        (without("config.json"), "has no config.json"),
        (without("tokenizer.json", "tokenizer_config.json"), "has no fast tokenizer"),
        (written("config.json", "{"), "config.json is no JSON"),
        (written("config.json", '{"a":' * 9999 + "1" + "}" * 9999), "nested too deeply"),
        (written("tokenizer.json", '{"model":'), "tokenizer.json is no JSON"),
        (
            lambda folder: configured(folder, num_hidden_layers=10**9),
            "says num_hidden_layers = 1000000000: a model has 1 to 10000",
        ),
        (lambda folder: configured(folder, num_hidden_layers=0), "says num_hidden_layers = 0"),
        (lambda folder: configured(folder, intermediate_size=26), "other sizes than config.json says"),
        (quantised(quant_method="gptq", bits=4), r"quantised \(gptq\).*requires"),
        (quantised(quant_method="bitsandbytes", load_in_8bit=True), "requires bitsandbytes"),
        (quantised(quant_method="awq", bits=4), "requires gptqmodel"),
        (quantised(quant_method="compressed-tensors"), "pip install compressed-tensors"),
        (quantised(quant_method="hqq"), r"quantised \(hqq\)"),
        (quantised(quant_method="mine"), "quantised by 'mine', which transformers does not know"),
        (of_type("t5"), "is of type t5, which is no causal language model"),
        (of_type("vit"), "is of type vit, which is no causal language model"),
        (of_type("nothing-known"), "cannot be loaded: .*`nothing-known`"),
    ],
)
def test_a_folder_that_is_no_model_as_it_should_be(folder, harm, said):
    harm(folder)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_drawn_at_random(folder):
    configured(folder, num_hidden_layers=8, layer_types=None)
    with pytest.raises(ModelError, match="the checkpoint has no weights for layers 5, 6 and 7"):
        load_model(str(folder))


@pytest.mark.parametrize("layers", [4, 2])
def test_layers_that_the_config_does_not_have_are_not_left_out(folder, layers):
    configured(folder, num_hidden_layers=layers, layer_types=None)
    with pytest.raises(ModelError, match=r"weights for layers? .*4.*num_hidden_layers"):
        load_model(str(folder))


def test_tied_weights_are_not_missing(tmp_path):
    model, _ = load_model(tiny.save_tiny(tmp_path / "tied", "qwen3"))
    assert torch.equal(model.lm_head.weight, tiny.tiny_model("qwen3").lm_head.weight)


def test_missing_weights_in_short():
    keys = [f"model.layers.{n}.mlp.up_proj.weight" for n in (11, 3)] + ["lm_head.weight"]
    assert missing_weights(keys) == "layers 3 and 11 and lm_head.weight"
    assert missing_weights(["transformer.h.4.ln.weight"]) == "layer 4"
    assert missing_weights([f"model.layers.{n}.w" for n in range(20)]) == "layers 0, 1, 2, 3, 4, 5 and 14 more"


@pytest.mark.parametrize("of", ["model", "tokenizer"])
def test_code_of_a_folder_is_never_run_even_when_asked_on_the_terminal(folder, of, monkeypatch, tmp_path):
    trace = tmp_path / "ran"
    (folder / "own.py").write_text(
        f"open({str(trace)!r}, 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    )
    if of == "model":
        configured(folder, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    else:
        path = folder / "tokenizer_config.json"
        mine = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
        path.write_text(json.dumps(json.loads(path.read_text()) | mine))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ModelError, match="needs code of its repository, which memory3 never runs"):
        load_model(str(folder))
    with pytest.raises(ModelError, match="trust_remote_code=True is refused"):
        load_model(str(folder), trust_remote_code=True)
    with pytest.raises(ModelError, match="use_safetensors=False is refused"):
        load_model(str(folder), use_safetensors=False)
    assert not trace.exists()


def test_a_path_is_a_name(folder):
    assert Memory3.from_pretrained(folder).name == str(folder)


def test_the_tokenizer_of_another_model(folder):
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text())
    said["model"]["vocab"]["zzz"] = 977
    path.write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"tokens up to 977, the model 320 embeddings"):
        load_model(str(folder))


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_a_device_that_torch_was_not_built_for(name):
    with pytest.raises(ModelError, match=f"device '{name}': this torch has no CUDA; use cpu"):
        load_model("no-such-model", device=name)  # said before anything is loaded


@pytest.mark.parametrize(
    ("name", "said"), [("gpu", "is unknown: use"), ("meta", "holds no numbers"), ("xpu", r"cannot be used \(")]
)
def test_a_device_that_is_none(name, said):
    with pytest.raises(ModelError, match=f"device '{name}' ?.*{said}"):
        check_device(name)


@pytest.mark.parametrize(
    ("changes", "value", "said"),
    [
        ({"r": 0}, 1.0, "r: 0"),
        ({"r": -4}, 1.0, "r: -4"),
        ({"lora_alpha": float("nan")}, 1.0, "NaN"),
        ({}, float("inf"), "not finite"),
    ],
)
def test_an_adapter_that_would_spoil_the_model(tmp_path, changes, value, said):
    from safetensors.torch import save_file

    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "peft_type": "LORA"} | changes))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    halves = {name.format("A"): torch.ones(2, 24), name.format("B"): torch.full((84, 2), value)}
    save_file(halves, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=said):
        read_adapter(tmp_path)
