"""Attention over context and memories against concatenation and masking."""

from __future__ import annotations

import math

import pytest
import torch
from twins import HEAD_DIM as D
from twins import attend_concatenated, moved, random_layer

from memory3.attention import kernels
from memory3.attention.attend import attend, attention_with_lse, masked, memory_mass
from memory3.types import LayerMemory


@pytest.fixture(params=[kernels.CPU, kernels.REFERENCE], ids=lambda kernel: kernel.name)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> kernels.Kernel:
    """The CPU's kernel, and what other devices compute."""
    monkeypatch.setattr(kernels, "KERNELS", (request.param,))
    return request.param


@pytest.mark.parametrize("heads", [6, 2], ids=["gqa", "mha"])
@pytest.mark.parametrize("context", ["causal", "left padding", "right padding"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.usefixtures("kernel")
def test_merge_equals_concatenation(heads: int, context: str, padded: bool) -> None:
    rows, tokens, chunks = 3, 11, 5
    g = torch.Generator().manual_seed(1)
    query = torch.randn(rows, heads, tokens, D, generator=g)
    key, value = (torch.randn(rows, 2, tokens, D, generator=g) for _ in range(2))
    bias, causal = None, context == "causal"
    if not causal:
        real = torch.ones(rows, tokens, dtype=torch.bool)
        real[1, slice(0, 4) if context == "left padding" else slice(7, None)] = False
        allowed = real[:, None, None, :] & torch.ones(tokens, tokens, dtype=torch.bool).tril()
        bias = torch.zeros(rows, 1, tokens, tokens).masked_fill(~allowed, masked(torch.float32))
    # Chunks of unequal length; some tokens are in none.
    table = torch.tensor([[1, 2, 3], [4, 5, -1], [15, 16, 17], [18, -1, -1], [30, 31, 32]])
    memory = random_layer(chunks, 2, 7, padded=padded)
    inputs = [query, key, value, memory.keys, memory.values]
    for x in inputs:
        x.requires_grad_()
    fast = attend(query, key, value, bias, memory, table, causal=causal, scale=0.3)
    slow = attend_concatenated(query, key, value, bias, memory, table, causal=causal, scale=0.3)
    seen = torch.ones(rows, tokens, dtype=torch.bool)
    if context == "left padding":
        seen[1, :4] = False  # a padded query sees nothing; whatever it says is never read
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.transpose(1, 2)[seen], b.transpose(1, 2)[seen], rtol=1e-5, atol=1e-5)
    wanted = torch.randn(seen.sum(), heads, D, generator=g)
    ours, theirs = (torch.autograd.grad((x[0].transpose(1, 2)[seen] * wanted).sum(), inputs) for x in (fast, slow))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_merge_of_one_token_by_hand() -> None:
    # One query, one memory with logit ln 3, one context key with logit 0: weights 3/4 and 1/4.
    query = torch.tensor([[[[1.0, 0.0]]]])
    key, value = torch.tensor([[[[0.0, 5.0]]]]), torch.tensor([[[[4.0, 0.0]]]])
    memory = LayerMemory(
        torch.tensor([[[[math.log(3), 9.0]]]]),
        torch.tensor([[[[0.0, 8.0]]]]),
        None,
        torch.zeros(1, 1, 1, dtype=torch.long),
        (1,),
    )
    out, lse = attend(query, key, value, None, memory, None, scale=1.0)
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 6.0]))
    torch.testing.assert_close(lse.flatten(), torch.tensor([math.log(4)]))
    torch.testing.assert_close(memory_mass(query, lse, memory, references=2, scale=1.0), torch.tensor([[[0.75, 0.0]]]))


@pytest.mark.usefixtures("kernel")
def test_decode_step_equals_concatenation() -> None:
    rows, heads, length = 5, 6, 13
    g = torch.Generator().manual_seed(2)
    query = torch.randn(rows, heads, 1, D, generator=g)
    key, value = (torch.randn(rows, 2, length, D, generator=g) for _ in range(2))
    memory = random_layer(rows, 2, 7)
    fast = attend(query, key, value, None, memory, None, scale=0.3)
    slow = attend_concatenated(query, key, value, None, memory, None, scale=0.3)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_head_without_pairs_changes_nothing() -> None:
    g = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(1, 6, 1, D, generator=g), *(torch.randn(1, 2, 4, D, generator=g) for _ in range(2))
    memory = random_layer(1, 2, 7)
    assert memory.bias is not None
    memory.bias[:] = masked(torch.float32)
    out, _ = attend(query, key, value, None, memory, None, scale=0.3)
    alone, _ = attention_with_lse(query, key, value, scale=0.3)
    torch.testing.assert_close(out, alone)


@pytest.mark.usefixtures("kernel")
def test_fused_attention_equals_the_formula() -> None:
    g = torch.Generator().manual_seed(4)
    query, key = torch.randn(2, 6, 5, D, generator=g), torch.randn(2, 2, 5, D, generator=g)
    out, lse = attention_with_lse(query, key, key, causal=True, scale=0.5)
    for row in range(2):
        for head in range(6):
            for t in range(5):
                logits = torch.stack([query[row, head, t] @ key[row, head // 3, j] * 0.5 for j in range(t + 1)])
                torch.testing.assert_close(out[row, head, t], torch.softmax(logits, 0) @ key[row, head // 3, : t + 1])
                torch.testing.assert_close(lse[row, head, t], torch.logsumexp(logits, 0))


def test_memory_mass_counts_every_weight_once() -> None:
    g = torch.Generator().manual_seed(5)
    query, key, value = torch.randn(2, 6, 4, D, generator=g), *(torch.randn(2, 2, 4, D, generator=g) for _ in range(2))
    memory = random_layer(2, 2, 7)
    table = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    _, lse = attend(query, key, value, None, memory, table, causal=True, scale=0.3)
    mass = memory_mass(query, lse, memory, references=3, scale=0.3)
    expected = torch.zeros(2, 4, 3)
    for n in range(2):
        for head in range(6):
            for t in range(4):
                for m in range(7):
                    if memory.owner[n, head // 3, m] >= 0:
                        logit = query[n, head, t] @ memory.keys[n, head // 3, m] * 0.3
                        expected[n, t, memory.owner[n, head // 3, m]] += torch.exp(logit - lse[n, head, t])
    torch.testing.assert_close(mass, expected)


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no numbers: who counts or looks at them fails."""
    query = torch.randn(3, 6, 11, D, device="meta")
    key = torch.randn(3, 2, 11, D, device="meta")
    table = torch.tensor([[1, 2, 3], [4, 5, -1], [15, 16, 17], [18, -1, -1], [30, 31, 32]], device="meta")
    out, lse = attend(query, key, key, None, moved(random_layer(5, 2, 7), "meta"), table, causal=True, scale=0.3)
    assert (out.shape, lse.shape) == (query.shape, query.shape[:3])
    memory = moved(random_layer(3, 2, 7), "meta")
    out, lse = attend(query, key, key, None, memory, None, causal=True, scale=0.3)
    assert memory_mass(query, lse, memory, references=3, scale=0.3).shape == (3, 11, 3)
