"""Fingerprint: a hash of everything that can change a memory, so that a bank refuses the memories of another model.

Covered: every weight from the embeddings to the last memory layer, RoPE angles, the attention's config values, tokenizer rules, the beginning and
the repetition cue, the writing settings, and what a learned selector learned. Not covered: the layers above, the language head, reading settings.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from memory3.config import MemoryConfig
from memory3.model.attach import ModelShape
from memory3.model.beginning import Frame

__all__ = ["fingerprint", "whole_model"]

#: Config values that act on keys and values without being a weight.
ACTING = (
    "model_type",
    "rms_norm_eps",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
)


def whole_model(model: PreTrainedModel, shape: ModelShape, tokenizer: Any, frame: Frame, config: MemoryConfig) -> str:
    """As `fingerprint`, for what depends on the model, the beginning and the length of references, but on no choice of layers, pairs or numbers."""
    plain = config.replace(layers="all", budget="all", selector="first", dtype="float32")
    return fingerprint(model, shape, tokenizer, frame, plain)


def fingerprint(
    model: PreTrainedModel, shape: ModelShape, tokenizer: Any, frame: Frame, config: MemoryConfig, learned: str = ""
) -> str:
    """32 hex digits. Equal for the same model loaded twice, different when a single weight below the last memory layer differs.

    ``learned``: fingerprint of what the selector learned, where it learned something.
    """
    digest = xxhash.xxh3_128()
    last = max(shape.memory_layers(config))
    for name, tensor in sorted((*shape.base.named_parameters(), *shape.base.named_buffers())):
        layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
        if (layer and int(layer[1]) > last) or (not layer and name.startswith("norm.")):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().to("cpu").contiguous().view(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    text_config = model.config.get_text_config()
    rules = {
        "config": {name: getattr(text_config, name, None) for name in ACTING},
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "beginning": frame.beginning,
        "repeat": frame.repeat,
        "writing": {name: config.to_dict()[name] for name in MemoryConfig.WRITING},
    }
    if learned:
        rules["learned"] = learned
    digest.update(json.dumps(rules, sort_keys=True, default=str).encode())
    return digest.hexdigest()
