"""The cache's tiers by themselves and behind a bank: their bounds, their order, their counts, threads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import torch
from bank_writer import documents, expected, open_bank

from memory3.bank import CacheStatistics, MemoryCache, TierBytes, Tiers
from memory3.bank.ahead import Ahead
from memory3.bank.disk import DiskCache
from memory3.bank.record import MemoryRecord
from memory3.bank.tiers import sum_of
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


# ---- tiers ---------------------------------------------------------------------------------------------------------------


def record(name: str, size: int = 11) -> MemoryRecord:
    return MemoryRecord(name, "doc", 0, 5, (1, 2, 3), "raw", bytes(size), size)


def test_a_memory_is_found_in_the_nearest_tier_and_counted_there_alone():
    tiers = Tiers(TierBytes(device=20, ram=10_000, disk=0))
    decoded, other = memory(1), memory(2)
    tiers.keep("v", "a", "cuda:0", decoded, 7)
    tiers.keep("v", "b", "cpu", other, 13)
    tiers.keep_packed("v", record("a"))
    tiers.keep_packed("v", packed := record("c"))
    assert tiers.find("v", "a", "cuda:0") is decoded
    assert tiers.find("v", "c", "cuda:0") is packed
    assert tiers.find("v", "b", "cuda:0") is None  # decoded for the CPU: to move it is to decode it again
    assert tiers.find("v", "b", "cpu") is other
    assert tiers.find("w", "a", "cuda:0") is None  # another version
    told = tiers.statistics()
    assert (told.device.hits, told.device.misses) == (1, 3)
    assert (told.ram.hits, told.ram.misses) == (2, 2)
    assert (told.device.bytes, told.device.capacity, told.disk) == (7, 20, CacheStatistics())
    tiers.keep("v", "d", "cuda:0", memory(3), 21)  # larger than the tier
    tiers.keep("v", "e", "cuda:0", memory(4), 19)
    assert tiers.find("v", "d", "cuda:0") is None
    assert tiers.statistics().device == CacheStatistics(1, 4, 1, 1, 19, 20)


def test_in_ram_a_memory_lies_once():
    tiers = Tiers(TierBytes(ram=5000))
    tiers.keep_packed("v", record("a"))
    tiers.keep("v", "a", "cpu", memory(1), 300)
    assert tiers.ram.statistics().bytes == 300
    tiers.keep_packed("v", record("b"))
    tiers.keep("v", "b", "cpu", memory(1), 5001)  # too large decoded: packed it stays
    assert isinstance(tiers.find("v", "b", "cpu"), MemoryRecord)


def test_a_disk_that_banks_share_is_counted_once(tmp_path):
    each = [Tiers(TierBytes(ram=100), DiskCache(tmp_path, 1 << 20)) for _ in range(3)]
    each[0].disk.put({"a": bytes(5000), "b": bytes(100)})
    each[0].disk.put({"a": bytes(5000)})
    each[1].count(disk_hits=2, disk_misses=3, bank=3)
    told = sum_of([*each, Tiers(TierBytes(ram=7))])
    assert told.disk == CacheStatistics(2, 3, 0, entries=2, bytes=8192 + 4096, capacity=1 << 20)
    assert told.disk.bytes == each[2].disk.total()
    assert (told.ram.capacity, told.bank) == (307, 3)
    assert sum_of([]).disk == CacheStatistics()


def test_the_disk_puts_out_and_says_so(tmp_path):
    disk = DiskCache(tmp_path, 5 * 4096)
    for number in range(9):
        disk.put({str(number): bytes(3000)})
    told = disk.statistics()
    assert told.evictions == 9 - told.entries > 0
    assert told.bytes == disk.total() == 4096 * told.entries <= disk.capacity
    assert DiskCache(tmp_path, 0).statistics() == CacheStatistics()


def test_what_is_read_is_found_in_one_tier_or_comes_from_the_bank(tmp_path):
    with open_bank(tmp_path / "bank", cache_bytes=6 * 166) as bank:
        bank.write(documents())
        ids = list(expected(documents()))

        def read(seed):
            random, asked = np.random.default_rng(seed), 0
            for _ in range(20):
                some = sorted({ids[place] for place in random.integers(0, 12, 4)})
                found = bank.memories(some)
                assert [memory.provenance.reference_ids[0] for memory in found] == some
                asked += len(some)
            return asked

        with ThreadPoolExecutor(3) as pool:
            asked = sum(pool.map(read, range(3)))
        told = bank.tiers.statistics()
        assert told.ram.hits + told.bank == asked
        assert told.ram.misses == told.bank
        assert (told.device, told.disk) == (CacheStatistics(), CacheStatistics())
        assert bank.info().tiers == told


# ---- fetching ahead --------------------------------------------------------------------------------------------------------


def wait_until(true):
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_what_is_fetched_ahead_is_in_ram_and_is_no_recall(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(documents())
        ids = list(expected(documents()))
        bank.memories(ids[:2])
        view = bank.pin()
        view.prefetch(ids[:7])
        wait_until(lambda: bank.tiers.statistics().ahead == 5)  # two were there
        before = bank.tiers.statistics()
        found = bank.memories(ids[:7])
        after = bank.tiers.statistics()
        assert (after.ram.hits - before.ram.hits, after.bank) == (7, before.bank)
        assert sum(bank.recalls().values()) == 2 + 7
        with open_bank(tmp_path / "bank", cache_bytes=0) as other:
            assert [str(m.keys) for m in other.memories(ids[:7])] == [str(m.keys) for m in found]


def test_guesses_by_name_give_way_to_who_waits():
    ahead, begun, go, fetched = Ahead(), Event(), Event(), []

    def fetch(names):
        fetched.extend(names)
        begun.set()
        go.wait(20)

    ahead.names([str(number) for number in range(100)], 1000, fetch)
    assert begun.wait(20)
    with ahead.request():
        go.set()
        wait_until(lambda: all(guess.done() for guess in ahead._others))
    assert fetched == ["0", "1", "2", "3"]
    fetched.clear()
    ahead.names([str(number) for number in range(100)], 1 << 20, fetch)  # no more than 8 MiB
    wait_until(lambda: all(guess.done() for guess in ahead._others))
    assert len(fetched) == 8
    ahead.close()
    ahead.names(["a"], 1, fetched.append)  # closed: nothing is begun
    assert len(fetched) == 8
