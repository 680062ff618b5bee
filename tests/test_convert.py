"""GGUF reading and conversion, against the gguf package, a known model and what SmolLM2's tokenizer is known to do."""

import hashlib
import json
import random

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors import safe_open
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from memory3.errors import ModelError
from memory3.models.convert import convert_llama
from memory3.models.gguf import GGUF

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path, *, splitting="smollm", tied=False):
    """A tiny Llama as llama.cpp's converter writes it: its names, and the rows of a head in neighbour order."""
    model, tokenizer = tiny_model("llama", tie_word_embeddings=tied), tiny_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list([token for token, _ in ids])
    writer.add_token_types([3 if i in tokenizer.all_special_ids else 1 for _, i in ids])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_unk_token_id(tokenizer.pad_token_id)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, values in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = values.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = values.shape[0] // config.head_dim
            values = values.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(_llama_cpp_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _merges(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def _llama_cpp_name(name):
    whole = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in whole:
        return f"{whole[name]}.weight"
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{MODULES[module]}.weight"


@pytest.mark.parametrize("tied", [False, True])
def test_a_converted_model_is_the_model(tmp_path, tied):
    model = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    folder = tmp_path / "model"
    folder.mkdir()
    steps = []
    convert_llama((tmp_path / "tiny.gguf").read_bytes(), folder, lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] == len(steps)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 17, 11, 42, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.dtype == torch.float32
    assert loaded.config.rms_norm_eps == model.config.rms_norm_eps
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The bridge was built in 1874."
    assert tokenizer.encode(text, add_special_tokens=False)[-6:-1] == tokenizer.convert_tokens_to_ids(["Ġ", *"1874"])
    assert tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False) == text


def test_values_equal_those_of_the_gguf_package(tmp_path):
    path = tmp_path / "types.gguf"
    values = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("numbers", [3, 1, 2])
    writer.add_bool("truth", True)
    writer.add_tensor("plain", values)
    for kind in (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0):
        writer.add_tensor(kind.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUF(path.read_bytes())
    assert file.metadata["numbers"] == [3, 1, 2]
    assert file.metadata["truth"] is True
    ours = dict(file.tensors())
    assert len(file) == len(ours) == 3
    for tensor in gguf.GGUFReader(path).tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours[tensor.name], theirs)
        assert ours[tensor.name].dtype == np.float32


def test_another_tensor_type_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "f16.gguf", "llama")
    writer.add_tensor("half", np.zeros((2, 3), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="type 1 is not supported"):
        dict(GGUF((tmp_path / "f16.gguf").read_bytes()).tensors())


def test_another_model_is_refused(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", splitting="qwen2")
    with pytest.raises(ModelError, match="qwen2"):
        convert_llama((tmp_path / "tiny.gguf").read_bytes(), tmp_path, print)


def test_damaged_files_are_refused(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    for length in [*range(0, 2000, 7), len(data) // 2, len(data) - 1]:
        with pytest.raises(ModelError):
            dict(GGUF(data[:length]).tensors())
    with pytest.raises(ModelError, match="not a GGUF"):
        GGUF(b"GGML" + data[4:])


@pytest.fixture(scope="module")
def smollm2(default_model_path):
    return AutoTokenizer.from_pretrained(default_model_path)


@pytest.mark.real
def test_default_tokenizer(smollm2):
    assert len(smollm2) == 49152
    assert (smollm2.unk_token_id, smollm2.bos_token_id, smollm2.eos_token_id, smollm2.pad_token_id) == (0, 1, 2, 2)
    assert smollm2.model_max_length == 8192
    assert smollm2.tokenize("12345") == list("12345")
    assert smollm2.tokenize("in 1874.") == ["in", "Ġ", "1", "8", "7", "4", "."]
    assert smollm2.encode("<|endoftext|><|im_start|><|im_end|><repo_name><empty_output>") == [0, 1, 2, 3, 16]
    assert smollm2.encode("hi") == smollm2.encode("hi", add_special_tokens=False)
    assert smollm2.decode([1, 6004, 2], skip_special_tokens=True) == "hi"


@pytest.mark.real
def test_default_tokenizer_keeps_any_text(smollm2):
    draw = random.Random(0)
    ranges = [(32, 127), (9, 14), (160, 0x2000), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF)]
    texts = ["It's a test , isn't it ?  Don't clean up .\n\n\tTabs", "café naïve e\u0301 10.000,00 €"]
    texts += ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(30)) for _ in range(300)]
    for text in texts:
        assert smollm2.decode(smollm2.encode(text)) == text


@pytest.mark.real
def test_default_chat_template(smollm2):
    text = smollm2.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.real
def test_default_model_answers(default_model_path, smollm2):
    model = AutoModelForCausalLM.from_pretrained(default_model_path)
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 8192
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = smollm2.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert smollm2.decode(output) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real
def test_default_weights_are_frozen(default_model_path):
    """Memories in banks depend on every bit of them; raise the catalogue entry's revision when they must change."""
    with safe_open(f"{default_model_path}/model.safetensors", "np") as file:
        assert len(file.keys()) == 272
        query = file.get_tensor("model.layers.7.self_attn.q_proj.weight")
    assert query.dtype == np.float32
    assert hashlib.sha256(query.tobytes()).hexdigest() == "3a690b62d9c9126919d8af82349a2eb0a731d2299c52cd8e291aeb6ea593333e"
