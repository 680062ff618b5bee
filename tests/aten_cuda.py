"""What ATen's fused CUDA kernels compute, and what they refuse, in plain products on the CPU: for machines without a GPU.

    with aten_cuda.on_the_cpu():
        torch.ops.aten._scaled_dot_product_efficient_attention(...)     # of CPU tensors

The calls go through ATen's own schemas. The checks are those of ``aten/src/ATen/native/transformers/cuda`` (attention.cu,
attention_backward.cu, kernel_forward.h, flash_api.cpp), with the schemas of torch 2.13. What no stand-in can show is the
numbers of the real kernels: tests marked ``gpu`` do.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["CALLS", "on_the_cpu"]

#: Names of the stand-ins that were called, in order.
CALLS: list[str] = []


def _logits(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float) -> torch.Tensor:
    logits = torch.einsum("batd,basd->bats", query.double(), key.double()) * scale
    if bias is not None:
        logits = logits + bias.double()
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return logits


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = _logits(query, key, bias, causal, scale)
    out = torch.softmax(logits, -1) @ value.double()
    # [B, T, A, d] in memory, as the kernels write it
    return out.transpose(1, 2).contiguous().transpose(1, 2).to(query.dtype), torch.logsumexp(logits, -1).float()


def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the kernels do it: from the output and the lse that are passed, not from those they could compute anew."""
    weights = torch.exp(_logits(query, key, bias, causal, scale) - lse.double().unsqueeze(-1))
    wide = gradient.double()
    delta = (wide * out.double()).sum(-1, keepdim=True)
    of_logits = weights * (wide @ value.double().transpose(-1, -2) - delta) * scale
    found = of_logits @ key.double(), of_logits.transpose(-1, -2) @ query.double(), weights.transpose(-1, -2) @ wide
    return found[0].to(query.dtype), found[1].to(key.dtype), found[2].to(value.dtype)


# ---- flash -----------------------------------------------------------------------------------------------------------


def _check_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    assert query.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type"
    assert key.dtype == value.dtype == query.dtype
    assert query.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
    assert query.shape[-1] <= 256
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert query.shape[1] % key.shape[1] == 0
    return query.shape[1] // key.shape[1]


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float,
) -> tuple[Any, ...]:
    CALLS.append("flash")
    group = _check_flash(query, key, value)
    assert not is_causal or query.shape[2] == key.shape[2], "its causal mask is aligned to the lower right"
    out, lse = _forward(query, *(x.repeat_interleave(group, 1) for x in (key, value)), None, is_causal, scale)
    state = torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64)
    return out, lse, None, None, query.shape[2], key.shape[2], *state, query.new_empty(0)


def _flash_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    cum_seq_q: torch.Tensor | None,
    cum_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: torch.Tensor,
    philox_offset: torch.Tensor,
    *,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    CALLS.append("flash backward")
    group = _check_flash(query, key, value)
    assert cum_seq_q is None
    assert cum_seq_k is None
    assert (max_q, max_k) == (query.shape[2], key.shape[2])
    assert philox_seed.shape == (2,)
    assert out.dtype == grad_out.dtype == query.dtype
    assert logsumexp.shape == query.shape[:3]
    keys, values = (x.repeat_interleave(group, 1) for x in (key, value))
    of_query, *rest = _backward(grad_out, query, keys, values, None, out, logsumexp, is_causal, scale)
    of_key, of_value = (x.unflatten(1, (key.shape[1], group)).sum(2) for x in rest)
    return of_query, of_key, of_value


# ---- memory-efficient ------------------------------------------------------------------------------------------------


def _check_efficient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> None:
    step = 16 // query.element_size()  # numbers in 16 bytes
    assert query.dtype in (torch.float16, torch.bfloat16, torch.float32)
    assert key.dtype == value.dtype == query.dtype
    assert query.shape[:2] == key.shape[:2] == value.shape[:2], "Num heads"
    assert query.shape[-1] % step == 0, "last dimension of inputs"
    for x in (query, key, value):
        assert x.stride(-1) == 1, "must be contiguous in the last dimension"
        assert x.stride(2) % step == 0, "not correctly aligned (strideM)"
        assert x.shape[1] <= 1 or x.stride(1) % step == 0, "not correctly aligned (strideH)"
        assert x.storage_offset() % step == 0, "not aligned"
    if bias is not None:
        assert bias.dtype == query.dtype, "invalid dtype for bias - should match query's dtype"
        assert bias.shape == (*query.shape[:3], key.shape[2]), "attn_bias: wrong shape"
        assert bias.stride(3) == 1, "attn_bias: wrong alignment (last dimension must be contiguous)"
        assert bias.storage_offset() % step == 0, "attn_bias is not correctly aligned"
        for dimension in range(3):
            aligned = bias.stride(dimension) % step == 0
            assert bias.shape[dimension] <= 1 or aligned, f"attn_bias is not correctly aligned (stride {dimension})"


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    CALLS.append("efficient")
    assert compute_log_sumexp
    _check_efficient(query, key, value, attn_bias)
    out, lse = _forward(query, key, value, attn_bias, is_causal, scale)
    padded = lse.new_full((*lse.shape[:2], 32 * math.ceil(lse.shape[2] / 32)), torch.inf)
    padded[..., : lse.shape[2]] = lse
    return out, padded, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)


def _efficient_backward(
    grad_out_: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor | None,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    philox_seed: torch.Tensor,
    philox_offset: torch.Tensor,
    dropout_p: float,
    grad_input_mask: list[bool],
    is_causal: bool = False,
    *,
    scale: float,
) -> tuple[torch.Tensor | None, ...]:
    CALLS.append("efficient backward")
    _check_efficient(query, key, value, attn_bias)
    assert logsumexp.shape[2] % 32 == 0, "the lse is padded"
    assert grad_out_.shape == out.shape == query.shape
    assert out.dtype == grad_out_.dtype == query.dtype
    assert list(grad_input_mask) == [True, True, True, False], "a bias has no gradient"
    lse = logsumexp[..., : query.shape[2]]
    return *_backward(grad_out_, query, key, value, attn_bias, out, lse, is_causal, scale), None


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Give ATen's four operations a CPU kernel each, for the length of the block."""
    library = torch.library.Library("aten", "IMPL")
    for name, stand_in in (
        ("_scaled_dot_product_flash_attention", _flash),
        ("_scaled_dot_product_flash_attention_backward", _flash_backward),
        ("_scaled_dot_product_efficient_attention", _efficient),
        ("_scaled_dot_product_efficient_attention_backward", _efficient_backward),
    ):
        library.impl(name, stand_in, "CPU")
    CALLS.clear()
    try:
        yield
    finally:
        del library
        gc.collect()
