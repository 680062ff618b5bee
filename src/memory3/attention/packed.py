"""Many requests in one forward pass: their tokens stand one after the other in a single row, and each request attends to
its own context and its own memories.

    row      | requests 1 and 2: a token each | request 3: 40 tokens | request 4: 1 token |
    reads      a lane                           cache 3, memories 3    cache 4, memories 4

Those that decode share a kernel call (`memory3.attention.lane`). Prompts, and what no lane takes, are segments: nothing
of them is padded, and each is computed on the tensors it would be computed on alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from memory3.attention.attend import attention_with_lse
from memory3.attention.kernels import additive
from memory3.attention.lane import Lane
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

    def __init__(self, segments: Sequence[Segment], lanes: Sequence[tuple[Lane, int]] = ()) -> None:
        """
        Args:
            segments: of the requests in no lane, in the order of their columns, which end the row.
            lanes: each with how many of its requests feed a token; in the order of their columns, which begin the row.
        """
        self._segments = segments
        self._lanes = lanes

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
        parts, start = [], 0
        for lane, many in self._lanes:
            mine = slice(start, start + many)
            parts.append(lane.attend(layer, query[:, :, mine], key[:, :, mine], value[:, :, mine], scale))
            start += many
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
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
