"""Plain matrix products: any device, any dtype, any head dimension. Every other kernel must equal it.

Probabilities are computed again for the gradient: kept, they would be most of a step's memory. Queries of a KV head's
group stand in a row, so no key is repeated. Logits are whole in memory, ``[B, A, T, S]`` in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from memory3.attention.kernels.base import Kernel, masked

__all__ = ["REFERENCE"]


class _Recomputed(torch.autograd.Function):
    """The gradient of output and lse; see `memory3.attention.kernels.base.folded`, which writes it down."""

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


def _serves(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool) -> bool:
    return True


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _Recomputed.apply(query, key, value, bias, causal, scale)
    return out, lse


REFERENCE = Kernel("reference", _serves, _attention)
