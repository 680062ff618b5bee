"""Attach to a transformers model: see queries, keys and values of every layer, and answer for its attention.

The attention of a model is switched to `ATTENTION` for the length of a ``with attached(model)`` block and restored after
it. Inside, a forward pass that is given ``memory3=reader`` asks the reader for the attention output of each layer; one
that is not runs as it always did.

Knows the model's shape and nothing of memories, banks or generation. Traps it is built around (transformers 5.x): an
attention name without a mask function silently loses its padding mask; a stock kernel given more keys than the mask
covers drops them silently.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from memory3.attention.attend import additive, attention_with_lse
from memory3.errors import UnsupportedModel

__all__ = ["ATTENTION", "Reader", "Seen", "StopForward", "attached"]

#: The name our attention goes by in transformers' registry.
ATTENTION = "memory3"
#: The same for models whose own attention is not sdpa.
_MASKED = "memory3_masked"


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

        Args:
            layer: number of the layer in the model, from 0.
            query, key, value: of the pass, after RoPE.
            bias: the additive mask, or None.
            causal: without a mask: whether query t sees keys 0..t alone.
            scale: what scores are multiplied with.
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
    if _is_one_token(query, key, attention_mask) and not (module.training or torch.is_grad_enabled()):
        # The stock function lays keys and values out anew for every query head, which of one token takes longer than all else.
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attention_with_lse(query, key, value, attention_mask, scale=scale)[0].transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def _is_one_token(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether our own kernel may answer for a token on a CPU. A pass of another thread that began before the switch has the
    stock mask, which says true and false; under autocast RoPE leaves another number format than the keys'.
    """
    additive_mask = mask is None or mask.is_floating_point()
    return query.shape[2] == 1 and query.device.type == "cpu" and additive_mask and query.dtype == key.dtype


def _mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """The stock mask, made additive once per forward pass; None where a plain causal mask needs no tensor."""
    allowed = sdpa_mask(*args, **kwargs)
    if allowed is None:
        return None
    # Padding sees everything: of a row that sees nothing, kernels make what is not a number, and the gradient of all rows
    # with it (cuDNN's does).
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    return additive(allowed, dtype)


def _explicit_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """`_mask` that is always written out."""
    return _mask(*args, **{**kwargs, "allow_is_causal_skip": False})


class _Attachment:
    """How many are attached to a model now, and what its attention was before the first of them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.count = 0
        self.config = model.config
        self.previous: str = model.config._attn_implementation or "sdpa"


_guard = threading.Lock()
#: By the identity of the model's config, which every wrapper of it shows; only while somebody is attached.
_attachments: dict[int, _Attachment] = {}


@contextmanager
def attached(model: PreTrainedModel) -> Iterator[None]:
    """Switch the model to our attention, and back to its own when the last that attached to it leaves.

    Any number of threads may be attached at once, and one may attach again: what a forward pass reads comes with the
    pass. A pass of another thread that is under way while the switch is made computes what it would have: a model whose
    attention is not sdpa gets its masks written out, since its own function does not know that none means causal. The
    exception is flash attention, whose masks are of another kind: a raw pass of another thread may fail in that moment.
    """
    _attach(model)
    try:
        yield
    finally:
        _detach(model)


def _attach(model: PreTrainedModel) -> None:
    with _guard:
        key = id(model.config)
        if key not in _attachments:
            # The registry is one per process; an entry that no model names changes nothing.
            for name, mask in ((ATTENTION, _mask), (_MASKED, _explicit_mask)):
                AttentionInterface.register(name, _attention)
                AttentionMaskInterface.register(name, mask)
            attachment = _Attachment(model)
            model.set_attn_implementation(ATTENTION if attachment.previous in ("sdpa", ATTENTION) else _MASKED)
            _attachments[key] = attachment
        _attachments[key].count += 1


def _detach(model: PreTrainedModel) -> None:
    with _guard:
        attachment = _attachments[id(model.config)]
        attachment.count -= 1
        if not attachment.count:
            model.set_attn_implementation(attachment.previous)
            del _attachments[id(model.config)]


class Seen:
    """Reader that keeps what every layer is given and changes nothing.

    Attributes:
        layers: query, key, value and additive mask of each layer, as `Reader.attend` gets them.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]] = {}

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
        """Keep what this layer would attend with, and leave the answer to the stock kernel: always None.

        Args:
            layer: number of the layer in the model, from 0.
            query: ``[B, A, T, d]``, after RoPE.
            key, value: ``[B, H, S, d]``, keys after RoPE.
            bias: the additive mask ``[B, 1, T, S]``, or None.
            causal: without a mask: whether query t sees keys 0..t alone.
            scale: what scores are multiplied with.
        """
        self.layers[layer] = (query, key, value, bias)
        return None
