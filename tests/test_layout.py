"""The layout of ragged memories, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memory3.attention.layout import gather_memories, select_chunks
from memory3.attention.rotary import rotate
from memory3.types import LayerMemory, Memory, MemoryShape

D = 10
SHAPE = MemoryShape(layers=(1, 3, 4), kv_heads=2, head_dim=D, pairs=17, dtype="float32")


def random_memory(seed: int, largest: int = 4) -> Memory:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, largest, (3, 2)).astype(np.uint16)
    total = int(counts.sum())
    keys, values = (torch.from_numpy(rng.standard_normal((total, D)).astype(np.float32)) for _ in range(2))
    places = rng.integers(0, 3 + seed % 5, total).astype(np.uint16)
    return Memory(counts, places, keys, values)


def moves(arrangement: str, memories: Sequence[Memory]) -> list[int]:
    """Where references lie that were written from 0 on and are read from 11 on, one by one."""
    found, end = [], 11
    for rank, memory in enumerate(memories):
        if arrangement == "tight":
            end -= max((int(place) + 1 for place in memory.positions), default=0)
            found.append(end)
        else:
            found.append(0 if arrangement == "parallel" else -11 * rank)
    return found


@pytest.mark.parametrize(
    ("arrangement", "temperature", "discount"),
    [("parallel", 1.0, 0.0), ("row", 1.0, 0.0), ("row", 0.7, 0.3), ("tight", 0.7, 2.0)],
)
def test_gather_puts_every_pair_in_its_head(arrangement: str, temperature: float, discount: float) -> None:
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
        arrangement=arrangement,
        span=11,
        temperature=temperature,
        rank_discount=discount,
    )
    query = torch.randn(D, generator=torch.Generator().manual_seed(0))
    for n, names in enumerate(references):
        places = moves(arrangement, [memories[name] for name in names])
        for i, layer in enumerate(SHAPE.layers):
            for h in range(2):
                keys, values, owner = [], [], []
                for place, name in enumerate(names):
                    m = memories[name]
                    flat = m.counts.reshape(-1).astype(int)
                    start = int(flat[: i * 2 + h].sum())
                    count = int(flat[i * 2 + h])
                    by = torch.tensor(moved[n] + places[place])
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
                    assert ((got.bias[n, h, 0] > -1e30) == here).all()
                    torch.testing.assert_close(got.bias[n, h, 0][here], torch.tensor([-discount * place for place in owner]))
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


def random_batch(seed: int) -> tuple[list[list[str]], dict[str, Memory], dict[str, Any]]:
    """Chunks of 0 to 4 references, some in several of them, and every way to arrange them; memories and chunks that are
    empty, too.
    """
    rng = np.random.default_rng(seed)
    memories = {name: random_memory(100 * seed + number, largest=1 + number) for number, name in enumerate("abcdefg")}
    chunks = 5
    references = [rng.permutation(list(memories))[: rng.integers(0, 5)].tolist() for _ in range(chunks)]
    g = torch.Generator().manual_seed(seed)
    ways: dict[str, Any] = {
        "inv_freq": [torch.rand(size, generator=g) for size in (5, 3, 3, 5, 0, 5)],  # partly rotated, not at all
        "moved": rng.integers(-9, 9, chunks).tolist() if seed % 2 else None,
        "arrangement": ("parallel", "row", "tight")[seed % 3],
        "span": 11,
        "temperature": (1.0, 0.7)[seed // 2 % 2],
        "rank_discount": (0.0, 0.4)[seed // 3 % 2],
    }
    if seed % 5:
        ways["prefix"] = [tuple(torch.randn(2, 2, 3, D, generator=g)) for _ in range(6)]
        ways["prefix_tokens"] = rng.integers(0, 4, chunks).tolist()
    return references, memories, ways


def seen(layer: LayerMemory | None, chunk: int, head: int) -> list[torch.Tensor]:
    """Keys, values, owners and biases of what a head of a chunk sees, in order."""
    if layer is None:
        return [torch.zeros(0, D), torch.zeros(0, D), torch.zeros(0, dtype=torch.int64), torch.zeros(0)]
    bias = torch.zeros(layer.owner.shape[2]) if layer.bias is None else layer.bias[chunk, head, 0]
    shown = bias > -1e30
    assert not (layer.owner[chunk, head][~shown] >= 0).any()
    assert not shown[layer.widths[head] :].any()
    return [*(x[chunk, head][shown] for x in (layer.keys, layer.values, layer.owner)), bias[shown]]


@pytest.mark.parametrize("seed", range(30))
def test_chunks_are_laid_out_together_as_they_are_alone(seed: int) -> None:
    """To the last bit, up to padding: so requests may be laid out one by one."""
    references, memories, ways = random_batch(seed)
    together = gather_memories(references, memories, SHAPE, dtype=torch.float32, **ways)
    assert together.references == references
    for n, names in enumerate(references):
        mine = {**ways} | {key: ways[key][n : n + 1] for key in ("moved", "prefix_tokens") if ways.get(key) is not None}
        alone = gather_memories([names], {name: memories[name] for name in names}, SHAPE, dtype=torch.float32, **mine)
        for layer in range(6):
            for head in range(2):
                ours, theirs = seen(together.layers.get(layer), n, head), seen(alone.layers.get(layer), 0, head)
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)
    order = [3, 1, 3]
    picked = select_chunks(together, order)
    for layer in picked.layers:
        for head in range(2):
            for place, n in enumerate(order):
                for a, b in zip(seen(picked.layers[layer], place, head), seen(together.layers[layer], n, head), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_memories_on_the_device_never_leave_it() -> None:
    """The meta device holds no numbers: whatever looked at them, or fetched them, would fail."""
    for seed in range(1, 6):
        references, memories, ways = random_batch(seed)
        there = {
            name: replace(memory, keys=memory.keys.half().to("meta"), values=memory.values.half().to("meta"))
            for name, memory in memories.items()
        }
        some = {**there, "a": replace(memories["a"], keys=memories["a"].keys.half(), values=memories["a"].values.half())}
        expected = gather_memories(references, memories, SHAPE, dtype=torch.bfloat16, **ways)
        ways["inv_freq"] = [x.to("meta") for x in ways["inv_freq"]]
        for given in (there, some):  # decoded there, or not all of them
            batch = gather_memories(references, given, SHAPE, dtype=torch.bfloat16, device="meta", **ways)
            assert batch.layers.keys() == expected.layers.keys()
            for number, layer in batch.layers.items():
                wanted = expected.layers[number]
                assert layer.widths == wanted.widths
                assert (layer.bias is None) == (wanted.bias is None)
                for x, y in ((layer.keys, wanted.keys), (layer.values, wanted.values), (layer.owner, wanted.owner)):
                    assert (x.device.type, x.shape, x.dtype) == ("meta", y.shape, y.dtype)


def test_select_chunks() -> None:
    memories = {name: random_memory(seed) for seed, name in enumerate("abc")}
    batch = gather_memories([["a"], ["b"], ["c"]], memories, SHAPE, dtype=torch.float32)
    picked = select_chunks(batch, [2, 0, 2])
    assert picked.references == [["c"], ["a"], ["c"]]
    for number, layer in picked.layers.items():
        torch.testing.assert_close(layer.keys, batch.layers[number].keys[[2, 0, 2]])


def test_nothing_to_gather() -> None:
    assert gather_memories([[], []], {}, SHAPE, dtype=torch.float32).layers == {}
