"""The cache layer that grows in place, beside transformers' own; and decoding from it, beside concatenation."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from twins import attend_concatenated, random_layer

from memory3.attention import reading
from memory3.attention.attend import masked
from memory3.attention.kv_cache import ROOM, GrowingLayer, grow
from memory3.attention.reading import Reading
from memory3.types import MemoryBatch

ROWS, HEADS, DIM = 3, 2, 5


def states(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, ROWS, HEADS, tokens, DIM, generator=g)
    return keys, values


def pair() -> tuple[DynamicLayer, GrowingLayer]:
    """transformers' layer with seven tokens, and ours made of another like it."""
    stock, taken = DynamicLayer(), DynamicLayer()
    for layer in (stock, taken):
        layer.update(*states(7, seed=0))
    return stock, GrowingLayer(taken)


def front(pairs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return states(pairs, seed)


def same(stock: DynamicLayer, ours: GrowingLayer) -> None:
    torch.testing.assert_close(ours.keys, stock.keys, rtol=0, atol=0)
    torch.testing.assert_close(ours.values, stock.values, rtol=0, atol=0)
    assert ours.get_seq_length() == stock.get_seq_length()


@pytest.mark.parametrize("pairs", [None, 11], ids=["no front", "front"])
def test_grows_like_transformers_own(pairs: int | None) -> None:
    stock, ours = pair()
    if pairs:
        ours.lead("first", *front(pairs, 99), (pairs, pairs))
    for step in range(2 * ROOM + 3):
        new = states(1 + step % 2, seed=step)
        for a, b in zip(stock.update(*new), ours.update(*new), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert ours.holds(ours.keys)
    same(stock, ours)
    if pairs:
        assert ours.leading == "first"
        keys, _ = ours.joined(pairs)
        torch.testing.assert_close(keys, torch.cat([front(pairs, 99)[0], stock.keys], 2), rtol=0, atol=0)


def test_another_front_takes_the_place_of_the_first() -> None:
    stock, ours = pair()
    for number, pairs in enumerate((3, 11, 2, 5)):  # larger, smaller
        keys, values = front(pairs, number)
        ours.lead(number, keys, values, (pairs, pairs - 1))
        for part in (stock, ours):
            part.update(*states(1, seed=number))
        same(stock, ours)
        for head, width in enumerate((pairs, pairs - 1)):
            joined_keys, joined_values = ours.joined(width, head)
            torch.testing.assert_close(
                joined_keys[:, 0], torch.cat([keys[:, head, :width], stock.keys[:, head]], 1), rtol=0, atol=0
            )
            torch.testing.assert_close(
                joined_values[:, 0], torch.cat([values[:, head, :width], stock.values[:, head]], 1), rtol=0, atol=0
            )


def test_rows_are_permuted_and_others_may_replace_keys() -> None:
    stock, ours = pair()
    ours.lead("memory", *front(3, 5), (3, 3))
    order = torch.tensor([2, 0, 0])
    for layer in (stock, ours):
        layer.reorder_cache(order)
        layer.update(*states(1, seed=1))
    same(stock, ours)
    assert ours.leading == "memory"
    torch.testing.assert_close(ours.joined(3)[0][:, :, :3], front(3, 5)[0], rtol=0, atol=0)
    for layer in (stock, ours):
        layer.crop(-2)
        layer.update(*states(1, seed=2))
        layer.batch_select_indices(torch.tensor([1, 2]))
        layer.update(*(x[:2] for x in states(1, seed=3)))
    same(stock, ours)
    assert ours.leading is None  # rows have changed: what stood in front is no longer theirs


def test_inference_mode_may_end_and_gradients_may_be_wanted() -> None:
    stock, ours = pair()
    with torch.inference_mode():
        for layer in (stock, ours):
            layer.update(*states(1, seed=1))
    for layer in (stock, ours):
        layer.update(*states(1, seed=2))
    same(stock, ours)
    keys, values = states(1, seed=3)
    out, _ = ours.update(keys.requires_grad_(), values)
    out.sum().backward()
    assert keys.grad is not None


def test_only_plain_dynamic_layers_are_taken() -> None:
    cache = DynamicCache()
    cache.update(*states(2, 0), 0)
    grow(cache)
    grow(cache)
    assert type(cache.layers[0]) is GrowingLayer
    assert cache.get_seq_length() == 2
    grow(None)  # no cache: nothing to do


@pytest.mark.parametrize("worth", [0, 1 << 30], ids=["head by head", "all heads at once"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("left_padding", [False, True])
def test_decoding_from_it_equals_concatenation(
    worth: int, ragged: bool, left_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_WORTH_A_CALL", worth)
    group, dim = 3, 10
    g = torch.Generator().manual_seed(1)
    cache = DynamicCache()
    cache.update(*torch.randn(2, ROWS, HEADS, 7, dim, generator=g), 0)
    memory = random_layer(ROWS, HEADS, 11, padded=ragged, seed=4)
    reader = Reading(MemoryBatch({0: memory}, [["a", "b", "c"]] * ROWS))
    for step in range(5):
        reader.follow(cache)
        query = torch.randn(ROWS, HEADS * group, 1, dim, generator=g)
        key, value = cache.update(*torch.randn(2, ROWS, HEADS, 1, dim, generator=g), 0)
        bias = None
        if left_padding:
            bias = torch.zeros(ROWS, 1, 1, key.shape[2])
            bias[1, ..., :4] = masked(torch.float32)
        out = reader.attend(0, query, key, value, bias, causal=False, scale=0.3)
        expected, lse = attend_concatenated(query, key, value, bias, memory, None, scale=0.3)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reader._seen[0][step][1], lse, rtol=1e-5, atol=1e-5)
    assert cache.layers[0].leading is memory
