"""Rotary position embeddings (RoPE): move keys and queries to other positions.

Stored keys carry the rotation of the place they were written at. RoPE is relative: R(p + delta) = R(delta) R(p), so a memory is moved by
rotating its keys by the difference. Knows nothing of models: it takes the angles per position.

Symbols: d head dimension, r <= d rotated dimensions, theta the r/2 angles per position (``inv_freq`` in transformers); r = 0: no rotation (NoPE).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["find_rotation", "rotate"]


def rotate(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` by ``positions`` (negative: backwards), pairing dimension i with i + r/2 as Llama-like models do.

    Args:
        x: ``[..., d]``, keys or queries. Dimensions beyond r pass through (partial rotary embeddings).
        positions: broadcastable to ``x.shape[:-1]``, by how many positions to move.
        inv_freq: ``[r/2]`` angle per position; empty: ``x`` as it is.

    Returns:
        Same shape and dtype as ``x``; computed in float32, or in x's own dtype where that is wider.
    """
    half = inv_freq.shape[0]
    precise = torch.promote_types(x.dtype, torch.float32)
    angles = positions.to(precise).unsqueeze(-1) * inv_freq.to(precise)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half].to(precise), x[..., half : 2 * half].to(precise)
    rotated = [(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype)]
    if 2 * half < x.shape[-1]:
        rotated.append(x[..., 2 * half :])
    return torch.cat(rotated, dim=-1)


def find_rotation(
    keys: torch.Tensor, positions: Sequence[int], candidates: Sequence[torch.Tensor], tolerance: float
) -> torch.Tensor | None:
    """Which angles turn the key of the first position into those of the others; None: none of the candidates do.

    Args:
        keys: ``[P, H, d]``, of one token at P positions.
        positions: P of them.
        candidates: angles ``[r/2]`` each.
        tolerance: largest error, as a share of the largest number in ``keys``.
    """
    keys = keys.float()
    by = torch.tensor(positions, device=keys.device) - positions[0]

    def error(angles: torch.Tensor) -> float:
        if 2 * angles.shape[0] > keys.shape[-1]:
            return torch.inf
        return float((rotate(keys[:1].expand_as(keys), by[:, None], angles) - keys).abs().max())

    errors = [error(angles) for angles in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    return candidates[best] if errors[best] <= tolerance * float(keys.abs().max()) else None
