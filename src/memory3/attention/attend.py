"""Attention over a context and over memories under one softmax (arXiv 2407.01178, section 3.2).

    out = softmax([q K_mem^T ; q K_ctx^T] * scale) [V_mem ; V_ctx]

`attend` computes the two parts apart, each with a fused kernel, and merges them by their log-sum-exp (lse):

    w = exp(lse_mem) / (exp(lse_mem) + exp(lse_ctx)) = sigmoid(lse_mem - lse_ctx)
    out = w out_mem + (1 - w) out_ctx

so the context's keys are never copied and memories of all prompt chunks are one batch. An exact twin in the tests
concatenates keys and masks; the two are compared, their gradients too. Which kernel computes a part,
`memory3.attention.kernels` decides.

Symbols: B rows, T new tokens, S context length, N chunks, C tokens of a chunk, A query heads, H KV heads, G = A / H,
M memory pairs per head (padded), d head dimension.
"""

from __future__ import annotations

import torch

from memory3.attention.kernels import additive, choose, masked
from memory3.types import LayerMemory

__all__ = ["additive", "attend", "attention_with_lse", "masked", "memory_mass"]


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
    kernel = choose(query, key, value, bias, causal=causal)
    out, lse = kernel.attention(query, key, value, bias, causal, scale)
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
        tokens: int64 ``[N, C]``, which tokens belong to a chunk, as flat indices ``row * T + t``; -1 pads. Tokens in no
            chunk read no memory. None: chunk n is row n, all of whose tokens read it.
        causal: as in `attention_with_lse`, for the context.
        scale: factor on the logits.

    Returns:
        ``[B, A, T, d]``, and the lse over context and memory together, float32 ``[B, A, T]``.
    """
    out, lse = attention_with_lse(query, key, value, bias, causal=causal, scale=scale)
    mem_keys, mem_values = memory.keys.to(query.dtype), memory.values.to(query.dtype)  # they differ under autocast alone
    if tokens is None:
        mem_out, mem_lse = attention_with_lse(query, mem_keys, mem_values, memory.bias, scale=scale)
        return _merged(out, lse, mem_out, mem_lse)

    rows, heads, length, dim = query.shape
    everywhere = rows * length
    flat = query.transpose(1, 2).reshape(everywhere, heads, dim)
    chunked = flat[tokens.clamp_min(0)].transpose(1, 2)  # [N, A, C, d]
    mem_out, mem_lse = attention_with_lse(chunked, mem_keys, mem_values, memory.bias, scale=scale)
    # Padding goes to a place behind the last token: to count what is no padding would wait for the device.
    where = tokens.where(tokens >= 0, everywhere).flatten()
    all_out = out.new_zeros(everywhere + 1, heads, dim)
    all_lse = lse.new_full((everywhere + 1, heads), -torch.inf)
    all_out = all_out.index_copy(0, where, mem_out.transpose(1, 2).flatten(0, 1))[:everywhere]
    all_lse = all_lse.index_copy(0, where, mem_lse.transpose(1, 2).flatten(0, 1))[:everywhere]
    return _merged(
        out, lse, all_out.view(rows, length, heads, dim).transpose(1, 2), all_lse.view(rows, length, heads).transpose(1, 2)
    )


def _merged(
    out: torch.Tensor, lse: torch.Tensor, mem_out: torch.Tensor, mem_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One softmax over context and memory, of outputs ``[B, A, T, d]`` and lse ``[B, A, T]`` of each; see the module."""
    share = torch.sigmoid(mem_lse - lse).unsqueeze(-1).to(out.dtype)
    return torch.lerp(out, mem_out, share), torch.logaddexp(lse, mem_lse)


def memory_mass(query: torch.Tensor, lse: torch.Tensor, memory: LayerMemory, *, references: int, scale: float) -> torch.Tensor:
    """Attention that each query paid to each reference.

    Args:
        query: ``[N, A, C, d]``, tokens of each chunk.
        lse: ``[N, A, C]`` over context and memory together, as `attend` returns it.
        memory: what the chunks read.
        references: R, the largest number of references of a chunk.
        scale: factor on the logits.

    Returns:
        float32 ``[N, C, R]``: softmax weight summed over heads and pairs of a reference.
    """
    chunks, kv_heads, _, dim = memory.keys.shape
    length = query.shape[2]
    query = query.reshape(
        chunks, kv_heads, -1, dim
    )  # the query heads of one KV head as further queries, so that no key is repeated
    lse = lse.reshape(chunks, kv_heads, -1, 1)
    mass = torch.zeros(chunks, length, references + 1, device=query.device)
    for head, width in enumerate(memory.widths):  # head by head, since one may hold most of a layer's pairs
        scores = torch.matmul(query[:, head], memory.keys[:, head, :width].transpose(-1, -2)).float().mul_(scale)
        if memory.bias is not None:
            scores += memory.bias[:, head, :, :width]
        weights = scores.sub_(lse[:, head]).exp_().unflatten(1, (-1, length)).sum(dim=1)  # [N, C, M_h]
        owner = memory.owner[:, head, None, :width] + 1
        mass.scatter_add_(2, owner.expand(-1, length, -1), weights)
    return mass[..., 1:]
