"""What every attention kernel does, and the few lines that kernels share. Knows no device.

    logits = query key^T * scale + bias        lse = logsumexp(logits)        out = exp(logits - lse) value

Symbols: B rows, T queries of a head, S keys, A query heads, H KV heads, G = A / H, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Kernel", "folded", "masked", "needs_gradient"]


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention and the log-sum-exp of its logits.

    Attributes:
        name: what the kernel is called in tests, benchmarks and messages.
        serves: ``(query, key, value, bias, causal) -> bool``, whether `attention` can be called with these.
        attention: ``(query, key, value, bias, causal, scale) -> (out, lse)``.

            query ``[B, A, T, d]``; key and value ``[B, H, S, d]``, A a multiple of H, all of one dtype; bias: additive,
            in the query's dtype, finite, broadcastable to ``[B, A, T, S]`` with its last dimension S, or None; causal:
            query t sees keys 0..t (then T == S and bias is None); scale: factor on the logits.

            out ``[B, A, T, d]`` in the query's dtype; lse ``[B, A, T]``, float32 or wider (the CPU's kernel: the query's
            dtype where that is wider). Both have gradients with respect to query, key and value. The bias has none.
    """

    name: str
    serves: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool], bool]
    attention: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool, float], tuple[torch.Tensor, torch.Tensor]
    ]


def masked(dtype: torch.dtype) -> float:
    """The additive bias of what must not be seen. Finite, so that a query that sees nothing at all gives zeros and not NaN."""
    return torch.finfo(dtype).min / 2


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bias of bools, of their shape and device: 0 where one is seen, else `masked`."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, masked(dtype))


def needs_gradient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Will anyone ask for the gradient of what is computed from these?

    Args:
        query, key, value: what a kernel is given.
    """
    return torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)


def folded(out: torch.Tensor, gradient: torch.Tensor, of_lse: torch.Tensor) -> torch.Tensor:
    """What to give a fused backward pass in place of ``out``, so that it adds the gradient of the lse.

    Fused backward passes know gradients of the output alone. With g those of the output o, h those of the lse and P the
    attention weights,

        d loss / d logits = P * (g V^T - rowsum(g o) + h)

    so to pass o - g h / |g|^2 for o adds h. In `memory3.attention.attend.attend` h is a multiple of |g|, so the change
    stays finite where g vanishes.

    Args:
        out: o, ``[B, A, T, d]``.
        gradient: g, of the same shape.
        of_lse: h, ``[B, A, T]``, float32 or float64.
    """
    wide = gradient.to(of_lse.dtype)
    length = wide.square().sum(-1, keepdim=True)
    towards = of_lse.unsqueeze(-1) / length.clamp_min(torch.finfo(length.dtype).tiny)
    return (out.to(of_lse.dtype) - wide * towards).to(out.dtype)
