"""Memories whose tokens say most of their keys and values.

from told import SHAPE, VECTORS, told
"""

from __future__ import annotations

import numpy as np
import torch
from codebooks import ANGLES

from memory3.codec.centring import turned
from memory3.codec.latents import token_features
from memory3.types import Memory, MemoryShape

__all__ = ["SHAPE", "VECTORS", "told"]

SHAPE = MemoryShape((1, 4, 6), 2, 5, 211)
VECTORS = torch.from_numpy(np.random.default_rng(5).standard_normal((300, 11), dtype=np.float32))


def told(count: int = 200, noise: float = 0.3, seed: int = 0) -> list[Memory]:
    """Memories of which most is a linear map of the token and the one in front of it, another for each head."""
    rng = torch.Generator().manual_seed(seed)
    maps = torch.randn(SHAPE.heads, 22, 2 * SHAPE.head_dim, generator=torch.Generator().manual_seed(99)) / 22**0.5
    features = token_features(VECTORS)
    out = []
    for _ in range(count):
        tokens = torch.randint(0, 300, (128,), generator=rng)
        counts = torch.randint(0, SHAPE.pairs // SHAPE.heads + 1, (SHAPE.heads,), generator=rng)
        heads = torch.repeat_interleave(torch.arange(SHAPE.heads), counts)
        places = torch.randint(0, 128, (len(heads),), generator=rng)
        now, behind = features[tokens[places]], features[tokens[(places - 1).clamp(min=0)]] * (places > 0)[:, None]
        y = torch.einsum("ne,ned->nd", torch.cat([now, behind], 1), maps[heads])
        y += noise * torch.randn(y.shape, generator=rng) + 0.5 * heads[:, None]
        keys, values = y.chunk(2, 1)
        out.append(
            Memory(
                counts.numpy().astype(np.uint16).reshape(len(SHAPE.layers), SHAPE.kv_heads),
                places.numpy().astype(np.uint16),
                turned(keys.contiguous(), places, ANGLES).to(SHAPE.torch_dtype),
                values.to(SHAPE.torch_dtype),
                tokens.numpy().astype(np.uint32),
            )
        )
    return out
