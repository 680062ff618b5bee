"""One stretch of reading: the attention's reader, and who it looked at.

Citations want the attention that every answer token paid to every reference. Adding it up at each step would cost several small operations per layer
and token; here the queries are kept as they come (a few KB a layer) and one product per layer and stretch of up to 64 tokens tells it exactly.
"""

from __future__ import annotations

import torch

from memory3.maths.attend import attend, memory_mass
from memory3.values import MemoryBatch

__all__ = ["Reading"]


class Reading:
    """Reader (see `memory3.model.attach.Reader`) of forward passes that read the same memories.

    Attributes:
        batch: what N chunks read.
        tokens: int64 ``[N, C]``, which tokens belong to which chunk, as `attend` takes them; None: chunk n is row n.
    """

    def __init__(self, batch: MemoryBatch, tokens: torch.Tensor | None = None, watched: torch.Tensor | None = None) -> None:
        """``watched``: ``[B]``, the one column of each row whose attention counts (a prompt's last token); None: all tokens."""
        self.batch = batch
        self.tokens = tokens
        self._watched = watched
        self._seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._scale = 1.0

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
    ) -> torch.Tensor | None:
        """Context and memories under one softmax; None where this layer has no memories."""
        memory = self.batch.layers.get(layer)
        if memory is None:
            return None
        out, lse = attend(query, key, value, bias, memory, self.tokens, causal=causal, scale=scale)
        if self._watched is not None:
            rows = torch.arange(query.shape[0], device=query.device)
            query, lse = query[rows, :, self._watched, None], lse[rows, :, self._watched, None]
        self._seen.setdefault(layer, []).append((query, lse))
        self._scale = scale
        return out

    def settle(self, batch: MemoryBatch) -> torch.Tensor:
        """Attention paid since the last call, float32 ``[B, R]``: row n's queries against chunk n of ``batch``."""
        most = max((len(ids) for ids in batch.references), default=0)
        total = torch.zeros(len(batch.references), most)
        for layer, kept in self._seen.items():
            query, lse = (torch.cat(parts, dim=2) for parts in zip(*kept, strict=True))
            total += memory_mass(query, lse, batch.layers[layer], references=most, scale=self._scale).cpu()
        self._seen = {}
        return total
