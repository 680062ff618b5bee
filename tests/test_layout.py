"""The layout of ragged memories, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memory3.attention.layout import gather_memories, select_chunks
from memory3.attention.rotary import rotate
from memory3.types import Memory, MemoryShape

D = 10
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
