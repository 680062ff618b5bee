"""The codec's fast ways beside slow twins: products by head, Viterbi's algorithm, decoding in one product, packing several."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import slow_codec
import torch
from bank_writer import SHAPE as BANK_SHAPE
from codebooks import ANGLES, fitted, memories
from told import SHAPE, VECTORS, told

from memory3.codec import CodedCodec, RawCodec, fit, latents, products, viterbi
from memory3.codec.by_head import Runs, _Tiles, arrange
from memory3.codec.joined import Joined, Sums
from memory3.codec.latents import Latents
from memory3.codec.products import product
from memory3.codec.transform import TransformCoder
from memory3.codec.viterbi import best_windows
from memory3.types import Memory, MemoryShape


def without_pairs(memory: Memory) -> Memory:
    return dataclasses.replace(
        memory,
        counts=np.zeros_like(memory.counts),
        positions=memory.positions[:0],
        keys=memory.keys[:0],
        values=memory.values[:0],
    )


# ---- products by head ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Runs, _Tiles])
def test_each_row_times_its_own_matrix(kind):
    """Heads of no row, of one, of more than a tile; in no order."""
    rng = np.random.default_rng(0)
    heads = rng.permutation(np.repeat([0, 2, 3, 6], [1, 71, 32, 7]))
    x, matrices = torch.randn(111, 5), torch.randn(8, 5, 3)
    arranged = kind(heads, 8)
    found = arranged.products(x[torch.from_numpy(arranged.rows)], matrices)[torch.from_numpy(arranged.places)]
    torch.testing.assert_close(found, torch.stack([row @ matrices[head] for row, head in zip(x, heads, strict=True)]))


def test_only_a_cpu_goes_from_head_to_head():
    heads = np.array([1, 0, 1])
    cpu, other = torch.device("cpu"), torch.device("meta")
    kinds = [type(arrange(heads, 2, *how[:1], large=how[1])) for how in ((cpu, True), (cpu, False), (other, True))]
    assert kinds == [Runs, _Tiles, _Tiles]


def test_more_heads_than_16_bits_tell_apart():
    heads = np.array([70_000, 3, 70_000 % 65_536, 3])
    assert Runs(heads, 70_001).rows.tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 48, 211])
def test_a_product_does_not_depend_on_the_rows_beside(rows):
    x, matrix = torch.randn(211, 37), torch.randn(37, 13)
    found = product(x[:rows], matrix)
    torch.testing.assert_close(found, x[:rows] @ matrix, atol=1e-4, rtol=1e-5)
    if products.linear() is not None:
        assert torch.equal(found, product(x, matrix)[:rows])


def test_products_without_onednn(monkeypatch):
    x, matrix = torch.randn(53, 7), torch.randn(7, 5)
    monkeypatch.setattr(products, "linear", lambda: None)
    assert torch.equal(product(x, matrix), x @ matrix)
    assert product(x.double(), matrix.double()).dtype == torch.float64


# ---- Viterbi ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bits", [[1], [8], [1, 1, 2, 1], [5, 8, 1, 7, 3, 2, 6, 4], [2, 6, 6, 1, 8, 8, 1]], ids=lambda bits: "".join(map(str, bits))
)
@pytest.mark.parametrize("at_once", [7, 1000])
def test_the_same_windows_as_the_slow_way(bits, at_once, monkeypatch):
    monkeypatch.setattr(viterbi, "_AT_ONCE", at_once)
    g = torch.Generator().manual_seed(len(bits))
    numbers, weights = torch.randn(53, len(bits), generator=g), torch.rand(len(bits), generator=g) + 0.1
    table = torch.randn(9, 256, generator=g)
    wanted, _ = slow_codec.windows(numbers, bits, weights, table)
    found = best_windows(numbers, bits, weights.tolist(), table)
    assert found.dtype == torch.uint8
    assert torch.equal(found.t().long(), wanted)


def test_of_equals_any_will_do():
    """A table of few values: many streams cost the same, and the one found costs as little as any."""
    g = torch.Generator().manual_seed(0)
    bits, weights = [2, 1, 3, 4, 1], torch.tensor([0.5, 1.0, 2.0, 1.5, 0.25])
    numbers, table = torch.randn(61, 5, generator=g), torch.randint(-2, 3, (9, 256), generator=g).float()
    _, least = slow_codec.windows(numbers, bits, weights, table)
    found = best_windows(numbers, bits, weights.tolist(), table).t().long()
    cost = ((table[torch.tensor(bits), found] - numbers).square() * weights).sum(1)
    torch.testing.assert_close(cost, least)
    for t in range(1, 5):  # and it is a stream: what stays of a window is the lower end of the next
        assert torch.equal(found[:, t] & ((256 >> bits[t]) - 1), found[:, t - 1] >> bits[t])


def test_no_stream_at_all():
    assert best_windows(torch.zeros(0, 3), [1, 2, 3], [1.0] * 3, torch.zeros(9, 256)).shape == (3, 0)


# ---- records ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book():
    return fit("predicted:16+24", told(), SHAPE, fingerprint="f", positions=128, angles=ANGLES, token_vectors=VECTORS)


@pytest.mark.parametrize(("dtype", "near"), [("float16", 2e-3), ("float32", 2e-5)])
@pytest.mark.parametrize("steady", [True, False])
def test_one_product_equals_part_by_part(book, dtype, near, steady, monkeypatch):
    monkeypatch.setattr(Sums, "are_steady", lambda sums: steady)
    shape = MemoryShape(SHAPE.layers, SHAPE.kv_heads, SHAPE.head_dim, SHAPE.pairs, dtype)
    codec = CodedCodec(dataclasses.replace(book, shape=shape)).with_vectors(VECTORS)
    given = [
        dataclasses.replace(m, keys=m.keys.to(shape.torch_dtype), values=m.values.to(shape.torch_dtype))
        for m in told(7, seed=3)
    ]
    given.insert(2, without_pairs(given[0]))
    records = codec.encode_many(given)
    rng = np.random.default_rng(0)
    for n in (0, 4):  # any code stands for a vector
        codes = len(records[n]) - 256 - shape.pairs * 5
        records[n] = records[n][:codes] + rng.bytes(shape.pairs * 5) + records[n][-256:]
    found = codec.decode(records)
    assert len(found[2].keys) == len(found[2].values) == 0
    kept = [n for n in range(len(records)) if n != 2]
    for memory, (keys, values) in zip(
        (found[n] for n in kept), slow_codec.decoded(codec, [records[n] for n in kept], VECTORS), strict=True
    ):
        assert memory.keys.dtype == memory.values.dtype == shape.torch_dtype
        torch.testing.assert_close(memory.keys.float(), keys, atol=near, rtol=near)
        torch.testing.assert_close(memory.values.float(), values, atol=near, rtol=near)
        assert memory.keys.untyped_storage().nbytes() == memory.keys.nbytes  # its own bytes
        assert memory.values.untyped_storage().nbytes() == memory.values.nbytes


def test_sums_are_those_of_each_row():
    """Heads of two rows, which are multiplied with some of the next one's, of none and of 29."""
    out, mean, synthesis = torch.randn(3, 11, 32), torch.randn(3, 32), [torch.randn(3, 5, 16), torch.randn(3, 7, 16)]
    runs = Runs(np.repeat([0, 2], [2, 29]), 3)
    latents, numbers = torch.randn(34, 11), [torch.randn(34, 5), torch.randn(34, 7)]
    sums = Sums(out, mean, synthesis)
    found = sums.add(runs.counts, latents, numbers)
    assert len(runs.filled) == 34
    assert len(found) == 31
    for row, head in enumerate([0] * 2 + [2] * 29):
        sides = [z[row] @ each[head] for z, each in zip(numbers, synthesis, strict=True)]
        torch.testing.assert_close(found[row], latents[row] @ out[head] + mean[head] + torch.cat(sides))
    assert not Sums(out[:, :, :30], mean[:, :30], [each[:, :, :15] for each in synthesis]).are_steady()


