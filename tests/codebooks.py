"""Small codebooks: drawn by hand where bytes are frozen, fitted in milliseconds where figures are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from bank_writer import SHAPE, HashingWriter

from memory3.codec import Codebook, fit
from memory3.types import Memory, MemoryShape, Reference

#: Two rotated dimension pairs of five dimensions.
ANGLES = torch.tensor([1.0, 0.125])


def memories(count: int = 300, shape: MemoryShape = SHAPE) -> list[Memory]:
    """Memories of the stand-in writer."""
    m3 = HashingWriter(shape)
    return [m3.memory(Reference("d#0", "d", 0, 0, 0, f"text {number}", ())) for number in range(count)]


def fitted(
    codec: str, m3: HashingWriter | None = None, *, angles: torch.Tensor | None = ANGLES, positions: int = 128
) -> Codebook:
    """A codebook for the memories of ``m3``."""
    m3 = m3 or HashingWriter()
    return fit(
        codec,
        memories(shape=m3.shape),
        m3.shape,
        fingerprint=m3.fingerprint,
        positions=positions,
        angles=angles,
        token_vectors=m3.token_vectors,
    )


def by_hand(codec: str, tables: Sequence[tuple[str, torch.Tensor]] = (), positions: int = 128) -> Codebook:
    """A codebook whose numbers are exact in binary: head h has the mean h/4 in every channel, and the width 1/2."""
    tensors = {}
    for side in ("keys", "values"):
        heads = torch.arange(SHAPE.heads).float()[:, None]
        tensors[f"{side}.mean"] = (heads / 4).repeat(1, SHAPE.head_dim)
        tensors[f"{side}.scale"] = torch.full((SHAPE.heads, SHAPE.head_dim), 0.5)
        tensors[f"{side}.angles"] = torch.zeros(0)
        tensors |= {f"{side}.{name}": tensor for name, tensor in tables}
    return Codebook(codec, "0" * 32, SHAPE, positions, tensors)
