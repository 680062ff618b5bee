"""CUDA's fused kernels, those behind ``scaled_dot_product_attention``.

UNMEASURED: checked for shapes and dispatch alone, no GPU was at hand.

Both tell the lse, which the public function drops. ``FLASH`` takes no bias and half precision alone, reads the key of
each query head's KV head itself, and is the faster one. ``EFFICIENT`` (CUTLASS) takes a bias and float32 too.

What they ask of their caller, read in ``aten/src/ATen/native/transformers/cuda``, with the schemas of torch 2.13:

- flash: a head dimension that 8 divides, at most 256.
- efficient: as many KV heads as query heads. So each KV head becomes a row of its own, and its one key is read by the G
  query heads with a stride of 0: nothing is copied. The head dimension divides by 8 (float32: 4).
- efficient: the rows of a bias start at multiples of 16 bytes. Its lse is padded to a multiple of 32 queries; the
  backward pass wants it so.

cuDNN's kernel is left out: torch's shape function and its backward pass do not agree on the shape of its lse.

Whether torch was built with a kernel, whether this GPU has it and whether the user allows it
(``torch.nn.attention.sdpa_kernel``), torch itself says.
"""

from __future__ import annotations

from typing import Any

import torch

from memory3.attention.kernels.base import Kernel, folded, needs_gradient

__all__ = ["EFFICIENT", "FLASH"]

_flash = torch.ops.aten._scaled_dot_product_flash_attention
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
_efficient = torch.ops.aten._scaled_dot_product_efficient_attention
_efficient_backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward

#: Rows of a bias start at multiples of this many numbers, as torch's own function pads them.
_ALIGNED = 16


# ---- flash -----------------------------------------------------------------------------------------------------------


class _Flash(torch.autograd.Function):
    """Flash attention with the gradient of the lse (`folded`)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse, *rest, _ = _flash(query, key, value, 0.0, causal, scale=scale)
        ends_q, ends_k, most_q, most_k, seed, offset = rest
        ctx.save_for_backward(query, key, value, out, lse, ends_q, ends_k, seed, offset)
        ctx.most, ctx.causal, ctx.scale = (most_q, most_k), causal, scale
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient, of_lse = gradients
        query, key, value, out, lse, ends_q, ends_k, seed, offset = ctx.saved_tensors
        out = folded(out, gradient, of_lse)
        found = _flash_backward(
            gradient, query, key, value, out, lse, ends_q, ends_k, *ctx.most, 0.0, ctx.causal, seed, offset, scale=ctx.scale
        )
        return *found, None, None


def _flash_serves(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool
) -> bool:
    if query.device.type != "cuda" or bias is not None or query.shape[-1] % 8 or torch.version.hip:
        return False
    cuda = torch.backends.cuda
    return cuda.can_use_flash_attention(cuda.SDPAParams(query, key, value, None, 0.0, causal, True))


def _flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if needs_gradient(query, key, value):
        out, lse = _Flash.apply(query, key, value, causal, scale)
        return out, lse
    out, lse, *_ = _flash(query, key, value, 0.0, causal, scale=scale)
    return out, lse


FLASH = Kernel("cuda flash", _flash_serves, _flash_attention)


# ---- memory-efficient ------------------------------------------------------------------------------------------------


class _Efficient(torch.autograd.Function):
    """Memory-efficient attention of equal numbers of heads, with the gradient of the lse (`folded`)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        causal: bool,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse, seed, offset = _efficient(query, key, value, bias, True, 0.0, causal, scale=scale)
        ctx.save_for_backward(query, key, value, bias, out, lse, seed, offset)
        ctx.causal, ctx.scale = causal, scale
        return out, lse.narrow(-1, 0, query.shape[2])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient, of_lse = gradients
        query, key, value, bias, out, lse, seed, offset = ctx.saved_tensors
        out, wanted = folded(out, gradient, of_lse), [True, True, True, False]
        of_query, of_key, of_value, _ = _efficient_backward(
            gradient, query, key, value, bias, out, lse, seed, offset, 0.0, wanted, ctx.causal, scale=ctx.scale
        )
        return of_query, of_key, of_value, None, None, None


def _efficient_serves(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool
) -> bool:
    if query.device.type != "cuda" or torch.version.hip or query.shape[-1] % (4 if query.dtype == torch.float32 else 8):
        return False
    cuda = torch.backends.cuda  # asked for the queries alone: keys are brought to the same number of heads
    return cuda.can_use_efficient_attention(cuda.SDPAParams(query, query, query, None, 0.0, causal, False))


def _efficient_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, length, dim = query.shape
    kv_heads, group = key.shape[1], heads // key.shape[1]
    apart = rows * kv_heads, group  # each KV head a row of its own, [B H, G, ...]
    whole = None if bias is None else _aligned(_apart(bias, rows, kv_heads, group)).expand(*apart, length, key.shape[2])
    inputs = (
        query.reshape(*apart, length, dim),
        *(x.reshape(apart[0], 1, *x.shape[2:]).expand(-1, group, -1, -1) for x in (key, value)),
    )
    if needs_gradient(query, key, value):
        out, lse = _Efficient.apply(*inputs, whole, causal, scale)
    else:
        out, lse, *_ = _efficient(*inputs, whole, True, 0.0, causal, scale=scale)
        lse = lse.narrow(-1, 0, length)
    return out.reshape(query.shape), lse.reshape(rows, heads, length)


def _apart(bias: torch.Tensor, rows: int, kv_heads: int, group: int) -> torch.Tensor:
    """A bias broadcastable to ``[B, A, T, S]`` as one broadcastable to ``[B H, G, T, S]``."""
    if bias.shape[1] == 1:
        if bias.shape[0] == 1:
            return bias
        return bias.expand(-1, kv_heads, -1, -1).reshape(rows * kv_heads, 1, *bias.shape[2:])
    return bias.expand(rows, -1, -1, -1).reshape(rows * kv_heads, group, *bias.shape[2:])


def _aligned(bias: torch.Tensor) -> torch.Tensor:
    """The same numbers, their rows at multiples of `_ALIGNED`; itself where they lie so."""
    *strides, last = bias.stride()
    if last == 1 and not any(number % _ALIGNED for number in (*strides, bias.storage_offset())):
        return bias
    length = bias.shape[-1]
    return torch.nn.functional.pad(bias, (0, _ALIGNED - length % _ALIGNED)).narrow(-1, 0, length)


EFFICIENT = Kernel("cuda efficient", _efficient_serves, _efficient_attention)
