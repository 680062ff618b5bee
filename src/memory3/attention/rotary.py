"""Rotary position embeddings (RoPE): move keys and queries to other positions. The only place that does.

Stored keys carry the rotation of the place they were written at. RoPE is relative: R(p + delta) = R(delta) R(p), so a
memory is moved by rotating its keys by the difference. Knows nothing of models: it takes the angles per position.

    `rotate`            any shape, any positions
    `rotate_vectors`    the same of many vectors at few places: what a place needs is computed once
    `rotate_pairs`      that, of vectors whose paired dimensions stand side by side: one product of complex numbers, the
    fastest on a CPU

Symbols: n vectors, d head dimension, r <= d rotated dimensions, theta the r/2 angles per position (``inv_freq`` in
    transformers); r = 0: no rotation (NoPE).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["find_rotation", "rotate", "rotate_pairs", "rotate_vectors"]


def rotate(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` by ``positions`` (negative: backwards), pairing dimension i with i + r/2 as Llama-like models do.

    Args:
        x: ``[..., d]``, keys or queries. Dimensions beyond r pass through (partial rotary embeddings).
        positions: broadcastable to ``x.shape[:-1]``, by how many positions to move.
        inv_freq: ``[r/2]`` angle per position; empty: ``x`` as it is.

    Returns:
        Same shape and dtype as ``x``; computed in float32, or in x's own dtype where that is wider.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    angles = positions.to(precise).unsqueeze(-1) * inv_freq.to(precise)
    return _turned(x, angles.cos(), angles.sin())


def rotate_vectors(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What `rotate` gives, for many vectors at few places.

    Args:
        x: float32 ``[n, d]``.
        positions: int64 ``[n]``, best on the CPU, wherever ``x`` lies.
        inv_freq: float32 ``[r/2]``.
        dtype: of the result.

    Returns:
        ``[n, d]``; ``x`` itself where nothing is rotated and it is of the dtype.
    """
    if not inv_freq.shape[0] or not len(x):
        return x.to(dtype)
    angles, place = _places(positions, inv_freq)
    cos, sin, half = angles.cos().index_select(0, place), angles.sin().index_select(0, place), inv_freq.shape[0]
    # As `_turned` does it, each half into the place where it is wanted.
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    a, b = x[:, :half], x[:, half : 2 * half]
    turned = torch.mul(a, cos)
    out[:, :half] = turned.sub_(other := torch.mul(b, sin))
    torch.mul(b, cos, out=turned)
    out[:, half : 2 * half] = turned.add_(torch.mul(a, sin, out=other))
    out[:, 2 * half :] = x[:, 2 * half :]
    return out


def rotate_pairs(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """What `rotate_vectors` gives, for vectors that are ordered by pairs: dimensions 2i and 2i + 1 are those that
    `rotate` calls i and i + r/2.

    Args:
        x: float32 ``[n, r]``, contiguous, not empty: written to.
        positions: int64 ``[n]``, best on the CPU, wherever ``x`` lies.
        inv_freq: float32 ``[r/2]``, not empty.

    Returns:
        float32 ``[n, 2, r/2]`` in the order of `rotate`, a view of ``x``.
    """
    angles, place = _places(positions, inv_freq)
    turns = torch.polar(torch.ones_like(angles), angles).index_select(0, place)
    pairs = torch.view_as_complex(x.view(len(x), -1, 2)).mul_(turns)
    return torch.view_as_real(pairs).transpose(1, 2)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` ``[..., d]``, its pairs turned by angles of these cosines and sines, ``[..., r/2]`` and broadcastable."""
    half = cos.shape[-1]
    a, b = x[..., :half].to(cos.dtype), x[..., half : 2 * half].to(cos.dtype)
    rotated = [(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype)]
    if 2 * half < x.shape[-1]:
        rotated.append(x[..., 2 * half :])
    return torch.cat(rotated, dim=-1)


def _places(positions: torch.Tensor, inv_freq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles ``[m, r/2]`` of m places, and which of them each of the positions ``[n]`` is, int64; on the device of
    ``inv_freq``.

    The places are all from the first position to the last: cosines are dear. Where positions lie on another device than the
    CPU, it would have to be waited for before one knew how many those are; there each position is a place of its own.
    """
    device = inv_freq.device
    if positions.device.type != "cpu":
        return torch.outer(positions.float(), inv_freq), torch.arange(len(positions), device=device)
    first = int(positions.min())
    places = torch.arange(first, int(positions.max()) + 1, dtype=torch.float32, device=device)
    return torch.outer(places, inv_freq), (positions - first).to(device)


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
