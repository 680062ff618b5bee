"""`MemoryCache` by itself and behind a bank: its bound, its order, its counts, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from bank_writer import documents, expected, open_bank

from memory3.bank import CacheStatistics, MemoryCache
from memory3.types import Memory


def memory(number: int) -> Memory:
    return Memory(np.full((1, 1), number, np.uint16), np.zeros(0, np.uint16), torch.zeros(0, 5), torch.zeros(0, 5))


def test_the_least_recently_used_goes_first():
    cache = MemoryCache(20)
    a, b, c = memory(0), memory(1), memory(2)
    cache.put("a", a, 7)
    cache.put("b", b, 11)
    assert cache.get("a") is a
    cache.put("c", c, 5)
    assert cache.get("b") is None
    assert cache.get("a") is a
    assert cache.get("c") is c
    assert cache.statistics() == CacheStatistics(hits=3, misses=1, evictions=1, entries=2, bytes=12, capacity=20)


def test_replacing_counts_once_and_too_large_is_not_kept():
    cache = MemoryCache(20)
    cache.put("a", memory(0), 7)
    cache.put("a", memory(1), 9)
    assert cache.statistics().bytes == 9
    cache.put("big", memory(2), 21)
    assert cache.get("big") is None
    assert cache.statistics().entries == 1
    cache.clear()
    assert cache.statistics().bytes == 0


def test_zero_switches_it_off():
    cache = MemoryCache(0)
    cache.put("a", memory(0), 1)
    assert cache.get("a") is None
    assert cache.statistics() == CacheStatistics(misses=1)


def test_threads_keep_the_bound():
    cache = MemoryCache(1000)

    def work(seed):
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 100, 500):
            if cache.get(str(number)) is None:
                cache.put(str(number), memory(number), int(number) + 1)
            assert cache.statistics().bytes <= 1000

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    statistics = cache.statistics()
    assert statistics.hits + statistics.misses == 2000


def test_a_bank_reads_from_it_and_stays_within_it(tmp_path):
    size = 166
    with open_bank(tmp_path / "bank", cache_bytes=5 * size) as bank:
        bank.write(documents())
        ids = list(expected(documents()))
        first = bank.memories(ids[:3])
        assert all(a is b for a, b in zip(bank.memories(ids[:3]), first, strict=True))
        assert bank.info().cache == CacheStatistics(hits=3, misses=3, entries=3, bytes=3 * size, capacity=5 * size)
        bank.memories(ids)
        assert bank.cache.statistics().bytes == 5 * size
        assert bank.cache.statistics().evictions == len(ids) - 5
        before = bank.cache.statistics()
        bank.memories(ids[-3:], use_cache=False)
        assert bank.cache.statistics() == before


def test_what_is_rewritten_is_not_served_from_it(tmp_path):
    docs = documents(3)
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs)
        old = bank.memories(["doc1#0"])[0]
        docs[1] = type(docs[1])("doc1", "other words altogether, more than before")
        bank.write(docs)
        new = bank.memories(["doc1#0"])[0]
        assert new is not old
        assert bank.cache.statistics().entries == 1
