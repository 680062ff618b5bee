"""Attention over a context and over memories under one softmax (PAPER.md section 4, paper section 3.2).

    out = softmax([q K_mem^T ; q K_ctx^T] * scale) [V_mem ; V_ctx]

Two ways to the same numbers. `attend` computes the two parts apart, each with a fused kernel, and merges them by their log-sum-exp (lse):

    w = exp(lse_mem) / (exp(lse_mem) + exp(lse_ctx)) = sigmoid(lse_mem - lse_ctx)
    out = w out_mem + (1 - w) out_ctx

so the context's keys are never copied and memories of all prompt chunks are one batch. `attend_concatenated` writes the
formula down as it stands; tests compare the two, their gradients too.

Symbols: B rows, T new tokens, S context length, N chunks, C tokens of a chunk, A query heads, H KV heads, G = A / H,
M memory pairs per head (padded), d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch

from memory3.types import LayerMemory

__all__ = ["attend", "attend_concatenated", "attention_with_lse", "masked", "memory_mass"]


def masked(dtype: torch.dtype) -> float:
    """The additive bias of what must not be seen. Finite, so that a query that sees nothing at all gives zeros and not NaN."""
    return torch.finfo(dtype).min / 2


_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _FusedCPU(torch.autograd.Function):
    """The kernel behind scaled_dot_product_attention on the CPU; the public function drops the lse.

    It reads the key of each query head's KV head itself; to give it query heads as further queries of fewer heads would leave threads idle. Its own
    backward pass knows gradients of the output alone. With g those of the output o, and h those of the lse,

        d loss / d logits = P * (g V^T - rowsum(g o) + h)

    so to pass o - g h / |g|^2 for o adds h. In `attend` h is a multiple of |g|^2, so the quotient stays finite where g vanishes.
    """

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
        out, lse = _kernel(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.causal, ctx.scale = causal, scale
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient, of_lse = gradients
        query, key, value, bias, out, lse = ctx.saved_tensors
        wide = gradient.to(lse.dtype)
        length = wide.square().sum(-1, keepdim=True)
        towards = of_lse.unsqueeze(-1) / length.clamp_min(torch.finfo(length.dtype).tiny)
        out = (out.to(lse.dtype) - wide * towards).to(out.dtype)
        found = _kernel_backward(
            gradient.contiguous(), query, key, value, out, lse, 0.0, ctx.causal, attn_mask=bias, scale=ctx.scale
        )
        return *found, None, None, None


def _fused_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _FusedCPU.apply(query, key, value, bias, causal, scale)
    return _kernel(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)


class _Recomputed(torch.autograd.Function):
    """Plain matrix products, for devices whose fused kernels tell no lse. Probabilities are computed again for the gradient: kept, they would be most of a step's memory.

    Queries of a KV head's group stand in a row, so no key is repeated. The gradient is that of `_FusedCPU`.
    """

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
        scores = _scores(query, key, bias, causal, scale)
        lse = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - lse.unsqueeze(-1)).to(value.dtype)
        out = torch.matmul(_grouped(weights, key), value).view(query.shape)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.causal, ctx.scale = causal, scale
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient, of_lse = gradients
        query, key, value, bias, out, lse = ctx.saved_tensors
        weights = torch.exp(_scores(query, key, bias, ctx.causal, ctx.scale) - lse.unsqueeze(-1))
        own = of_lse - (gradient.to(lse.dtype) * out).sum(-1)
        towards = _grouped(gradient, key)
        of_weights = torch.matmul(towards, value.transpose(-1, -2)).view(weights.shape)
        of_scores = _grouped((weights * (of_weights + own.unsqueeze(-1)) * ctx.scale).to(key.dtype), key)
        of_query = torch.matmul(of_scores, key).view(query.shape)
        of_key = torch.matmul(of_scores.transpose(-1, -2), _grouped(query, key))
        of_value = torch.matmul(_grouped(weights.to(gradient.dtype), key).transpose(-1, -2), towards)
        return of_query, of_key, of_value, None, None, None


def _grouped(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """``[B, A, T, n]`` to ``[B, H, G T, n]``: the queries of a group one after the other."""
    return x.reshape(x.shape[0], key.shape[1], -1, x.shape[-1])


def _scores(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float) -> torch.Tensor:
    """Logits ``[B, A, T, S]``, float32 unless the query is float64."""
    scores = torch.matmul(_grouped(query, key), key.transpose(-1, -2)).view(*query.shape[:3], -1)
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        blocked = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(blocked, masked(scores.dtype))
    return scores


def attention_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also tells the log-sum-exp of its logits. Both have gradients with respect to query, key and value.

    Args:
        query: ``[B, A, T, d]``.
        key, value: ``[B, H, S, d]``, A a multiple of H.
        bias: additive, broadcastable to ``[B, A, T, S]``, or one for each KV head, ``[B, H, 1, S]``, or None.
        causal: query t sees keys 0..t (T == S).
        scale: factor on the logits.

    Returns:
        ``[B, A, T, d]`` in the query's dtype and lse ``[B, A, T]`` in float32.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    if bias is not None:
        bias = bias.to(query.dtype)
        if bias.shape[1] not in (1, heads):
            bias = bias.repeat_interleave(heads // kv_heads, dim=1)
    kernel = _fused_cpu if query.device.type == "cpu" else _Recomputed.apply
    out, lse = kernel(query, key, value, bias, causal, scale)
    return out, lse if lse.dtype == torch.float64 else lse.float()


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    memory: LayerMemory,
    tokens: torch.Tensor | None,
    *,
    causal: bool = False,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the context and each token's own memories, merged by log-sum-exp.

    Args:
        query: ``[B, A, T, d]``.
        key, value: ``[B, H, S, d]`` of the context.
        bias: additive context mask ``[B, 1, T, S]`` or None.
        memory: what the N chunks read.
        tokens: int64 ``[N, C]``, which tokens belong to a chunk, as flat indices ``row * T + t``; -1 pads. Tokens in no chunk read no
            memory. None: chunk n is row n, all of whose tokens read it.
        causal: as in `attention_with_lse`, for the context.
        scale: factor on the logits.

    Returns:
        ``[B, A, T, d]``, and the lse over context and memory together, float32 ``[B, A, T]``.
    """
    out, lse = attention_with_lse(query, key, value, bias, causal=causal, scale=scale)
    mem_keys, mem_values = memory.keys.to(query.dtype), memory.values.to(query.dtype)  # they differ under autocast alone
    if tokens is None:
        mem_out, mem_lse = attention_with_lse(query, mem_keys, mem_values, memory.bias, scale=scale)
        return torch.lerp(out, mem_out, torch.sigmoid(mem_lse - lse).unsqueeze(-1).to(out.dtype)), torch.logaddexp(
            lse, mem_lse
        )

    rows, heads, length, dim = query.shape
    inside = tokens >= 0
    flat = query.transpose(1, 2).reshape(rows * length, heads, dim)
    chunked = flat[tokens.clamp_min(0)].transpose(1, 2)  # [N, A, C, d]
    mem_out, mem_lse = attention_with_lse(chunked, mem_keys, mem_values, memory.bias, scale=scale)
    where = tokens[inside]
    all_out = out.new_zeros(rows * length, heads, dim)
    all_lse = lse.new_full((rows * length, heads), -torch.inf)
    all_out[where] = mem_out.transpose(1, 2)[inside]
    all_lse[where] = mem_lse.transpose(1, 2)[inside]
    mem_out = all_out.view(rows, length, heads, dim).transpose(1, 2)
    mem_lse = all_lse.view(rows, length, heads).transpose(1, 2)
    return torch.lerp(out, mem_out, torch.sigmoid(mem_lse - lse).unsqueeze(-1).to(out.dtype)), torch.logaddexp(lse, mem_lse)


