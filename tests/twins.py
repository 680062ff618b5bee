"""Slow, obvious twins of the fast paths, and random inputs for both. Every test of attention takes them from here.

from twins import attend_concatenated, random_layer
"""

from __future__ import annotations

import torch

from memory3.attention.attend import masked
from memory3.types import LayerMemory

__all__ = ["HEAD_DIM", "attend_concatenated", "moved", "random_layer"]

#: Head dimension of `random_layer`.
HEAD_DIM = 10


def random_layer(
    chunks: int,
    heads: int,
    pairs: int,
    *,
    padded: bool = True,
    seed: int = 0,
    dim: int = HEAD_DIM,
    dtype: torch.dtype = torch.float32,
) -> LayerMemory:
    """What ``chunks`` read in one layer: keys and values ``[chunks, heads, pairs, dim]``, heads of different lengths
    where ``padded``.
    """
    g = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, 3, (chunks, heads, pairs), generator=g)
    bias, widths = None, (pairs,) * heads
    if padded:
        lengths = torch.randint(1, pairs + 1, (chunks, heads), generator=g)
        hidden = torch.arange(pairs) >= lengths[..., None]
        owner[hidden] = -1
        bias = torch.zeros(chunks, heads, pairs, dtype=dtype).masked_fill(hidden, masked(dtype)).unsqueeze(2)
        widths = tuple(lengths.max(dim=0).values.tolist())
    keys, values = (torch.randn(chunks, heads, pairs, dim, generator=g).to(dtype) for _ in range(2))
    return LayerMemory(keys, values, bias, owner, widths)


def moved(memory: LayerMemory, to: torch.device | torch.dtype | str) -> LayerMemory:
    """The same on another device or in another dtype."""
    device = None if isinstance(to, torch.dtype) else to
    bias = None if memory.bias is None else memory.bias.to(to)
    return LayerMemory(memory.keys.to(to), memory.values.to(to), bias, memory.owner.to(device), memory.widths)


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
    """What `attend` computes, by concatenation and masking: every token sees the keys of all N chunks, all but its own masked.

    Arguments and results as `memory3.attention.attend.attend`.
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
