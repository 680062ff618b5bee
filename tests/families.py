"""Tiny random models of any family that transformers knows, and what becomes of each at attach. ``tests/test_families.py``
holds the tables to it; ``docs/families.md`` is made of them (``tests/families_page.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_FEW_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
_FEW_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_FULL = {"layer_types": ["full_attention"] * 6}
_MIXED = {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"] * 2}

#: Families that are read as their text is: transformers' name, the name in the documentation, what a tiny one is made with.
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("Apertus", {}),
    "arcee": ("Arcee", {}),
    "bitnet": ("BitNet", {}),
    "dots1": ("dots1 (experts)", _FEW_ROUTED | {"n_shared_experts": 1}),
    "flex_olmo": ("FlexOlmo (experts)", _FEW_EXPERTS),
    "gemma": ("Gemma", {}),
    "gemma3_text": ("Gemma 3, where more than half of the layers see everything", {"query_pre_attn_scalar": 16} | _MIXED),
    "glm4_moe": ("GLM-4-MoE (experts)", _FEW_ROUTED),
    "gpt_neox": ("GPT-NeoX, Pythia", {}),
    "granite": ("Granite", {}),
    "granitemoe": ("Granite MoE (experts)", _FEW_LOCAL),
    "jetmoe": ("JetMoe (experts)", {}),
    "lfm2": ("LFM2, without convolutions", {}),
    "llama": ("Llama, SmolLM2", {}),
    "ministral3": ("Ministral 3", {}),
    "mistral": ("Mistral, without a window", {"sliding_window": None}),
    "mixtral": ("Mixtral (experts)", _FEW_LOCAL),
    "olmo": ("OLMo", {}),
    "olmo2": ("OLMo 2", {}),
    "olmoe": ("OLMoE (experts)", _FEW_EXPERTS),
    "persimmon": ("Persimmon", {}),
    "phi": ("Phi", {}),
    "phi3": ("Phi-3", {}),
    "phimoe": ("Phi-MoE (experts)", _FEW_LOCAL),
    "qwen2": ("Qwen2, Qwen2.5", {}),
    "qwen2_moe": ("Qwen2-MoE (experts)", _FEW_EXPERTS | {"shared_expert_intermediate_size": 24}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3-MoE (experts)", _FEW_EXPERTS),
    "seed_oss": ("Seed-OSS", {}),
    "smollm3": ("SmolLM3, with layers that do not rotate", {"no_rope_layers": [0, 1, 1, 0, 1, 0]}),
    "starcoder2": ("StarCoder2", {"sliding_window": None}),
}

#: Reasons why a family is refused: words of the error, and what the documentation says.
WINDOWS, NEIGHBOURS, OWN, PLAIN, OTHER, POSITIONS, STATES, SHAPES = range(8)
REASONS: dict[int, tuple[str, str]] = {
    WINDOWS: ("attend within a window", "most layers attend within a window, and hold no memories"),
    NEIGHBOURS: (
        "by another convention than Llama's",
        "keys are rotated by another convention, so that they could not be moved",
    ),
    OWN: ("does not read from memories what it reads", "attention of its own: the proof at attach finds other logits"),
    PLAIN: ("does not ask the attention interface", "its attention is not asked through the interface of transformers"),
    OTHER: ("softcap|s_aux", "capped logits or sinks"),
    POSITIONS: ("no rotary position embedding", "no rotary position embedding"),
    STATES: ("keep no keys and values", "layers with a state instead of keys and values"),
    SHAPES: ("cannot read 1 token", "keys of two parts (multi-head latent attention)"),
}

#: Families that are refused: the name in the documentation, what a tiny one is made with, and why.
REFUSED: dict[str, tuple[str, dict[str, Any], int]] = {
    "afmoe": ("AFMoE", _FEW_EXPERTS, WINDOWS),
    "bloom": ("BLOOM", {}, POSITIONS),
    "codegen": ("CodeGen", {}, POSITIONS),
    "cohere": ("Cohere", {}, NEIGHBOURS),
    "cohere2": ("Cohere 2", {}, WINDOWS),
    "cwm": ("CWM", {}, WINDOWS),
    "deepseek_v3": ("DeepSeek V3", _FEW_ROUTED, SHAPES),
    "diffllama": ("DiffLlama", {}, OWN),
    "doge": ("Doge", {}, OWN),
    "ernie4_5": ("ERNIE 4.5", {}, NEIGHBOURS),
    "exaone4": ("EXAONE 4", {"sliding_window": 32}, WINDOWS),
    "falcon_h1": ("Falcon-H1", {}, STATES),
    "gemma2": ("Gemma 2", {"query_pre_attn_scalar": 16} | _FULL, OTHER),
    "gemma3_text": ("Gemma 3, as it is", {"query_pre_attn_scalar": 16}, WINDOWS),
    "gemma4_text": ("Gemma 4", {}, WINDOWS),
    "glm": ("GLM", {}, NEIGHBOURS),
    "glm4": ("GLM-4", {}, NEIGHBOURS),
    "gpt2": ("GPT-2", {}, POSITIONS),
    "gpt_oss": ("GPT-OSS", _FEW_LOCAL | _FULL, OTHER),
    "gptj": ("GPT-J", {}, POSITIONS),
    "helium": ("Helium", {}, NEIGHBOURS),
    "hunyuan_v1_dense": ("HunYuan", {}, NEIGHBOURS),
    "jamba": ("Jamba", {"num_experts": 2, "num_experts_per_tok": 1}, STATES),
    "llama4_text": ("Llama 4", _FEW_LOCAL | {"intermediate_size_mlp": 32}, WINDOWS),
    "minimax": ("MiniMax", _FEW_LOCAL, STATES),
    "ministral": ("Ministral", {}, WINDOWS),
    "mistral": ("Mistral, with a window", {}, WINDOWS),
    "mpt": ("MPT", {}, POSITIONS),
    "nanochat": ("NanoChat", {}, NEIGHBOURS),
    "nemotron": ("Nemotron", {}, PLAIN),
    "olmo3": ("OLMo 3", {}, WINDOWS),
    "opt": ("OPT", {}, POSITIONS),
    "qwen3_next": ("Qwen3-Next", _FEW_EXPERTS | {"shared_expert_intermediate_size": 24}, STATES),
    "stablelm": ("StableLM", {}, PLAIN),
}

#: Real weights, and what was run with them.
REAL: dict[str, tuple[str, str]] = {
    "llama": (
        "SmolLM2-135M-Instruct (Q4_1, de-quantised), with and without the adapters",
        "everything: tests marked `real`, [check](usage.md#the-check), calibration, training, all figures of these pages",
    ),
    "qwen2": (
        "Qwen2.5-Coder-0.5B-Instruct (Q4_K_M, de-quantised), without an adapter",
        "[check](check-example.html), calibration of selector and codec, question sets ([log](../research/log.md))",
    ),
}


def family(kind: str, changes: dict[str, Any]) -> PreTrainedModel:
    tokenizer = tiny_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_size": 96,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings | changes), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name and parameter.ndim == 1 else 0.3 * noise)
    return model.eval()
