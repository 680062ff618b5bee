"""Attach to a transformers model: see queries, keys and values of every layer, and answer for its attention.

The attention of a model is switched to `ATTENTION` for the length of a ``with attached(model)`` block and restored after it. Inside, a forward pass that is given
``memory3=reader`` asks the reader for the attention output of each layer; one that is not runs as it always did.

Knows the model's shape and nothing of memories, banks or generation. Traps it is built around (transformers 5.x): an attention name without a
mask function silently loses its padding mask; a stock kernel given more keys than the mask covers drops them silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from memory3.config import MemoryConfig
from memory3.errors import UnsupportedModel
from memory3.maths.attend import masked
from memory3.maths.rotary import rotate
from memory3.model.exclusive import exclusive

__all__ = ["ATTENTION", "ModelShape", "Reader", "StopForward", "attached"]

#: The name our attention goes by in transformers' registry.
ATTENTION = "memory3"

#: Kinds of RoPE whose angles do not depend on the length of the text, so that keys can be moved.
STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")


class Reader(Protocol):
    """Answers for the attention of a forward pass."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        causal: bool,
        scale: float,
    ) -> torch.Tensor | None:
        """The attention output ``[B, A, T, d]``, or None to leave this layer to the stock kernel.

        ``query`` is ``[B, A, T, d]``, ``key`` and ``value`` ``[B, H, S, d]``, all after RoPE; ``bias`` is the additive mask
        ``[B, 1, T, S]`` or None, in which case ``causal`` says whether query t sees keys 0..t alone.
        """


class StopForward(Exception):
    """Raised by a reader when the rest of the forward pass is not needed."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    memory3: Reader | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if memory3 is not None:
        for name in ("softcap", "s_aux"):
            if kwargs.get(name) is not None:
                raise UnsupportedModel(
                    f"{type(module).__name__} changes attention logits ({name}); memories cannot be merged into it"
                )
        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # RoPE leaves float32, and a kernel called by its own name is not cast for
            query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        causal = attention_mask is None and query.shape[2] > 1
        layer: int = module.layer_idx  # type: ignore[assignment]
        out = memory3.attend(layer, query, key, value, attention_mask, causal=causal, scale=scale)
        if out is not None:
            return out.transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def _mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """The stock mask, made additive once per forward pass; None where a plain causal mask needs no tensor."""
    allowed = sdpa_mask(*args, **kwargs)
    if allowed is None:
        return None
    # Padding sees everything: of a row that sees nothing, kernels make what is not a number, and the gradient of all rows with it (cuDNN's does).
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, masked(dtype))


@contextmanager
def attached(model: PreTrainedModel) -> Iterator[None]:
    """Switch the model to our attention, and back to its own on the way out. Other threads wait. May be nested."""
    with exclusive(model.base_model):
        previous = model.config._attn_implementation
        if previous == ATTENTION:
            yield
            return
        # The registry is one per process; an entry that no model names changes nothing.
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, _mask)
        model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            model.set_attn_implementation(previous)


class ModelShape:
    """What memory3 must know of a causal language model, checked when made.

    Attributes:
        base: the transformer without its language head.
        num_layers, heads, kv_heads, head_dim: of the attention; ``heads`` of queries.
        full_layers: layers whose attention sees the whole context.
        max_positions: positions the model was made for.
        inv_freq: ``[r/2]`` RoPE angles per position.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.name = type(model).__name__
        self.base = model.base_model
        self.num_layers: int = config.num_hidden_layers
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.max_positions: int = getattr(config, "max_position_embeddings", 0) or 1 << 30
        self.full_layers = self._full_attention_layers(config)
        rope = getattr(config, "rope_parameters", None) or {}
        kind = rope.get("rope_type", "default")
        rotary = getattr(self.base, "rotary_emb", None)
        if rotary is None or not hasattr(rotary, "inv_freq"):
            raise UnsupportedModel(
                f"{self.name} has no rotary position embedding of one kind for all layers; memories cannot be placed"
            )
        if kind not in STATIC_ROPE:
            raise UnsupportedModel(
                f"{self.name} uses RoPE of type {kind!r}, whose angles change with the length of the text; stored keys would be "
                f"wrong. Supported: {', '.join(STATIC_ROPE)}. Set config.rope_parameters accordingly."
            )
        self.inv_freq: torch.Tensor = rotary.inv_freq
        self._check_rotation(model)

    def _full_attention_layers(self, config: Any) -> tuple[int, ...]:
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
            kinds = ["sliding_attention" if window else "full_attention"] * self.num_layers
        foreign = sorted({k for k in kinds if k not in ("full_attention", "sliding_attention", "chunked_attention")})
        if foreign:
            where = [i for i, k in enumerate(kinds) if k in foreign]
            raise UnsupportedModel(
                f"{self.name}: layers {where} are {', '.join(foreign)}, which keep no keys and values that a beginning could be read from"
            )
        full = tuple(i for i, k in enumerate(kinds) if k == "full_attention")
        if not full:
            raise UnsupportedModel(
                f"{self.name}: all {self.num_layers} layers attend within a window "
                f"(sliding_window={getattr(config, 'sliding_window', None)}); memories need full attention. "
                "If your texts are shorter than the window, load the model with config.sliding_window=None."
            )
        return full

    def memory_layers(self, config: MemoryConfig) -> tuple[int, ...]:
        """The memory layers of this model: what the config says, within the layers of full attention.

        Raises:
            UnsupportedModel: layers named one by one that attend within a window.
        """
        chosen = config.memory_layers(self.num_layers)
        full = tuple(i for i in chosen if i in self.full_layers)
        if full == chosen:
            return chosen
        without = [i for i in chosen if i not in self.full_layers]
        if not isinstance(config.layers, str) or not full:
            raise UnsupportedModel(
                f"{self.name}: layers {without} attend within a window; memory layers must be among {list(self.full_layers)}"
            )
        return full

    def _check_rotation(self, model: PreTrainedModel) -> None:
        """Does turning a key by hand give what the model computes at the other position? Other conventions of RoPE fail here."""
        seen: list[torch.Tensor] = []

        class Look:
            def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | None:
                seen.append(key)
                raise StopForward

        token = torch.tensor([[1 % model.config.get_text_config().vocab_size]], device=self.inv_freq.device)
        with attached(model), torch.no_grad():
            for position in (3, 10):
                try:
                    self.base(token, position_ids=torch.full_like(token, position), use_cache=False, memory3=Look())
                except StopForward:
                    continue
                raise UnsupportedModel(f"{self.name} does not ask the attention interface of transformers for its attention")
        here, there = seen
        moved = rotate(here, torch.tensor(7, device=here.device), self.inv_freq)
        scale = float(there.float().abs().max()) or 1.0
        if float((moved - there).float().abs().max()) > 0.02 * scale:
            raise UnsupportedModel(
                f"{self.name} rotates keys by another convention than Llama's; its memories could not be moved"
            )
