"""Models from scratch: random weights in a Llama shape.

There are no new trainable parameters anywhere (arXiv 2407.01178, section 3.4).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memory3.errors import ConfigError
from memory3.models.load import load_tokenizer
from memory3.models.sizes import SHAPES

__all__ = ["from_scratch"]

#: Positions the model is made for: sequences of 2048 behind a prefix and 128 positions of memories, with room.
POSITIONS = 4096


def from_scratch(shape: str, tokenizer: str, *, seed: int = 0) -> tuple[Any, Any]:
    """A Llama model of random float32 weights, in training mode, and the tokenizer it shall use.

    Args:
        shape: a name of `memory3.models.sizes.SHAPES`.
        tokenizer: catalogue name, hub id or folder of a model.
        seed: of the weights.

    Raises:
        ConfigError: an unknown shape, or one whose vocabulary is smaller than the tokenizer's.
        ModelError: no such tokenizer.
    """
    if shape not in SHAPES:
        raise ConfigError(f"shape {shape!r} is unknown: use one of {', '.join(SHAPES)}")
    tokens, sizes = load_tokenizer(tokenizer), SHAPES[shape]
    if len(tokens) > sizes.vocabulary:
        raise ConfigError(
            f"the tokenizer of {tokenizer} has {len(tokens)} tokens, the shape {shape} {sizes.vocabulary}: choose "
            "another of them"
        )
    config = LlamaConfig(
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.mlp,
        vocab_size=sizes.vocabulary,
        tie_word_embeddings=sizes.tied,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).float(), tokens