def test_values_are_not_turned(book):
    keys, values = (TransformCoder(bits, 5, book.side(name)) for bits, name in ((16, "keys"), (24, "values")))
    turned = TransformCoder(24, 5, {**book.side("values"), "angles": ANGLES})
    out = book.tensors["foretelling.out"]
    Joined(out, keys, values)
    with pytest.raises(ValueError, match="values are turned"):
        Joined(out, keys, turned)


@pytest.mark.parametrize("name", ["predicted:16+24", "transform:24+16", "int4", "int8+product:PQ5x3", "raw"])
def test_several_are_packed_as_one_by_one(name, book):
    if name == "predicted:16+24":
        codec, given = CodedCodec(book).with_vectors(VECTORS), told(7, seed=3)
        short = given[3]  # its tokens end with the last that is kept
        given[3] = dataclasses.replace(short, tokens=short.tokens[: int(short.positions.max()) + 1])
    else:
        given = memories(11)
        codec = RawCodec(BANK_SHAPE) if name == "raw" else CodedCodec(fitted(name))
    given.insert(2, without_pairs(given[0]))
    packed = codec.encode_many(given)
    assert packed == [codec.encode(memory) for memory in given]
    assert codec.encode_many([]) == []
    assert codec.encode_many(given[2:3]) == packed[2:3]
    assert {len(record) for record in packed} == {codec.record_size}


