"""Turns a GGUF file of a SmolLM-like Llama into a folder that transformers loads in a second.

transformers reads GGUF files too, but takes half a minute on every load and loses how SmolLM splits digits. The weights
written here are the float32 values that it computes; the tokenizer is the one SmolLM was trained with. Knows nothing of
downloads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from memory3.errors import ModelError
from memory3.models.gguf import GGUF

__all__ = ["convert_llama"]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # transformers' word to GGUF's
_CONTROL_TOKEN = 3  # value of tokenizer.ggml.token_type


def convert_llama(data: bytes, folder: Path, report: Callable[[int, int], None]) -> None:
    """Write config, weights (float32), tokenizer and chat template of a GGUF file into ``folder``.

    Args:
        data: the file's bytes.
        folder: an existing empty folder.
        report: called with the tensors done and their number.
    """
    file = GGUF(data)
    meta = file.metadata
    kind = (meta.get("general.architecture"), meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre"))
    if kind != ("llama", "gpt2", "smollm"):
        raise ModelError(f"cannot convert a GGUF file of architecture, tokenizer and splitting {kind}: not a SmolLM")
    try:
        weights = _weights(file, report)
        config = _config(meta, tied="lm_head.weight" not in weights)
        tokenizer = _tokenizer(meta)
    except KeyError as error:
        raise ModelError(f"the GGUF file has no or an unknown entry {error}") from error
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(**_token_ids(meta)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _weights(file: GGUF, report: Callable[[int, int], None]) -> dict[str, np.ndarray]:
    heads, kv_heads = (file.metadata[f"llama.attention.head_count{suffix}"] for suffix in ("", "_kv"))
    weights = {}
    for name, values in file.tensors():
        if ".attn_q." in name:
            values = _half_split(values, heads)
        elif ".attn_k." in name:
            values = _half_split(values, kv_heads)
        weights[_transformers_name(name)] = np.ascontiguousarray(values)
        report(len(weights), len(file))
    return weights


def _transformers_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    *block, module, kind = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{_NAMES[module]}.{kind}"


def _half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of a head's rows: it rotates neighbours (0, 1), transformers rotates halves (0, d/2)."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _token_ids(meta: dict[str, Any]) -> dict[str, Any]:
    """What config and generation config both say: ``bos_token_id`` and so on."""
    return {f"{to}_token_id": meta[f"tokenizer.ggml.{of}_token_id"] for to, of in _ROLES.items() if to != "unk"}


def _config(meta: dict[str, Any], tied: bool) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        head_dim=meta["llama.rope.dimension_count"],
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=_shortest(meta["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": _shortest(meta["llama.rope.freq_base"])},
        tie_word_embeddings=tied,
        **_token_ids(meta),
    )


def _shortest(value: float) -> float:
    """The shortest decimal of a float32, as the original config had it: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokenizer(meta: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE after GPT-2's splitting, every digit a token of its own; nothing is added in front."""
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
    special = [AddedToken(token, normalized=False, special=True) for token, kind in kinds if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=meta["tokenizer.chat_template"],
        **{f"{to}_token": tokens[meta[f"tokenizer.ggml.{of}_token_id"]] for to, of in _ROLES.items()},
    )
