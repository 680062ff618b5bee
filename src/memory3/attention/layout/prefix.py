"""The prefix as memory: chunks whose prompt lacks tokens of it read them in front of their own memories.

Symbols: N chunks, H KV heads, b tokens of the prefix, m the most that a chunk lacks, M pairs per head that are laid out
already, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from memory3.attention.kernels import masked
from memory3.attention.rotary import rotate
from memory3.types import LayerMemory

__all__ = ["Prefix", "with_prefix"]

#: Keys and values ``[H, b, d]`` of the prefix, for every layer of the model.
Prefix = Sequence[tuple[torch.Tensor, torch.Tensor]]


def with_prefix(
    layers: Mapping[int, LayerMemory],
    prefix: Prefix,
    tokens: Sequence[int],
    shift: torch.Tensor | None,
    angles: Sequence[torch.Tensor] | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> dict[int, LayerMemory]:
    """Put the end of the prefix in front of what chunks read, in every layer of the model.

    Args:
        layers: what is laid out, ``[N, H, M, d]``; layers without memories are absent.
        prefix: see `Prefix`.
        tokens: per chunk, how many of the last tokens of the prefix it reads.
        shift: int64 ``[N]``, by how many positions they move; None: not at all.
        angles: of every layer, where ``shift`` is given.
        dtype, device: of the model.

    Returns:
        Every layer of the prefix, ``[N, H, m + M, d]``; a chunk that reads fewer than m is padded at the front.
    """
    chunks, most = len(tokens), max(tokens)
    padded = min(tokens) < most
    missing = torch.arange(most, device=device) < most - torch.tensor(tokens, device=device)[:, None]  # [N, m]
    out: dict[int, LayerMemory] = {}
    for layer, (all_keys, all_values) in enumerate(prefix):
        heads = all_keys.shape[0]
        keys, values = (x[:, -most:].to(device, dtype).expand(chunks, heads, most, -1) for x in (all_keys, all_values))
        if shift is not None and angles is not None:
            keys = rotate(keys, shift[:, None, None], angles[layer])
        bias = torch.zeros(chunks, heads, 1, most, dtype=dtype, device=device)
        bias.masked_fill_(missing[:, None, None, :], masked(dtype))
        owner = torch.full((chunks, heads, most), -1, device=device)
        own = layers.get(layer)
        if own is None:
            own_bias = bias if padded else None
            out[layer] = LayerMemory(keys.contiguous(), values.contiguous(), own_bias, owner, (most,) * heads)
            continue
        own_bias = own.bias if own.bias is not None else own.keys.new_zeros(chunks, heads, 1, own.keys.shape[2])
        out[layer] = LayerMemory(
            keys=torch.cat([keys, own.keys], 2),
            values=torch.cat([values, own.values], 2),
            bias=None if own.bias is None and not padded else torch.cat([bias, own_bias], -1),
            owner=torch.cat([owner, own.owner], 2),
            widths=tuple(most + width for width in own.widths),
        )
    return out
