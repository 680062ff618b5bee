"""Rotation of keys and queries, beside a product of complex numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from memory3.attention import rotary
from memory3.attention.rotary import rotate, rotate_pairs, rotate_vectors


def test_rotation_by_complex_numbers() -> None:
    x, freq = torch.randn(3, 7, 10), torch.tensor([1.0, 0.3, 0.02])
    pairs = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones(7, 3), torch.arange(7)[:, None] * freq)
    moved = rotate(x, torch.arange(7), freq)
    torch.testing.assert_close(moved, torch.cat([pairs.real, pairs.imag, x[..., 6:]], -1))
    torch.testing.assert_close(rotate(moved, -torch.arange(7), freq), x)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("rotated", [6, 10], ids=["partly", "wholly"])
def test_many_vectors_at_few_places(rotated: int, device: str) -> None:
    """To the last bit on the CPU, in either order of dimensions: records are decoded by these."""
    half, n = rotated // 2, 301
    freq = torch.rand(half, device=device)
    x, positions = torch.randn(n, 10, device=device), torch.randint(-7, 120, (n,), device=device)
    wanted, exact = rotate(x, positions, freq), 0 if device == "cpu" else 1e-6
    torch.testing.assert_close(rotate_vectors(x, positions, freq), wanted, rtol=exact, atol=exact)
    short = rotate_vectors(x, positions, freq, torch.float16)
    torch.testing.assert_close(short, wanted.half(), rtol=exact * 1000, atol=exact * 1000)
    paired = x[:, :rotated].unflatten(1, (2, half)).transpose(1, 2).flatten(1).contiguous()
    found = rotate_pairs(paired, positions, freq)
    torch.testing.assert_close(found.flatten(1), wanted[:, :rotated], rtol=1e-5, atol=1e-6)


def test_nothing_to_rotate() -> None:
    x, none = torch.randn(3, 10), torch.zeros(0)
    assert rotate_vectors(x, torch.arange(3), none) is x
    assert torch.equal(rotate_vectors(x, torch.arange(3), none, torch.float16), x.half())
    assert len(rotate_vectors(x[:0], torch.arange(0), torch.rand(3))) == 0
    torch.testing.assert_close(rotate(x, torch.arange(3), none), x, rtol=0, atol=0)


def test_nobody_else_rotates() -> None:
    """Cosines, sines and complex numbers are needed for nothing else."""
    source = Path(rotary.__file__).parents[1]
    needed = {"cos", "sin", "polar", "view_as_complex", "complex"}
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in needed
    }
    assert found == {"attention/rotary.py"}
