"""What an error in a stored vector costs the model that reads it: the metrics of `memory3.codec.transform`.

A key is read as a logit s q^T k, so an error e costs e^T M e with M the mean of s^2 q q^T over the queries that read it.
Queries and keys come after RoPE; a coder sees a key turned back by its place p, so there the metric is R(-p) M R(-p)^T, and
one metric for all places is their mean. A value is read through the output projection of each query head: M = W_o^T W_o,
averaged over the heads that share it. The queries are those of a model that repeats a reference, which stand in for questions.

Symbols: L memory layers, H KV heads, G query heads per KV head, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from memory3.codec.centring import turned
from memory3.encode.selectors import LayerView, Selector
from memory3.llm import Memory3
from memory3.types import Reference

__all__ = ["REFERENCES", "error_metrics"]

#: References whose repetition gives queries: some 4,000 tokens, for a d x d matrix of each head.
REFERENCES = 32
#: The mean over places takes every so manieth.
_STRIDE = 8


class _QueryMoments(Selector):
    """Scores nothing; adds up what the later queries are."""

    name: ClassVar[str] = "query moments"
    repeats: ClassVar[bool] = True

    def __init__(self) -> None:
        self.sums: dict[int, torch.Tensor] = {}
        self.counts: dict[int, torch.Tensor] = {}

    def score(self, view: LayerView) -> torch.Tensor:
        """Zeros."""
        assert view.later_query is not None
        assert view.later_lse is not None
        real = torch.isfinite(view.later_lse)[..., None]
        number, _, tokens, dim = view.later_query.shape
        query = (view.later_query.float() * view.scale * real).view(number, view.key.shape[1], -1, tokens, dim)
        moments = torch.einsum("nhgtd,nhgte->hde", query, query).double().cpu()
        count = real.sum().double().cpu() / view.key.shape[1]
        self.sums[view.layer] = self.sums.get(view.layer, 0) + moments
        self.counts[view.layer] = self.counts.get(view.layer, 0) + count
        return torch.zeros(view.key.shape[:3], device=view.key.device)


def error_metrics(m3: Memory3, references: Sequence[Reference]) -> dict[str, torch.Tensor]:
    """What errors of keys and of values cost the model: ``keys`` and ``values``, float32 ``[L*H, d, d]``.

    A model whose attention has no plain output projection has every error of a value count alike.

    Args:
        m3: the model whose errors are priced.
        references: that are read for it.
    """
    moments, ordered = _QueryMoments(), sorted(references, key=lambda reference: len(reference.token_ids))
    for start in range(0, len(ordered), m3.batch_size):
        m3.encoder.dense(ordered[start : start + m3.batch_size], [moments])
    shape = m3.shape
    keys = torch.stack([(moments.sums[layer] / moments.counts[layer]).float() for layer in shape.layers]).flatten(0, 1)
    places = range(0, m3.config.reference_length, _STRIDE)
    keys = torch.stack([_turned_back(keys, place, m3.angles) for place in places]).mean(0)
    values = torch.stack([_output_metric(m3, layer) for layer in shape.layers]).flatten(0, 1)
    return {"keys": keys, "values": values}


def _turned_back(metric: torch.Tensor, place: int, angles: torch.Tensor) -> torch.Tensor:
    """R(-place) M R(-place)^T, for ``metric`` ``[n, d, d]``."""
    angles = angles.float().cpu()
    for _ in range(2):
        rows = metric.transpose(1, 2).reshape(-1, metric.shape[2])
        metric = turned(rows, torch.full((len(rows),), -place), angles).view(metric.shape)
    return metric


def _output_metric(m3: Memory3, layer: int) -> torch.Tensor:
    """Of the values of a layer, ``[H, d, d]``."""
    heads, dim = m3.shape.kv_heads, m3.shape.head_dim
    for module in m3.model.modules():
        weight = getattr(getattr(module, "o_proj", None), "weight", None)
        if getattr(module, "layer_idx", None) != layer or not isinstance(weight, torch.Tensor):
            continue
        if weight.is_floating_point() and weight.dim() == 2 and weight.shape[1] % (heads * dim) == 0:
            grouped = weight.detach().float().cpu().view(weight.shape[0], heads, -1, dim)
            return torch.einsum("ohgd,ohge->hde", grouped, grouped) / grouped.shape[2]
    return torch.eye(dim).expand(heads, dim, dim)
