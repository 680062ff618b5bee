"""The CPU's fused kernel: the one behind ``scaled_dot_product_attention``, whose public function drops the lse.

It reads the key of each query head's KV head itself. Of many tokens that is right: to give it query heads as further queries
of fewer heads would leave threads idle. Of one token it is not: the kernel arranges keys anew for every query head, which in
bfloat16 takes longer than all else. There the query heads of a group are given as tokens of one head.
"""

from __future__ import annotations

from typing import Any

import torch

from memory3.attention.kernels.base import Kernel, folded, needs_gradient

__all__ = ["CPU"]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _WithGradient(torch.autograd.Function):
    """The same with the gradient of the lse (`folded`)."""

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
        out, lse = _forward(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.causal, ctx.scale = causal, scale
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient, of_lse = gradients
        query, key, value, bias, out, lse = ctx.saved_tensors
        out = folded(out, gradient, of_lse)
        found = _backward(gradient.contiguous(), query, key, value, out, lse, 0.0, ctx.causal, attn_mask=bias, scale=ctx.scale)
        return *found, None, None, None


def _serves(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool) -> bool:
    return query.device.type == "cpu"


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` with each vector's numbers side by side: the kernel takes that for granted, and computes something else where it
    is not so.
    """
    return x if x.stride(-1) == 1 else x.contiguous()


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = _rows(query), _rows(key), _rows(value)
    rows, heads, tokens, dim = query.shape
    grouped = tokens == 1 and heads > key.shape[1]
    if grouped:
        query, bias = _grouped(query, bias, key.shape[1])
    if needs_gradient(query, key, value):
        out, lse = _WithGradient.apply(query, key, value, bias, causal and not grouped, scale)
    else:
        out, lse = _forward(query, key, value, 0.0, causal and not grouped, attn_mask=bias, scale=scale)
    return (out.reshape(rows, heads, 1, dim), lse.reshape(rows, heads, 1)) if grouped else (out, lse)


def _grouped(query: torch.Tensor, bias: torch.Tensor | None, heads: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One token's query ``[B, A, 1, d]`` with the query heads of a KV head as its tokens, ``[B, H, A/H, d]``; and the bias."""
    rows, all_heads, _, dim = query.shape
    if bias is not None and bias.shape[1] == all_heads:
        bias = bias.view(bias.shape[0], heads, -1, bias.shape[3])
    elif bias is not None:
        bias = bias.expand(-1, -1, all_heads // heads, -1)
    return query.reshape(rows, heads, -1, dim), bias


CPU = Kernel("cpu", _serves, _attention)
