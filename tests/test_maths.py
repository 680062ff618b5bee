"""Attention, rotation, selection and layout against slow, obvious twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from memory3.attention import attend as attention
from memory3.attention.attend import attend, attend_concatenated, attention_with_lse, masked, memory_mass
from memory3.attention.layout import gather_memories, select_chunks
from memory3.attention.rotary import rotate
from memory3.config import Budget
from memory3.encode.budget import choose
from memory3.encode.selectors import SELECTORS, LayerView, selector
from memory3.recall.chunks import chunk_table, cut
from memory3.types import LayerMemory, Memory, MemoryShape

D = 10


@pytest.fixture(params=["fused", "recomputed"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU's kernel, and what other devices compute."""
    if request.param == "recomputed":
        monkeypatch.setattr(attention, "_fused_cpu", attention._Recomputed.apply)
    return request.param


def random_layer(chunks: int, heads: int, pairs: int, *, padded: bool = True, seed: int = 0) -> LayerMemory:
    g = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, 3, (chunks, heads, pairs), generator=g)
    bias, widths = None, (pairs,) * heads
    if padded:
        lengths = torch.randint(1, pairs + 1, (chunks, heads), generator=g)
        hidden = torch.arange(pairs) >= lengths[..., None]
        owner[hidden] = -1
        bias = torch.zeros(chunks, heads, pairs).masked_fill(hidden, masked(torch.float32)).unsqueeze(2)
        widths = tuple(lengths.max(dim=0).values.tolist())
    keys, values = (torch.randn(chunks, heads, pairs, D, generator=g) for _ in range(2))
    return LayerMemory(keys, values, bias, owner, widths)


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
    torch.testing.assert_close(memory_mass(query, lse, memory, references=2, scale=1.0), torch.tensor([[0.75, 0.0]]))


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_what_is_computed_again(causal: bool, biased: bool) -> None:
    """Of the output and of its lse, against finite differences."""
    g = torch.Generator().manual_seed(6)
    shapes = ((2, 6, 5, 7), (2, 3, 5, 7), (2, 3, 5, 7))
    inputs = [torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]
    bias = torch.randn(2, 1, 5, 5, generator=g, dtype=torch.float64) if biased else None
    assert torch.autograd.gradcheck(lambda q, k, v: attention._Recomputed.apply(q, k, v, bias, causal, 0.3), inputs)


