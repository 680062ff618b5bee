"""Chunks of a batch once more: for beams, or for those rows that go on reading."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memory3.types import LayerMemory, MemoryBatch

__all__ = ["select_chunks"]


def select_chunks(batch: MemoryBatch, chunks: Sequence[int]) -> MemoryBatch:
    """The batch whose chunk i is chunk ``chunks[i]`` of ``batch``: beams, or the last prompt chunk of every row.

    Layers keep their padding, M of ``batch``. The batch itself where nothing changes.
    """
    if list(chunks) == list(range(len(batch.references))):
        return batch
    index = torch.tensor(list(chunks))
    layers = {}
    for number, layer in batch.layers.items():
        at = index.to(layer.keys.device)
        bias = None if layer.bias is None else layer.bias[at]
        layers[number] = LayerMemory(layer.keys[at], layer.values[at], bias, layer.owner[at], layer.widths)
    return MemoryBatch(layers=layers, references=[batch.references[c] for c in chunks])
