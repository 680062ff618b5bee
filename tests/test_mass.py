"""Biases of kept pairs: least squares on the attention mass, against the plain solver; and reading them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from memory3.attention.attend import attention_with_lse
from memory3.attention.layout import gather_memories
from memory3.encode.mass import MOST, fitted_biases, gram
from memory3.types import Memory, MemoryShape

HEADS, GROUP, QUERIES, TOKENS = 2, 3, 17, 11


def _attention(seed: int = 0) -> torch.Tensor:
    """``[H, G, T, S]``, rows that pay less than 1 in all, as where a prefix is seen too."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(HEADS, GROUP, QUERIES, TOKENS + 1, generator=generator)
    return logits.softmax(-1)[..., 1:]


def _plain(attention: torch.Tensor, kept: torch.Tensor, ridge: float) -> np.ndarray:
    """Weights of the kept pairs of one head, ``[G, T, S]``: the sum of the module, row by row, by Lawson and Hanson."""
    rows = attention.flatten(0, 1).double().numpy()
    mine = rows[:, kept.numpy()]
    held = np.diag(np.sqrt(ridge * (mine**2).sum(0)))
    return nnls(np.vstack([mine, held]), np.concatenate([rows.sum(1), held.sum(1)]))[0]


@pytest.mark.parametrize("ridge", [0.0, 0.1, 1.0])
def test_equals_the_plain_solver(ridge: float) -> None:
    attention = _attention()
    kept = torch.rand(HEADS, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.5
    found = fitted_biases(gram(attention), kept, ridge)
    for head in range(HEADS):
        expected = np.clip(_plain(attention[head], kept[head], ridge), math.exp(-MOST), math.exp(MOST))
        # what the bound moves moves the others a little, so that only weights within it are the plain ones
        assert expected.min() > math.exp(-MOST) or ridge == 0.0
        if expected.min() > math.exp(-MOST):
            np.testing.assert_allclose(found[head][kept[head]].exp().numpy(), expected, rtol=1e-3)
    assert bool((found[~kept] == 0).all())


def test_what_is_kept_draws_what_all_drew() -> None:
    attention = _attention(2)
    kept = torch.arange(TOKENS).expand(HEADS, TOKENS) % 3 != 0
    weights = fitted_biases(gram(attention), kept, 0.0).exp() * kept
    whole = attention.sum(-1)
    before = (attention * kept[:, None, None]).sum(-1) - whole
    after = (attention * weights[:, None, None]).sum(-1) - whole
    assert float(after.square().sum()) < 0.8 * float(before.square().sum())


def test_all_kept_is_no_bias() -> None:
    kept = torch.ones(HEADS, TOKENS, dtype=torch.bool)
    assert bool((fitted_biases(gram(_attention()), kept, 0.1) == 0).all())


def test_one_of_twins_stands_for_both() -> None:
    attention = _attention()[..., :4]
    attention[..., 1] = attention[..., 0]
    found = fitted_biases(gram(attention), torch.tensor([[True, False, True, True]]).expand(HEADS, 4), 0.0)
    expected = torch.tensor([math.log(2), 0, 0, 0]).expand(HEADS, 4)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_pair_with_a_bias_is_read_as_several() -> None:
    """A bias of log 3 is the pair three times; a memory beside it without biases is read as it was."""
    generator = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, 5, 4, generator=generator).unbind()
    shape = MemoryShape(layers=(0,), kv_heads=2, head_dim=4, pairs=9, dtype="float32")

    def memory(counts: list[int], rows: list[int], biases: torch.Tensor | None) -> Memory:
        places = np.zeros(len(rows), np.uint16)
        return Memory(np.array([counts], np.uint16), places, keys[rows], values[rows], biases=biases)

    biased = memory([1, 2], [0, 1, 2], torch.tensor([0.0, math.log(3), 0.0]))
    twice = memory([1, 4], [0, 1, 1, 1, 2], None)
    plain = memory([1, 1], [3, 4], None)
    query = torch.randn(1, 4, 3, 4, generator=generator)
    read = []
    for one in (biased, twice):
        batch = gather_memories([["one", "plain"]], {"one": one, "plain": plain}, shape, dtype=torch.float32)
        layer = batch.layers[0]
        read.append(attention_with_lse(query, layer.keys, layer.values, layer.bias, scale=0.5))
    for found, expected in zip(*read, strict=True):
        torch.testing.assert_close(found, expected)
