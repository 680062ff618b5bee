"""Fingerprint: a hash of everything that can change a memory, so that a bank refuses the memories of another model.

Covered: every weight from the embeddings to the last memory layer, RoPE angles, all config values but those shown to be
    harmless, what is active in
the modules and not said by the config (adapters, quantised weights, hooks: `memory3.models.active`), tokenizer rules, the
prefix and the repetition cue, the writing settings, and what a learned selector learned. Not covered: the layers above,
the language head, reading settings.

Where config and modules add nothing to the weights and `ACTING`, which is so for a plain Llama, Mistral or Qwen, the
fingerprint is that of releases which looked at these alone.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from memory3.config import DTYPES, MemoryConfig
from memory3.models.active import active_settings, changed_since_built, feed, layers_up_to
from memory3.models.frame import Frame
from memory3.models.geometry import ModelGeometry
from memory3.models.sizes import config_value

__all__ = ["fingerprint", "other_formats", "whole_model"]

#: Config values that act on keys and values without being a weight, and are always hashed.
ACTING = (
    "model_type",
    "rms_norm_eps",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
)


def whole_model(
    model: PreTrainedModel,
    shape: ModelGeometry,
    tokenizer: Any,
    frame: Frame,
    config: MemoryConfig,
    *,
    rounded: torch.dtype | None = None,
) -> str:
    """32 hex digits for the model, the prefix and the length of references.

    No choice of layers, pairs or numbers changes them.

    Args:
        model: the model in memory.
        shape: its geometry.
        tokenizer: its tokenizer.
        frame: the fixed tokens around references and questions.
        config: the settings of memories.
        rounded: see `fingerprint`.
    """
    plain = config.replace(layers="all", budget="all", selector="first", biases=False, dtype="float32")
    return fingerprint(model, shape, tokenizer, frame, plain, rounded=rounded)


def other_formats(model: PreTrainedModel) -> tuple[torch.dtype, ...]:
    """Number formats in which the same weights may be loaded as well: all but their own, where every weight has one of
    `memory3.config.DTYPES`; of a model that mixes them, or is quantised, none.

    Args:
        model: the model in memory.
    """
    own = {weight.dtype for weight in model.parameters()}
    known = [getattr(torch, name) for name in DTYPES]
    mixed = len(own) != 1 or not own <= set(known) or getattr(model.config, "quantization_config", None) is not None
    return () if mixed else tuple(dtype for dtype in known if dtype not in own)


def fingerprint(
    model: PreTrainedModel,
    shape: ModelGeometry,
    tokenizer: Any,
    frame: Frame,
    config: MemoryConfig,
    learned: str = "",
    *,
    rounded: torch.dtype | None = None,
) -> str:
    """32 hex digits. Equal for the same model loaded twice, different when a single weight below the last memory layer
    differs.

    Args:
        model: the model in memory.
        shape: its geometry.
        tokenizer: its tokenizer.
        frame: the fixed tokens around references and questions.
        config: the settings of memories.
        learned: fingerprint of what the selector learned; empty where it learned nothing.
        rounded: number format of weights; then the fingerprint is that of this model loaded in it. None: as they are.

    Raises:
        UnsupportedModel: weights are kept in a way whose bytes cannot be read.
    """
    digest = xxhash.xxh3_128()
    settings = config.to_dict()
    last = max(shape.memory_layers(config))
    weights = dict(shape.base.named_parameters())
    for name, tensor in layers_up_to(sorted({**weights, **dict(shape.base.named_buffers())}.items()), last):
        if rounded is not None and name in weights:  # buffers, such as RoPE's angles, are not rounded at loading
            tensor = tensor.detach().to(rounded)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        feed(digest, tensor)
    text_config = model.config.get_text_config()
    windowed = len(shape.full_layers) < shape.num_layers
    more = {
        "learned": learned,
        "acting": active_settings(text_config, ACTING, windowed=windowed),
        "unsaid": changed_since_built(model, shape, last),
    }
    rules = {
        "config": {name: config_value(text_config, name) for name in ACTING},
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "beginning": frame.prefix,
        "repeat": frame.repeat,
        "writing": {name: settings[name] for name in MemoryConfig.WRITING if name in settings},
    }
    rules |= {name: found for name, found in more.items() if found}
    digest.update(json.dumps(rules, sort_keys=True, default=str).encode())
    return digest.hexdigest()
