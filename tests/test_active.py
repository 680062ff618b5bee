"""The fingerprint covers whatever acts: config values, adapters, quantised weights, attributes, hooks; and a model that
changes under its Memory3 is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
import torch
from families import family
from ram_bank import RamBank
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from memory3.attention.attach import Seen, attached
from memory3.config import MemoryConfig
from memory3.errors import ModelError
from memory3.llm import Memory3
from memory3.models.active import HARMLESS, active_settings, changed_since_built
from memory3.models.fingerprint import ACTING, fingerprint
from memory3.models.frame import Frame
from memory3.models.geometry import ModelGeometry
from memory3.types import Document

SETTINGS = MemoryConfig(reference_length=31, dtype="float32")


def mark(model: PreTrainedModel) -> str:
    tokenizer = tiny_tokenizer()
    return fingerprint(model, ModelGeometry(model), tokenizer, Frame.of(tokenizer, SETTINGS), SETTINGS)


def keys(model: PreTrainedModel) -> torch.Tensor:
    """Of the last layer, for some tokens."""
    seen = Seen()
    with attached(model), torch.no_grad():
        model.base_model(torch.arange(3, 20)[None], memory3=seen, use_cache=False)
    return seen.layers[max(seen.layers)][1]


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_models_have_the_fingerprint_they_always_had(name: str) -> None:
    """Nothing of theirs is outside of what older releases hashed, so that their banks, codebooks and selectors are found."""
    model = tiny_model(name)
    shape = ModelGeometry(model)
    assert active_settings(model.config, ACTING, windowed=False) == {}
    assert changed_since_built(model, shape, 4) == {}
    model.config.is_llama_config = True  # a leftover of a hub's file
    assert active_settings(model.config, ACTING, windowed=False) == {}


def test_a_fingerprint_of_an_older_release_is_found() -> None:
    """Written down before config values and modules were looked at."""
    assert mark(tiny_model("llama")) == "ec981632d079d1141ae53a0b828ad2b5"
    assert mark(tiny_model("qwen3")) == "5c047542835f5fa1b3262f170ea30e89"


VALUES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("granite", {"embedding_multiplier": 3.0}, {"embedding_multiplier": 2.0}),
    ("granite", {"residual_multiplier": 0.3}, {"residual_multiplier": 0.4}),
    ("granite", {"attention_multiplier": 0.9}, {"attention_multiplier": 0.7}),
    ("olmo", {"clip_qkv": 0.3}, {"clip_qkv": None}),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 0, 1, 1]}, {"no_rope_layers": [1, 1, 1, 1, 0, 1]}),
    ("phi", {"layer_norm_eps": 1e-5}, {"layer_norm_eps": 0.3}),
    ("gemma", {"hidden_activation": "gelu_pytorch_tanh"}, {"hidden_activation": "silu", "hidden_act": "silu"}),
    (
        "gemma3_text",
        {"query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 6},
        {"query_pre_attn_scalar": 5, "layer_types": ["full_attention"] * 6},
    ),
    (
        "qwen3_moe",
        {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
        {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 1},
    ),
]


@pytest.mark.parametrize(("kind", "one", "other"), VALUES, ids=[f"{kind} {next(iter(one))}" for kind, one, _ in VALUES])
def test_a_config_value_that_acts_is_covered(kind: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = family(kind, one), family(kind, other)
    assert mark(a) == mark(family(kind, one))
    assert mark(a) != mark(b)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_harmless_value_changes_no_key(name: str) -> None:
    """What is left out of the fingerprint is without effect: each value is changed as far as the model can still be built."""
    odd: dict[str, Any] = {
        "max_position_embeddings": 400,
        "attention_dropout": 0.4,
        "pretraining_tp": 2,
        "initializer_range": 0.5,
        "chunk_size_feed_forward": 2,
        "pad_token_id": 5,
        "bos_token_id": 6,
        "eos_token_id": 7,
        "use_cache": False,
        "return_dict": True,
        "logits_scaling": 5.0,
        "_name_or_path": "elsewhere",
        "architectures": ["Other"],
    }
    if name not in odd:
        pytest.skip("shows in the weights, or is of another kind of model")
    kind = "granite" if name == "logits_scaling" else "llama"
    plain, changed = family(kind, {}), family(kind, {})
    torch.testing.assert_close(keys(family(kind, {name: odd[name]})), keys(plain), rtol=0, atol=0)
    setattr(changed.config, name, odd[name])
    assert mark(changed) == mark(plain)


def _scaled(model: Any) -> None:
    model.model.rotary_emb.attention_scaling = 1.5


def _eps(model: Any) -> None:
    model.model.layers[3].input_layernorm.variance_epsilon = 0.5


def _hook(model: Any) -> None:
    model.model.layers[2].register_forward_hook(lambda module, args, output: output * 1.1)


def _activation(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()


def _softmax_scale(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 0.9


@pytest.mark.parametrize("change", [_scaled, _eps, _hook, _activation, _softmax_scale])
def test_what_the_config_does_not_say_is_covered(change: Callable[[Any], None]) -> None:
    model, plain = tiny_model(), tiny_model()
    change(model)
    assert not torch.equal(keys(model), keys(plain))
    assert mark(model) != mark(plain)


def with_adapters(*names: str) -> Any:
    peft = pytest.importorskip("peft")
    model: Any = tiny_model()
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model.add_adapter(
            peft.LoraConfig(r=3, target_modules=["k_proj", "v_proj"], init_lora_weights=False), adapter_name=name
        )
    return model.eval()


def test_the_active_adapter_is_covered_and_noticed() -> None:
    model = with_adapters("red", "blue")
    marks = {}
    for what, switch in {
        "red": lambda: model.set_adapter("red"),
        "blue": lambda: model.set_adapter("blue"),
        "both": lambda: model.set_adapter(["red", "blue"]),
        "none": lambda: model.disable_adapters(),
    }.items():
        switch()
        marks[what] = mark(model)
    assert len(set(marks.values())) == 4
    model.enable_adapters()
    model.set_adapter("red")
    assert mark(model) == marks["red"]
    m3 = Memory3(model, tiny_tokenizer(), SETTINGS, name="tiny")
    bank: Any = RamBank(m3, ["The bridge was built in 1874."])
    model.set_adapter("blue")
    for use in (
        lambda: m3.generate("When?", bank, max_new_tokens=1),
        lambda: m3.recall(bank),
        lambda: m3.encode(list(bank.all.values())),
        lambda: m3.log_likelihood(["When?"], ["1874"], bank),
    ):
        with pytest.raises(ModelError, match="has changed"):
            use()
    model.set_adapter("red")
    m3.generate("When?", bank, max_new_tokens=1)
    model.base_model.layers[0].self_attn.k_proj.scaling["red"] *= 2
    assert mark(model) != marks["red"]
    with pytest.raises(ModelError, match="has changed"):
        m3.recall(bank)


def test_packed_weights_are_covered() -> None:
    def packed(factor: float) -> PreTrainedModel:
        model = tiny_model("qwen3")
        with torch.no_grad():
            model.base_model.layers[1].mlp.up_proj.weight.mul_(factor)
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    assert mark(packed(1.0)) == mark(packed(1.0))
    assert mark(packed(1.0)) != mark(packed(-1.3))


def test_dropout_is_refused_and_training_mode_without_it_is_not() -> None:
    noisy = tiny_model(attention_dropout=0.3)
    m3 = Memory3(noisy, tiny_tokenizer(), SETTINGS, name="tiny")
    bank: Any = RamBank(m3, ["The bridge was built in 1874."])
    noisy.train()
    for use in (lambda: m3.recall(bank), lambda: Memory3(noisy, tiny_tokenizer(), SETTINGS, name="tiny")):
        with pytest.raises(ModelError, match=r"model\.eval\(\)"):
            use()
    calm = tiny_model().train()
    m3 = Memory3(calm, tiny_tokenizer(), SETTINGS, name="tiny")
    bank = RamBank(m3, ["The bridge was built in 1874."])
    calm.eval()
    m3.generate("When?", bank, max_new_tokens=1)


def test_weights_written_in_place_are_noticed() -> None:
    model: Any = tiny_model()
    m3 = Memory3(model, tiny_tokenizer(), SETTINGS, name="tiny")
    bank: Any = RamBank(m3, ["The bridge was built in 1874."])
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(1.0)  # written, and the same
    m3.generate("When?", bank, max_new_tokens=1)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(1.1)
    with pytest.raises(ModelError, match="has changed"):
        m3.encode(list(bank.all.values()))


# ---- changed after Memory3 was made of it --------------------------------------------------------------------------------


def _weight(m3):
    return m3.model.base_model.layers[1].self_attn.k_proj.weight


@pytest.mark.parametrize(
    "change",
    [
        lambda m3: _weight(m3).data.mul_(3),
        lambda m3: setattr(_weight(m3), "data", torch.zeros_like(_weight(m3))),
        lambda m3: _weight(m3).detach().numpy().__imul__(3),
        lambda m3: setattr(m3.model.base_model.layers[0].self_attn, "scaling", 0.01),
        lambda m3: setattr(m3.model.base_model.layers[0].input_layernorm, "variance_epsilon", 1.0),
        lambda m3: setattr(m3.model.base_model.rotary_emb, "attention_scaling", 1.7),
        lambda m3: m3.model.base_model.layers[0].register_forward_hook(lambda *_: None),
        lambda m3: setattr(m3.tokenizer.backend_tokenizer, "normalizer", tokenizers.normalizers.Lowercase()),
        lambda m3: m3.tokenizer.add_tokens(["river"]),
    ],
    ids=["data", "data exchanged", "numpy", "scaling", "epsilon", "rope", "hook", "normaliser", "tokens"],
)
def test_what_is_changed_past_torch_is_noticed(change):
    m3 = Memory3(tiny_model(), tiny_tokenizer(), MemoryConfig(reference_length=31), name="tiny")
    references = list(m3.split(Document("d", "The bridge was built in 1874.")))
    m3.encode(references)
    change(m3)
    with pytest.raises(ModelError, match="has changed"):
        m3.encode(references)


def test_hooks_of_one_factory_are_told_apart_by_what_they_were_made_with():
    def times(factor):
        return lambda module, inputs, output: output * factor

    prints = set()
    for factor in (None, 2.0, 5.0, 2.0, torch.full((24,), 3.0), torch.full((24,), 7.0)):
        model = tiny_model()
        if factor is not None:
            model.base_model.layers[0].mlp.register_forward_hook(times(factor))
        config = MemoryConfig(reference_length=31)
        shape, tokenizer = ModelGeometry(model), tiny_tokenizer()
        prints.add(fingerprint(model, shape, tokenizer, Frame.of(tokenizer, config), config))
    assert len(prints) == 5


def test_nothing_is_written_under_autocast():
    m3 = Memory3(tiny_model(), tiny_tokenizer(), MemoryConfig(reference_length=31), name="tiny")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ModelError, match="autocast"):
        m3.encode(list(m3.split(Document("d", "The bridge was built in 1874."))))
