"""Rotation of keys and queries, beside a product of complex numbers."""

from __future__ import annotations

import torch

from memory3.attention.rotary import rotate


def test_rotation_by_complex_numbers() -> None:
    x, freq = torch.randn(3, 7, 10), torch.tensor([1.0, 0.3, 0.02])
    pairs = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones(7, 3), torch.arange(7)[:, None] * freq)
    moved = rotate(x, torch.arange(7), freq)
    torch.testing.assert_close(moved, torch.cat([pairs.real, pairs.imag, x[..., 6:]], -1))
    torch.testing.assert_close(rotate(moved, -torch.arange(7), freq), x)
