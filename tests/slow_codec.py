"""Slow twins of the codec's fast ways, as they were before: Viterbi's algorithm with every choice kept, vectors whose
predicted and coded parts are made one by one.

from slow_codec import decoded, windows
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memory3.attention.rotary import rotate
from memory3.codec import CodedCodec
from memory3.codec.latents import token_features
from memory3.codec.rows import fields

__all__ = ["decoded", "windows"]

STATES = 256


def windows(
    numbers: torch.Tensor, bits: Sequence[int], weights: torch.Tensor, table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best stream's windows, int64 ``[n, T]``, for numbers ``[n, T]``, and what each stream costs, ``[n]``."""
    rows = len(numbers)
    cost = numbers.new_full((rows, STATES), torch.inf)
    cost[:, 0] = 0
    left: list[torch.Tensor] = []  # the bits that left on the best way to what stayed
    for t, size in enumerate(bits):
        best, bottom = cost.view(rows, STATES >> size, 1 << size).min(2)
        left.append(bottom)
        error = (numbers[:, t, None] - table[size]).square() * weights[t]
        cost = (best[:, None, :] + error.view(rows, 1 << size, STATES >> size)).view(rows, STATES)
    least, state = cost.min(1)
    found = torch.empty(rows, len(bits), dtype=torch.int64)
    for t in reversed(range(len(bits))):
        found[:, t] = state
        stayed = state & ((STATES >> bits[t]) - 1)
        state = stayed << bits[t] | left[t].gather(1, stayed[:, None])[:, 0]
    return found, least


def decoded(codec: CodedCodec, records: Sequence[bytes], vectors: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values, float32, of records of codec ``predicted``: what tokens say head by head, what is coded head by head,
    each turned by itself, and added up.
    """
    book = codec.codebook
    (now, before), out = book.tensors["foretelling.project"].float(), book.tensors["foretelling.out"].float()
    both = []
    for record in records:
        counts, positions, *coded, tokens = codec._layout._parts(record)
        heads = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        places = torch.from_numpy(positions[: len(heads)].astype(np.int64))
        features = token_features(vectors[torch.from_numpy(tokens.astype(np.int64))])
        latents = features @ now
        latents[1:] += features[:-1] @ before
        predicted = torch.stack([latents[p] @ out[h] for h, p in zip(heads, places, strict=True)]).chunk(2, dim=1)
        sides = []
        for name, codes, known in zip(("keys", "values"), coded, predicted, strict=True):
            side = book.side(name)
            bits = [int(size) for size in side["bits"].flip(0) if size]
            padded = torch.nn.functional.pad(torch.from_numpy(codes[: len(heads)].copy()), (1, 0))
            window = fields(padded, [8] * len(bits), np.cumsum(bits).tolist()).long()
            z = side["table"][torch.tensor(bits), window]
            synthesis = torch.linalg.inv(side["analysis"])[:, : len(bits)].flip(1)
            rest = torch.stack([side["mean"][h] + row @ synthesis[h] for h, row in zip(heads, z, strict=True)])
            sides.append(rotate(rest, places, side["angles"]) + rotate(known, places, side["angles"]))
        both.append((sides[0], sides[1]))
    return both