def attend_concatenated(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    memory: LayerMemory,
    tokens: torch.Tensor | None,
    *,
    causal: bool = False,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `attend` by concatenation and masking: every token sees the keys of all N chunks, all but its own masked.

    Slow and obvious: the reference tests compare with. Arguments and results as `attend`.
    """
    rows, heads, length, dim = query.shape
    chunks, kv_heads, pairs, _ = memory.keys.shape
    group = heads // kv_heads
    owner = torch.full((rows * length,), -1, dtype=torch.int64, device=query.device)
    if tokens is None:
        owner = torch.arange(rows, device=query.device).repeat_interleave(length)
    else:
        for n in range(chunks):
            owner[tokens[n][tokens[n] >= 0]] = n
    # [B, 1, T, N]: may this token read that chunk?
    allowed = (owner.view(rows, length, 1) == torch.arange(chunks, device=query.device)).unsqueeze(1)
    mem_bias = torch.where(allowed, 0.0, -torch.inf).repeat_interleave(pairs, dim=-1)
    if memory.bias is not None:
        own = memory.bias.squeeze(2).permute(1, 0, 2).reshape(1, kv_heads, 1, chunks * pairs)
        mem_bias = mem_bias + own.repeat_interleave(group, dim=1)

    def flat(x: torch.Tensor) -> torch.Tensor:
        """``[N, H, M, d]`` to ``[1, A, N * M, d]``."""
        return x.permute(1, 0, 2, 3).reshape(1, kv_heads, chunks * pairs, dim).repeat_interleave(group, dim=1)

    scores = [query @ flat(memory.keys).transpose(-1, -2) * scale + mem_bias]
    context = query @ key.repeat_interleave(group, dim=1).transpose(-1, -2) * scale
    if bias is not None:
        context = context + bias
    if causal:
        context = context.masked_fill(torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1), -torch.inf)
    scores.append(context)
    logits = torch.cat(scores, dim=-1).float()
    weights = torch.softmax(logits, dim=-1).to(query.dtype)
    split = chunks * pairs
    out = weights[..., :split] @ flat(memory.values) + weights[..., split:] @ value.repeat_interleave(group, dim=1)
    return out, torch.logsumexp(logits, dim=-1)


def memory_mass(query: torch.Tensor, lse: torch.Tensor, memory: LayerMemory, *, references: int, scale: float) -> torch.Tensor:
    """Attention that queries paid to each reference.

    Args:
        query: ``[N, A, C, d]``, tokens of each chunk.
        lse: ``[N, A, C]`` over context and memory together, as `attend` returns it.
        memory: what the chunks read.
        references: R, the largest number of references of a chunk.
        scale: factor on the logits.

    Returns:
        float32 ``[N, R]``: softmax weight summed over heads, tokens and pairs of a reference.
    """
    chunks, kv_heads, _, dim = memory.keys.shape
    query = query.reshape(
        chunks, kv_heads, -1, dim
    )  # the query heads of one KV head as further queries, so that no key is repeated
    lse = lse.reshape(chunks, kv_heads, -1, 1)
    mass = torch.zeros(chunks, references + 1, device=query.device)
    for head, width in enumerate(memory.widths):  # head by head, since one may hold most of a layer's pairs
        scores = torch.matmul(query[:, head], memory.keys[:, head, :width].transpose(-1, -2)).float().mul_(scale)
        if memory.bias is not None:
            scores += memory.bias[:, head, :, :width]
        weights = scores.sub_(lse[:, head]).exp_().sum(dim=1)  # [N, M_h]
        mass.scatter_add_(1, memory.owner[:, head, :width] + 1, weights)
    return mass[:, 1:]
