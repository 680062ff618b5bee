"""`ModelSizes`: the sizes of a language model that its costs follow from. Read from a config alone; no weights are loaded
or fetched.

Symbols as in arXiv 2407.01178, appendix A, in brackets: layers (L), heads (H), KV heads (Hkv), head dimension (dh),
hidden width (d), MLP width (W), vocabulary.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from memory3.config import MemoryConfig
from memory3.errors import ConfigError, ModelError, UnsupportedModel

__all__ = ["PAPER_MODEL", "SHAPES", "ModelSizes", "config_value", "sizes_of"]

PAPER_MODEL = "memory3-2.4b"


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a Llama-like model: grouped-query attention, gated MLP of three matrices, no biases worth counting.

    Attributes:
        layers: blocks, L.
        heads: query heads, H.
        kv_heads: Hkv.
        head_dim: dh.
        hidden: width of the residual stream, d.
        mlp: inner width of the gated MLP, W.
        vocabulary: tokens of the language head.
        tied: whether the language head is the embedding matrix.
        windowed: layers whose attention sees a window only; they can hold no memories.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    mlp: int
    vocabulary: int
    tied: bool = True
    windowed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("tied", "windowed") and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"a model with {field.name} {value!r} cannot be: give a whole number from 1")
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} query heads cannot share {self.kv_heads} KV heads equally")

    @property
    def attention_width(self) -> int:
        """H dh, numbers of all query heads of a token; equal to d in the paper's model."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Hkv dh, numbers of all keys of a token in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def attention_weights(self) -> int:
        """Weights of a layer's query, key, value and output matrices; 2 d^2 + 2 d dh Hkv where H dh = d."""
        return 2 * self.hidden * (self.attention_width + self.kv_width)

    @property
    def mlp_weights(self) -> int:
        """Weights of a layer's MLP, 3 d W."""
        return 3 * self.hidden * self.mlp

    @property
    def block_weights(self) -> int:
        """Weights of all layers, norms left out: the non-embedding parameters."""
        return self.layers * (self.attention_weights + self.mlp_weights)

    @property
    def weights(self) -> int:
        """All weights, norms left out."""
        return self.block_weights + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def memory_layers(self, config: MemoryConfig) -> tuple[int, ...]:
        """Indices of the memory layers under a config, ascending.

        Raises:
            UnsupportedModel: layers named one by one that attend within a window.
        """
        chosen = config.memory_layers(self.layers)
        full = tuple(layer for layer in chosen if layer not in self.windowed)
        if full != chosen and (not isinstance(config.layers, str) or not full):
            without = [layer for layer in chosen if layer in self.windowed]
            raise UnsupportedModel(f"layers {without} attend within a window; memory layers need full attention")
        return full


#: Known without a look at any file: the paper's model (section 3.4), that of its ablation (0.92 billion weights in 40
#: blocks of 32 heads of 64; 8 KV heads and an MLP as wide as the model, as in the large one, give that number), three of
#: the same kind for small experiments (the numbers in their names leave out the vocabulary), and the catalogue's.
SHAPES: Mapping[str, ModelSizes] = {
    PAPER_MODEL: ModelSizes(44, 40, 8, 80, 3200, 3200, 60416),
    "memory3-0.92b": ModelSizes(40, 32, 8, 64, 2048, 2048, 60416),
    "memory3-27m": ModelSizes(12, 8, 2, 64, 512, 1024, 49152),
    "memory3-4m": ModelSizes(8, 8, 2, 32, 256, 512, 49152),
    "memory3-2m": ModelSizes(8, 6, 2, 32, 192, 384, 4096),
    "smollm2-135m-instruct": ModelSizes(30, 9, 3, 64, 576, 1536, 49152),
}


def sizes_of(name: str) -> ModelSizes:
    """The shape of a model by name of `SHAPES`, hub id or local folder; an adapter behind a ``+`` changes none. At most a
    config of a few kilobytes is fetched.

    Raises:
        ModelError: no config can be found under this name.
        UnsupportedModel: memories cannot be had of such a model, or its costs are not those of a Llama-like one.
    """
    if "+" in name:
        from memory3.models.adapter import adapter_of  # imports torch, and the known shapes need none

        name = adapter_of(name)[0]
    if name in SHAPES:
        return SHAPES[name]
    if "/" not in name and not Path(name).exists():
        near = next(iter(difflib.get_close_matches(name.lower(), SHAPES, n=1, cutoff=0.4)), None)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ModelError(
            f"the shape of model {name!r} is unknown.{hint} Give one of {', '.join(SHAPES)}, a hub id (owner/name) or a folder"
        )
    return _from_config(name, _read_config(name))


def _read_config(name: str) -> Any:
    """The transformers config of the text model."""
    from memory3.models.load import load_config  # imports transformers, which takes seconds, and the known shapes need none

    try:
        return load_config(name).get_text_config()
    except ModelError as error:
        raise ModelError(f"the shape of model {name!r} is unknown: {error}") from error


def config_value(config: Any, name: str, otherwise: Any = None) -> Any:
    """A value of a model's config; ``otherwise`` where it has none, or one for each kind of layer and so none for all
    (Gemma 4).

    Args:
        config: of transformers.
        name: of the value.
        otherwise: what to give where it has none.
    """
    try:
        return getattr(config, name, otherwise)
    except RuntimeError:
        return otherwise


def _from_config(name: str, config: Any) -> ModelSizes:
    def number(*names: str) -> int | None:
        return next((value for key in names if isinstance(value := config_value(config, key), int) and value), None)

    if number("num_experts", "num_local_experts", "n_routed_experts"):
        raise UnsupportedModel(f"{name} is a mixture of experts: its costs per token are not those the planner knows")
    layers, heads, hidden = number("num_hidden_layers"), number("num_attention_heads"), number("hidden_size")
    mlp, vocabulary = number("intermediate_size"), number("vocab_size")
    if not (layers and heads and hidden and mlp and vocabulary):
        raise UnsupportedModel(f"{name} ({config.model_type}) is not Llama-like: its config lacks a size the planner needs")
    if not config_value(config, "rope_parameters"):
        raise UnsupportedModel(f"{name} ({config.model_type}) has no rotary position embedding: memories cannot be placed")
    kinds = config_value(config, "layer_types")
    if kinds is None:
        windowed = config_value(config, "sliding_window") and config_value(config, "use_sliding_window", True)
        kinds = ["sliding_attention" if windowed else "full_attention"] * layers
    without = tuple(layer for layer, kind in enumerate(kinds) if kind != "full_attention")
    if 2 * len(without) >= layers:
        how_many = "all" if len(without) == layers else f"{len(without)} of"
        raise UnsupportedModel(
            f"{name}: {how_many} {layers} layers attend within a window; memories need full attention in most layers"
        )
    return ModelSizes(
        layers=layers,
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim") or hidden // heads,
        hidden=hidden,
        mlp=mlp,
        vocabulary=vocabulary,
        tied=bool(config_value(config, "tie_word_embeddings")),
        windowed=without,
    )