def test_memory_mass_counts_every_weight_once() -> None:
    g = torch.Generator().manual_seed(5)
    query, key, value = torch.randn(2, 6, 3, D, generator=g), *(torch.randn(2, 2, 3, D, generator=g) for _ in range(2))
    memory = random_layer(2, 2, 7)
    table = torch.tensor([[0, 1, 2], [3, 4, 5]])
    _, lse = attend(query, key, value, None, memory, table, causal=True, scale=0.3)
    mass = memory_mass(query, lse, memory, references=3, scale=0.3)
    expected = torch.zeros(2, 3)
    for n in range(2):
        for head in range(6):
            for t in range(3):
                for m in range(7):
                    if memory.owner[n, head // 3, m] >= 0:
                        logit = query[n, head, t] @ memory.keys[n, head // 3, m] * 0.3
                        expected[n, memory.owner[n, head // 3, m]] += torch.exp(logit - lse[n, head, t])
    torch.testing.assert_close(mass, expected)


def test_rotation_by_complex_numbers() -> None:
    x, freq = torch.randn(3, 7, 10), torch.tensor([1.0, 0.3, 0.02])
    pairs = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones(7, 3), torch.arange(7)[:, None] * freq)
    moved = rotate(x, torch.arange(7), freq)
    torch.testing.assert_close(moved, torch.cat([pairs.real, pairs.imag, x[..., 6:]], -1))
    torch.testing.assert_close(rotate(moved, -torch.arange(7), freq), x)


# ---- selection -------------------------------------------------------------------------------------------------------


def view(lengths: list[int], *, repeats: bool = False, seed: int = 0) -> LayerView:
    g = torch.Generator().manual_seed(seed)
    refs, span = len(lengths), max(lengths)
    padding = (torch.arange(span) >= torch.tensor(lengths)[:, None])[:, None]
    query = torch.randn(refs, 6, span, D, generator=g)
    return LayerView(
        layer=1,
        query=query,
        key=torch.randn(refs, 2, span, D, generator=g),
        value=torch.randn(refs, 2, span, D, generator=torch.Generator().manual_seed(seed + 1)),
        lengths=torch.tensor(lengths),
        offset=3,
        inv_freq=torch.tensor([1.0, 0.4, 0.1, 0.05, 0.01]),
        scale=0.3,
        seeds=tuple(range(refs)),
        later_query=torch.randn(refs, 6, span, D, generator=g) if repeats else None,
        later_lse=(torch.randn(refs, 6, span, generator=g) + 4).masked_fill(padding, torch.inf) if repeats else None,
    )


def test_attention_mass_is_the_papers_formula() -> None:
    v = view([7, 4])
    score = selector("attention").score(v)
    for n, length in enumerate([7, 4]):
        for h in range(2):
            expected = torch.zeros(length)
            for a in range(3 * h, 3 * h + 3):
                q = torch.stack([rotate(v.query[n, a, i], torch.tensor(-(i + 3)), v.inv_freq) for i in range(length)])
                k = torch.stack([rotate(v.key[n, h, j], torch.tensor(-(j + 3)), v.inv_freq) for j in range(length)])
                for i in range(length):
                    expected += torch.softmax(q[i] @ k.T * 0.3, 0)
            torch.testing.assert_close(score[n, h, :length], expected)


def test_reconstruction_is_the_largest_attention_of_a_repeated_token() -> None:
    v = view([7, 4], repeats=True)
    assert v.later_query is not None
    assert v.later_lse is not None
    score = selector("reconstruction").score(v)
    for n, length in enumerate([7, 4]):
        for h in range(2):
            for j in range(length):
                best = max(
                    float(torch.exp(v.later_query[n, a, i] @ v.key[n, h, j] * 0.3 - v.later_lse[n, a, i]))
                    for a in range(3 * h, 3 * h + 3)
                    for i in range(length)
                )
                assert float(score[n, h, j]) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_padding_never_changes_a_score(name: str) -> None:
    weights = {1: torch.randn(6 * D + 1, 2)} if name in ("learned", "blended") else None
    long, s = view([7, 4], repeats=True), selector(name, weights)
    short = LayerView(
        layer=1,
        query=long.query[1:, :, :4],
        key=long.key[1:, :, :4],
        value=long.value[1:, :, :4],
        lengths=torch.tensor([4]),
        offset=3,
        inv_freq=long.inv_freq,
        scale=0.3,
        seeds=(1,),
        later_query=None if long.later_query is None else long.later_query[1:, :, :4],
        later_lse=None if long.later_lse is None else long.later_lse[1:, :, :4],
    )
    torch.testing.assert_close(s.score(long)[1, :, :4], s.score(short)[0])


def test_uniform_budget_keeps_the_best_of_every_head() -> None:
    scores = torch.randn(3, 5, 2, 7)
    kept = choose(scores, torch.tensor([7, 4, 2]), Budget("uniform", 3), 7)
    assert kept.sum(-1).tolist() == [[[n] * 2] * 5 for n in (3, 3, 2)]
    assert set(kept[0, 2, 1].nonzero().flatten().tolist()) == set(scores[0, 2, 1].topk(3).indices.tolist())
    assert not kept[1, :, :, 4:].any()


def test_adaptive_budget_keeps_the_best_pairs_of_the_reference() -> None:
    scores, lengths = torch.randn(3, 5, 2, 7), [7, 4, 1]
    kept = choose(scores, torch.tensor(lengths), Budget("adaptive", 0.2), 7)
    for n, length in enumerate(lengths):
        every = sorted(scores[n, :, :, :length].flatten().tolist(), reverse=True)
        budget = min(round(0.2 * 5 * 2 * 7), len(every))
        assert sorted(scores[n][kept[n]].tolist(), reverse=True) == every[:budget]


def test_ties_go_to_the_earlier() -> None:
    kept = choose(torch.zeros(1, 2, 3, 5), torch.tensor([5]), Budget("adaptive", 7), 5)
    assert kept.flatten().nonzero().flatten().tolist() == list(range(7))


# ---- layout ----------------------------------------------------------------------------------------------------------

SHAPE = MemoryShape(layers=(1, 3, 4), kv_heads=2, head_dim=D, pairs=17, dtype="float32")


def random_memory(seed: int, largest: int = 4) -> Memory:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, largest, (3, 2)).astype(np.uint16)
    total = int(counts.sum())
    keys, values = (torch.from_numpy(rng.standard_normal((total, D)).astype(np.float32)) for _ in range(2))
    return Memory(counts, np.zeros(total, np.uint16), keys, values)


@pytest.mark.parametrize(("spacing", "temperature"), [(0, 1.0), (11, 1.0), (11, 0.7)])
def test_gather_puts_every_pair_in_its_head(spacing: int, temperature: float) -> None:
    memories = {name: random_memory(seed) for seed, name in enumerate("abcde")}
    references = [["a", "b", "c"], ["d"], [], ["e", "a"]]
    moved = [0, 5, 0, -2]
    freq = torch.tensor([1.0, 0.4, 0.1, 0.05, 0.01])
    batch = gather_memories(
        references,
        memories,
        SHAPE,
        dtype=torch.float32,
        inv_freq=freq,
        moved=moved,
        spacing=spacing,
        temperature=temperature,
    )
    query = torch.randn(D, generator=torch.Generator().manual_seed(0))
    for n, names in enumerate(references):
        for i, layer in enumerate(SHAPE.layers):
            for h in range(2):
                keys, values, owner = [], [], []
                for place, name in enumerate(names):
                    m = memories[name]
                    flat = m.counts.reshape(-1).astype(int)
                    start = int(flat[: i * 2 + h].sum())
                    count = int(flat[i * 2 + h])
                    by = torch.tensor(moved[n] - place * spacing)
                    keys += list(rotate(m.keys[start : start + count], by, freq))
                    values += list(m.values[start : start + count])
                    owner += [place] * count
                got = batch.layers[layer]
                here = got.owner[n, h] >= 0
                assert got.owner[n, h][here].tolist() == owner
                if owner:
                    torch.testing.assert_close(got.keys[n, h][here] @ query, torch.stack(keys) @ query / temperature)
                    torch.testing.assert_close(got.keys[n, h][here] * temperature, torch.stack(keys))
                    torch.testing.assert_close(got.values[n, h][here], torch.stack(values))
                if got.bias is not None:
                    assert ((got.bias[n, h, 0] == 0) == here).all()
                else:
                    assert here.all()


def test_prefix_is_read_where_the_prompt_lacks_it() -> None:
    memories = {"a": random_memory(1)}
    prefix = [(torch.randn(2, 5, D), torch.randn(2, 5, D)) for _ in range(6)]
    batch = gather_memories(
        [["a"], ["a"]], memories, SHAPE, dtype=torch.float32, temperature=0.7, prefix=prefix, prefix_tokens=[2, 0]
    )
    assert sorted(batch.layers) == [0, 1, 2, 3, 4, 5]
    for number, layer in batch.layers.items():
        torch.testing.assert_close(layer.keys[0, :, :2], prefix[number][0][:, -2:])
        assert layer.bias is not None
        assert (layer.bias[0, :, 0, :2] == 0).all()
        assert (layer.bias[1, :, 0, :2] < -1e30).all()
        assert (layer.owner[:, :, :2] == -1).all()


def test_select_chunks() -> None:
    memories = {name: random_memory(seed) for seed, name in enumerate("abc")}
    batch = gather_memories([["a"], ["b"], ["c"]], memories, SHAPE, dtype=torch.float32)
    picked = select_chunks(batch, [2, 0, 2])
    assert picked.references == [["c"], ["a"], ["c"]]
    for number, layer in picked.layers.items():
        torch.testing.assert_close(layer.keys, batch.layers[number].keys[[2, 0, 2]])


def test_nothing_to_gather() -> None:
    assert gather_memories([[], []], {}, SHAPE, dtype=torch.float32).layers == {}


# ---- chunks ----------------------------------------------------------------------------------------------------------


def test_chunks_of_a_prompt_and_its_answer() -> None:
    chunks = [(c.start, c.end, c.query) for c in cut(split=3, start=3, length=3 + 10 + 13, size=5, answer=13)]
    assert chunks == [
        (3, 8, slice(3, 8)),
        (8, 13, slice(8, 13)),
        (13, 18, None),
        (18, 23, slice(13, 18)),
        (23, 26, slice(18, 23)),
    ]
    # A short last chunk looks back over a whole chunk's length, but never in front of the memories.
    assert [c.query for c in cut(split=3, start=3, length=15, size=5)] == [slice(3, 8), slice(8, 13), slice(10, 15)]
    assert [c.query for c in cut(split=3, start=3, length=5, size=5)] == [slice(3, 5)]
    assert cut(split=3, start=9, length=9, size=5) == []


def test_table_finds_the_chunk_of_every_token() -> None:
    chunks = [*((0, c) for c in cut(2, 2, 11, 5)), *((1, c) for c in cut(3, 3, 4, 5)), *((2, c) for c in cut(0, 0, 7, 5))]
    stretches = [(row, chunk.start, chunk.end) for row, chunk in chunks]
    index = torch.tensor(
        [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]]
    )
    behind = torch.tensor([[False] * 2 + [True] * 9, [False] * 10 + [True], [False] * 4 + [True] * 7])
    table = chunk_table(stretches, 5, index, behind)
    expected = {(c, t) for c, (_, start, end) in enumerate(stretches) for t in range(start, end)}
    found = set()
    for c, row in enumerate(table.tolist()):
        for flat in row:
            if flat >= 0:
                assert flat // 11 == stretches[c][0]
                found.add((c, int(index[flat // 11, flat % 11])))
    assert found == expected
    assert chunk_table(stretches, 5, index[:, :1], behind[:, :1]).shape == (5, 1)
