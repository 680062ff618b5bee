"""The attention backend for vLLM's CPU platform: its own, and for rows that read memories ours over what its cache holds.

A step in which nobody reads goes to vLLM's kernel as it is. Otherwise vLLM's kernel computes all rows, and those that read
are computed anew and written over; where all rows read it is not called.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl, CPUAttentionMetadataBuilder

from memory3.vllm.reading import Context, StepReading

__all__ = ["READING", "MemoryAttentionBackend", "context_of"]

#: Attribute of vLLM's attention metadata under which the connector leaves a step's `StepReading`.
READING = "memory3_reading"
#: The order of numbers in the cache that we read; others are for matrix units of one kind of processor.
_ISA = "vec"


class _Builder(CPUAttentionMetadataBuilder):
    """Keeps the cache in the order that we read, also where the processor has matrix units with an order of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.isa = _ISA
        self._set_isa_to_layers(self.layer_names)


class _Impl(CPUAttentionBackendImpl):
    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As vLLM's, with memories under the same softmax in rows that read.

        Args:
            layer: of the model.
            query: ``[T, A, d]``, after RoPE.
            key, value: ``[T, H, d]``; in the cache already.
            kv_cache: ``[blocks, H, b, 2 d]``.
            attn_metadata: of the step; None while vLLM warms up.
            output: ``[T, A, d]``, written to.
            output_scale, output_block_scale: of quantised outputs, which the CPU has not.
        """
        reading: StepReading | None = getattr(attn_metadata, READING, None)
        if reading is None or not reading.is_all:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if reading is not None:
            reading.attend(extract_layer_index(layer.layer_name), query, key, value, context_of(kv_cache), output, self.scale)
        return output

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Write keys and values into the cache; keys of tokens in front of memories where memory3 has them.

        Args:
            layer: of the model.
            key, value: ``[T, H, d]``.
            kv_cache: see `forward`.
            slot_mapping: int64 ``[T]``, where each goes.
        """
        metadata = get_forward_context().attn_metadata
        own = metadata.get(layer.layer_name) if isinstance(metadata, dict) else metadata
        reading: StepReading | None = getattr(own, READING, None)
        if reading is not None:
            key = reading.placed(extract_layer_index(layer.layer_name), key)
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)


class MemoryAttentionBackend(CPUAttentionBackend):
    """vLLM's CPU backend, whose rows may read memories."""

    @staticmethod
    def get_impl_cls() -> type[_Impl]:
        """What computes."""
        return _Impl

    @staticmethod
    def get_builder_cls() -> type[_Builder]:
        """What makes a step's metadata."""
        return _Builder


def context_of(kv_cache: torch.Tensor) -> Context:
    """A layer's paged cache, as `memory3.vllm.reading` sees it.

    Args:
        kv_cache: ``[blocks, H, b, 2 d]``.
    """
    blocks, heads, tokens, both = kv_cache.shape
    dim = both // 2
    halves = kv_cache.view(blocks, heads, 2, tokens * dim)
    return Context(
        halves[:, :, 0].view(blocks, heads, dim, tokens), halves[:, :, 1].view(blocks, heads, tokens, dim), keys_turned=True
    )
