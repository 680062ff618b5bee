"""Tiny random models and tokenizers, so that most tests need no download and take milliseconds.

All sizes differ (layers 5, KV heads 2, query heads 6, group 3, head 14, width 24, inner 22), so that mixing up two axes
fails. Weights are drawn wide enough for attention to be far from uniform, norms and biases are random too, so that leaving
one out fails.

    from tiny import tiny_model, tiny_tokenizer
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
FAMILIES = tuple(CONFIGS)

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TRAINING_TEXT = [
    "The river rises in the mountains and reaches the sea near the old town.",
    "Who built the bridge, and when? The bridge was built in 1874 by the engineer of the county.",
    "Memories are keys and values; the reader reads them while the answer is being written.",
    "assistant user system\nReference: the passages\n\nQuestion: Answer:",
    "Füße, naïve café, 東京, emoji 🙂 and tabs\tand  double  spaces.",
]


def tiny_tokenizer(*, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 320 tokens: any text survives encoding and decoding.

    Args:
        adds_bos: whether ``tokenizer(text)`` writes ``<s>`` first, as Llama's does and SmolLM2's and Qwen's do not.
    """
    tokenizer = Tokenizer.from_str(_trained())
    if adds_bos:
        bos = SPECIAL_TOKENS["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **SPECIAL_TOKENS)


def tiny_chat_tokenizer() -> PreTrainedTokenizerFast:
    """The same vocabulary with a chat template, which writes the special tokens itself."""
    tokenizer = tiny_tokenizer(adds_bos=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(family: str = "llama", *, mha: bool = False, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family in float32, ready for inference; the same arguments give the same weights.

    Args:
        family: one of `FAMILIES`.
        mha: as many KV heads as query heads instead of groups of three.
        changes: settings of the transformers config to replace.
    """
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 6 if mha else 2,
        "head_dim": 14,
        "hidden_size": 24,
        "intermediate_size": 22,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": family == "qwen3",
    }
    if family == "mistral":
        settings["sliding_window"] = None
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**(settings | changes)), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.3 * noise)
    return model.eval()


def save_tiny(folder: Path, family: str = "llama", *, chat: bool = False, seed: int = 0) -> str:
    """Write a tiny model and its tokenizer as ``save_pretrained`` does; return the folder, for what takes a path."""
    tiny_model(family, seed=seed).save_pretrained(folder)
    (tiny_chat_tokenizer() if chat else tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


@functools.cache
def _trained() -> str:
    """The tokenizer as JSON text, trained once per process: the object itself can be changed by its users."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer.to_str()
