"""Many requests in one forward pass: their tokens stand one after the other in a single row, and each request attends to
its own context and its own memories.

    row      | request 1: 1 token | request 2: 40 tokens | request 3: 1 token |
    reads      cache 1, memories 1   cache 2, memories 2    cache 3, memories 3

Nothing is padded, so that a request's attention is computed on the tensors it would be computed on alone, whatever stands
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from memory3.attention.attend import attention_with_lse
from memory3.attention.kernels import additive
from memory3.attention.reading import Reading

__all__ = ["PackedReading", "Segment"]


@dataclass
class Segment:
    """The tokens of one request in a packed pass.

    Attributes:
        start, end: which columns of the row.
        cache: the request's own cache of transformers; the tokens join it.
        reading: its memories; None: it reads none.
        windows: for each layer that attends within a window: bool ``[n, n]``, which places a token at each place sees.
    """

    start: int
    end: int
    cache: Any
    reading: Reading | None
    windows: Mapping[int, torch.Tensor]
    _masks: dict[int, torch.Tensor] = field(default_factory=dict)

    def bias(self, layer: int, length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """The additive mask ``[1, 1, T, S]`` of these tokens over the first ``length`` of the cache; None: they see all
        of it, or, where the cache holds nothing else, each sees those up to itself.

        Args:
            layer: number of the layer in the model.
            length: S, these tokens included.
            dtype, device: of the queries.
        """
        window, new = self.windows.get(layer), self.end - self.start
        if window is None and (new == 1 or new == length):
            return None
        key = -1 if window is None else id(window)
        if key not in self._masks:
            if window is None:
                seen = torch.ones(new, length, dtype=torch.bool, device=device).tril(length - new)
            else:
                seen = window[length - new : length, :length]
            self._masks[key] = additive(seen, dtype)[None, None]
        return self._masks[key]


class PackedReading:
    """Reader (see `memory3.attention.attach.Reader`) of one packed forward pass."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        """
        Args:
            segments: of all requests, in the order of their columns; together they are the whole row.
        """
        self._segments = segments

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
    ) -> torch.Tensor:
        """Each request's attention over its own context and memories.

        Args:
            layer: number of the layer in the model, from 0.
            query: ``[1, A, T, d]``, after RoPE.
            key, value: ``[1, H, T, d]`` of the new tokens, keys after RoPE.
            bias, causal: not looked at: which tokens see which, the segments say.
            scale: what scores are multiplied with.

        Returns:
            the attention output ``[1, A, T, d]``.
        """
        parts = []
        for segment in self._segments:
            mine = slice(segment.start, segment.end)
            asked = query[:, :, mine]
            keys, values = segment.cache.update(key[:, :, mine], value[:, :, mine], layer)
            mask = segment.bias(layer, keys.shape[2], query.dtype, query.device)
            alone = mask is None and asked.shape[2] > 1
            out = None
            if segment.reading is not None:
                out = segment.reading.attend(layer, asked, keys, values, mask, causal=alone, scale=scale)
            if out is None:
                out, _ = attention_with_lse(asked, keys, values, mask, causal=alone, scale=scale)
            parts.append(out)
        return torch.cat(parts, dim=2)
