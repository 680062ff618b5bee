"""One stretch of reading: the attention's reader, and who it looked at.

Citations want the attention that every answer token paid to every reference. Adding it up at each step would cost several
small operations per layer and token; here the queries are kept as they come (a few KB a layer) and one product per layer
and stretch of up to 64 tokens tells it exactly. Of deep models about ten layers are counted, evenly spaced: the shares
differ little from those of all (docs/measured.md), and counting all took a fifth of a server's time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from memory3.attention.attend import attend, attention_with_lse, memory_mass
from memory3.attention.kv_cache import ROOM, GrowingLayer, grow
from memory3.types import LayerMemory, MemoryBatch

__all__ = ["Reading", "counted"]

#: Layers that are counted at least, where so many have memories; fewer than twice as many are.
_LAYERS = 10

#: Bytes of padding that cost as much time to read as one more kernel call: 20 microseconds at 13 GB/s.
_WORTH_A_CALL = 256 * 1024


def counted(layers: Iterable[int]) -> frozenset[int]:
    """Those in which attention to memories is counted.

    Args:
        layers: numbers of those that have memories.
    """
    ordered = sorted(layers)
    return frozenset(ordered[:: max(1, len(ordered) // _LAYERS)])


class Reading:
    """Reader (see `memory3.attention.attach.Reader`) of forward passes that read the same memories.

    Attributes:
        batch: what N chunks read.
        tokens: int64 ``[N, C]``, which tokens belong to which chunk, as `attend` takes them; None: chunk n is row n.
        counted: layers whose attention `settle` counts.
        kept: layers whose queries are kept until then: those, or all where somebody wants to see them (`seen`).
        looked: attention that each row could have paid so far, one for every query of every head and layer that `settle`
            has counted.
    """

    def __init__(
        self,
        batch: MemoryBatch,
        tokens: torch.Tensor | None = None,
        watched: torch.Tensor | None = None,
        keeps_all: bool = False,
    ) -> None:
        """``watched``: ``[B]``, the one column of each row whose attention counts (a prompt's last token); None: all
        tokens. ``keeps_all``: queries of all layers are kept.
        """
        self.batch = batch
        self.tokens = tokens
        self.counted = counted(batch.layers)
        self.kept = frozenset(batch.layers) if keeps_all else self.counted
        self.looked = 0
        self._watched = watched
        self._seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._scale = 1.0
        self._places: list[Any] | None = None
        self._bias: dict[int, torch.Tensor] = {}

    def follow(self, cache: Any) -> None:
        """Read single tokens from the layers of a transformers ``cache``, with the memories laid in front of its context
        (`memory3.attention.kv_cache`).
        """
        places = getattr(cache, "layers", None)
        if places is not self._places:
            grow(cache)
            self._places = places

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
        """Context and memories under one softmax; None where this layer has no memories.

        Args:
            layer: number of the layer in the model, from 0.
            query: ``[B, A, T, d]``, after RoPE.
            key, value: ``[B, H, S, d]``, keys after RoPE.
            bias: the additive mask ``[B, 1, T, S]``, or None.
            causal: without a mask: whether query t sees keys 0..t alone.
            scale: what scores are multiplied with.

        Returns:
            the attention output ``[B, A, T, d]``, or None.
        """
        memory = self.batch.layers.get(layer)
        if memory is None:
            return None
        place = self._places[layer] if self._places and query.shape[2] == 1 and self.tokens is None else None
        if isinstance(place, GrowingLayer) and place.holds(key):
            out, lse = self._decode(layer, query, place, bias, memory, scale)
        else:
            out, lse = attend(query, key, value, bias, memory, self.tokens, causal=causal, scale=scale)
        if query.requires_grad or layer not in self.kept:  # in training nobody asks who was looked at
            return out
        if self._watched is not None:
            rows = torch.arange(query.shape[0], device=query.device)
            query, lse = query[rows, :, self._watched, None], lse[rows, :, self._watched, None]
        self.saw(layer, query, lse, scale)
        return out

    def saw(self, layer: int, query: torch.Tensor, lse: torch.Tensor, scale: float) -> None:
        """Tokens have read these memories; `settle` tells how much attention they paid.

        Args:
            layer: number of the layer in the model, from 0, one of ``kept``.
            query: ``[N, A, C, d]``, after RoPE, of the tokens of each chunk.
            lse: ``[N, A, C]`` over context and memory together.
            scale: what scores were multiplied with.
        """
        self._seen.setdefault(layer, []).append((query, lse))
        self._scale = scale

    def _decode(
        self,
        layer: int,
        query: torch.Tensor,
        place: GrowingLayer,
        bias: torch.Tensor | None,
        memory: LayerMemory,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token a row against memories and context in one buffer: nothing to merge."""
        rows, heads, pairs, dim = memory.keys.shape
        unused = (heads * pairs - sum(memory.widths)) * rows * dim * 2 * query.element_size()
        apart = unused > (heads - 1) * _WORTH_A_CALL
        widths = memory.widths if apart else (pairs,) * heads  # not apart: padding is laid and masked
        if place.leading is not memory:
            place.lead(memory, memory.keys, memory.values, widths)
            self._bias.pop(layer, None)
        whole = self._joined_bias(query, layer, bias, memory, widths, pairs + place.keys.shape[2])
        if not apart:
            return attention_with_lse(query, *place.joined(pairs), whole, scale=scale)
        group, parts = query.shape[1] // heads, []
        for head, width in enumerate(widths):
            mine = slice(head * group, (head + 1) * group)
            own = None if whole is None else whole[:, mine, :, pairs - width :]
            parts.append(attention_with_lse(query[:, mine], *place.joined(width, head), own, scale=scale))
        outs, lses = zip(*parts, strict=True)
        return torch.cat(outs, dim=1), torch.cat(lses, dim=1)

    def _joined_bias(
        self,
        query: torch.Tensor,
        layer: int,
        bias: torch.Tensor | None,
        memory: LayerMemory,
        widths: Sequence[int],
        length: int,
    ) -> torch.Tensor | None:
        """``[B, A, 1, M + S]``, each head's pairs next to the context; kept with room, since only its context part
        changes from token to token.
        """
        if bias is None and memory.bias is None:
            return None
        whole, pairs = self._bias.get(layer), memory.keys.shape[2]
        if whole is None or whole.shape[-1] < length:
            group = query.shape[1] // len(widths)
            whole = query.new_zeros(query.shape[0], query.shape[1], 1, length + ROOM)
            if memory.bias is not None:
                for head, width in enumerate(widths):
                    whole[:, head * group : (head + 1) * group, :, pairs - width : pairs] = memory.bias[
                        :, head, None, :, :width
                    ]
            self._bias[layer] = whole
        if bias is not None:
            whole[..., pairs:length] = bias
        return whole[..., :length]

    @property
    def seen(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Queries ``[N, A, C, d]`` and lse ``[N, A, C]`` of each layer of ``kept`` since `settle` was called last."""
        return {
            layer: (torch.cat([query for query, _ in kept], dim=2), torch.cat([lse for _, lse in kept], dim=2))
            for layer, kept in self._seen.items()
        }

    @property
    def scale(self) -> float:
        """What the scores of `seen` were multiplied with."""
        return self._scale

    def settle(self, batch: MemoryBatch) -> torch.Tensor:
        """Attention paid since the last call, float32 ``[B, R]``: row n's queries against chunk n of ``batch``."""
        return self.settle_each(batch).sum(1)

    def settle_each(self, batch: MemoryBatch) -> torch.Tensor:
        """The same token by token, float32 ``[B, T, R]``."""
        most = max((len(ids) for ids in batch.references), default=0)
        total: torch.Tensor | None = None
        for layer, kept in self._seen.items():
            if layer not in self.counted:
                continue
            query, lse = (torch.cat(parts, dim=2) for parts in zip(*kept, strict=True))
            paid = memory_mass(query, lse, batch.layers[layer], references=most, scale=self._scale)
            total = paid if total is None else total + paid.to(total.device)
            self.looked += query.shape[1] * query.shape[2]
        self._seen = {}
        # One way from the device to the CPU, whatever the number of layers.
        return torch.zeros(len(batch.references), 0, most) if total is None else total.cpu()
