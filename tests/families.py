"""Tiny random models of any family that transformers knows."""

from __future__ import annotations

from typing import Any

import torch
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


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