def test_a_memory_is_the_same_whichever_others_are_decoded_with_it(book):
    """To the last bit: a cache keeps what was decoded first."""
    codec = CodedCodec(book).with_vectors(VECTORS)
    records = codec.encode_many(told(11, seed=5))
    together = codec.decode(records)
    for record, memory in zip(records, together, strict=True):
        (alone,) = codec.decode([record])
        assert torch.equal(alone.keys, memory.keys)
        assert torch.equal(alone.values, memory.values)


# ---- tokens ----------------------------------------------------------------------------------------------------------------


def slow_latents(tokens, project, vectors):
    found = torch.zeros(*tokens.shape, project.shape[2])
    for row in range(len(tokens)):
        for place, token in enumerate(tokens[row].tolist()):
            for vector, matrix in zip((token, tokens[row][place - 1] if place else None), project, strict=True):
                if vector is not None:
                    found[row, place] += vectors[vector] / vectors[vector].square().mean().sqrt() @ matrix
    return found


@pytest.mark.parametrize("kept", [11, 23, 1000])
def test_what_was_multiplied_before_is_the_same_again(kept, monkeypatch):
    """Where all tokens are kept, where all are forgotten now and then, and where not even those of one call have room."""
    monkeypatch.setattr(latents, "_KEPT", kept)
    rng, project, vectors = np.random.default_rng(0), torch.randn(2, 7, 3), torch.randn(53, 7)
    kept_so_far = Latents(project, vectors, torch.device("cpu"))
    for rows, length in ((2, 5), (3, 2), (2, 17), (1, 1), (5, 13), (2, 5)):
        tokens = rng.integers(0, 53, (rows, length))
        found = kept_so_far.of(tokens)
        torch.testing.assert_close(found, slow_latents(tokens, project, vectors))
        assert torch.equal(found, Latents(project, vectors, torch.device("cpu")).of(tokens))


def test_products_of_vectors_that_changed_are_forgotten():
    project, vectors, tokens = torch.randn(2, 5, 3), torch.randn(13, 5), np.array([[2, 7, 11]])
    kept = Latents(project, vectors, torch.device("cpu"))
    before = kept.of(tokens)
    vectors[7] = torch.randn(5)
    assert not torch.equal(kept.of(tokens), before)
    torch.testing.assert_close(kept.of(tokens), slow_latents(tokens, project, vectors))
