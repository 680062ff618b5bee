"""A cache layer that grows in place and keeps what a model reads in front of it, so that decoding needs one attention
call on one buffer.

    buffer, head h      (unused) | front (memories, M_h) | context (S) | room

transformers' own dynamic layer copies all keys and values at every token. Here a token is written into the room behind
the context, and memories that take the place of others are written where those were. `keys` and `values` stay what others
take them for: the context alone, as views. The front is no part of the cache: no length, position or mask counts it.

Symbols: B rows, H KV heads, S context length, M_h memory pairs of head h, M the largest of them, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

__all__ = ["ROOM", "GrowingLayer", "grow"]

#: Tokens a new buffer has room for.
ROOM = 64


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` with room to grow and a front. Behaves as one in everything else.

    Attributes:
        leading: whatever `lead` was given last, while it stands in front of the context; None: nothing does.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        """Takes over the keys and values of ``layer``."""
        super().__init__()
        vars(self).update(vars(layer))
        self.leading: object | None = None
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._start = 0  # where the context starts in the buffers
        self._view: torch.Tensor | None = None  # `keys` as this class set it; anything else was put there by others

    def lead(self, what: object, keys: torch.Tensor, values: torch.Tensor, widths: Sequence[int]) -> None:
        """Put memories in front of the context, in place of those that stood there.

        Args:
            what: kept as `leading`.
            keys, values: ``[B, H, M, d]``.
            widths: how many of the M pairs of each head are laid; the rest are left out.
        """
        pairs = keys.shape[2]
        if not self._fits(0) or pairs > self._start:
            self._lay(pairs + pairs // 4, 0)  # the next memories may need a little more
        assert self._buffers is not None
        for buffer, front in zip(self._buffers, (keys, values), strict=True):
            for head, width in enumerate(widths):  # apart: the unused part need not even be fetched from the system
                buffer[:, head, self._start - width : self._start] = front[:, head, :width]
        self.leading = what

    def joined(self, pairs: int, head: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The last ``pairs`` of the front and the context, keys and values ``[B, H or 1, pairs + S, d]``, of all heads or
        one; views.
        """
        assert self._buffers is not None
        heads = slice(None) if head is None else slice(head, head + 1)
        where = slice(self._start - pairs, self._start + self.keys.shape[2])
        keys, values = self._buffers
        return keys[:, heads, where], values[:, heads, where]

    def holds(self, key: torch.Tensor) -> bool:
        """Is ``key`` this layer's context, in this layer's buffer?"""
        return key is self._view

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append keys and values to the cache, in place while the buffer has room.

        Args:
            key_states, value_states: of the new tokens, ``[B, H, new, d]``.

        Returns:
            all keys and values, ``[B, H, S, d]``; views of the buffer.
        """
        if key_states.requires_grad or not self.is_initialized or self.get_seq_length() == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        new, length = key_states.shape[2], self.keys.shape[2]
        if not self._fits(new):
            self._lay(self._start if self.keys is self._view else 0, new)
        assert self._buffers is not None
        end = self._start + length
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, end : end + new] = states
        self._show(length + new)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Permute the context, not the front: the caller knows whether rows read the same. See
        `DynamicLayer.reorder_cache`.
        """
        if self._buffers is None or self.keys is not self._view:
            return super().reorder_cache(beam_idx)
        for whole, part in zip(self._buffers, (self.keys, self.values), strict=True):
            whole[:, :, self._start : self._start + part.shape[2]] = part.index_select(0, beam_idx.to(part.device))
        return None

    def _fits(self, new: int) -> bool:
        if self._buffers is None or self.keys is not self._view:
            return False
        whole = self._buffers[0]
        # A buffer made in inference mode cannot be written to outside of it.
        writable = not whole.is_inference() or torch.is_inference_mode_enabled()
        return writable and self._start + self.keys.shape[2] + new <= whole.shape[2]

    def _lay(self, start: int, new: int) -> None:
        """New buffers with the context at ``start`` and room behind ``new`` more tokens; a front that still belongs to
        these rows goes along.
        """
        old, front = self._buffers, min(self._start, start)
        if self.keys is not self._view:
            front, self.leading = 0, None
        length, buffers = self.keys.shape[2], []
        for number, context in enumerate((self.keys, self.values)):
            rows, heads, _, dim = context.shape
            whole = context.new_empty(rows, heads, start + length + new + ROOM, dim)
            if front and old is not None:
                whole[:, :, start - front : start] = old[number][:, :, self._start - front : self._start]
            whole[:, :, start : start + length] = context
            buffers.append(whole)
        self._buffers, self._start = (buffers[0], buffers[1]), start
        self._show(length)

    def _show(self, length: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (whole[:, :, self._start : self._start + length] for whole in self._buffers)
        self._view = self.keys


def grow(cache: Any) -> None:
    """Let the plain dynamic layers of a transformers ``cache`` grow in place; layers of other kinds stay as they are."""
    layers = getattr(cache, "layers", None)
    if isinstance(layers, list):
        for number, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[number] = GrowingLayer(layer)
