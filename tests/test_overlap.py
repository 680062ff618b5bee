"""Overlap (eq. 6) against the definition written out."""

import time
from itertools import combinations

import numpy as np
import pytest

from memory3.overlap import exceeds, overlap


def slow_overlap(target, reference):
    """Every stretch, the textbook table."""
    best, span = 0, 2 * len(reference) + 1
    for start in range(len(target)):
        stretch = target[start : start + span]
        table = [[0] * (len(reference) + 1) for _ in range(len(stretch) + 1)]
        for i, a in enumerate(stretch):
            for j, b in enumerate(reference):
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
        best = max(best, table[-1][-1])
    return best / len(reference) if reference else 0.0


def literal_overlap(target, reference):
    """Equation 6 by trying all subsequences; for a handful of tokens."""
    for size in range(len(reference), 0, -1):
        for wanted in combinations(range(len(reference)), size):
            for chosen in combinations(range(len(target)), size):
                if chosen[-1] - chosen[0] <= 2 * len(reference) and [target[i] for i in chosen] == [
                    reference[j] for j in wanted
                ]:
                    return size / len(reference)
    return 0.0


def test_by_hand():
    assert overlap([7, 1, 9, 2, 9, 3, 7], [1, 2, 3]) == 1.0
    assert overlap([3, 2, 1], [1, 2, 3]) == pytest.approx(1 / 3)
    assert overlap([1, 0, 0, 2], [1, 2]) == 1.0  # 3 <= 2 * 2
    assert overlap([1, 0, 0, 0, 2], [1, 2]) == 1.0  # 4 <= 4
    assert overlap([1, 0, 0, 0, 0, 2], [1, 2]) == 0.5  # 5 > 4
    assert overlap([], [1]) == overlap([1], []) == overlap([5], [6]) == 0.0


@pytest.mark.parametrize("seed", range(11))
def test_against_the_equation(seed):
    rng = np.random.default_rng(seed)
    target, reference = rng.integers(0, 3, 9).tolist(), rng.integers(0, 4, rng.integers(1, 4)).tolist()
    assert overlap(target, reference) == pytest.approx(literal_overlap(target, reference))


@pytest.mark.parametrize("length", [2, 31, 63, 64, 65, 67])
@pytest.mark.parametrize("kinds", [3, 23])
def test_against_the_table(length, kinds):
    rng = np.random.default_rng(length + kinds)
    reference = rng.integers(0, kinds, length).tolist()
    target = rng.integers(0, kinds + 2, 41).tolist()
    target[7:7] = [t for t in reference if rng.random() < 0.8]
    share = slow_overlap(target, reference)
    assert overlap(target, reference) == pytest.approx(share)
    for threshold in (0.0, share - 0.01, share, share + 0.01, 2 / 3, 0.9):
        assert exceeds(target, reference, threshold) == (share > threshold), threshold


def test_takes_milliseconds():
    """A training sequence of 4,096 tokens against a reference of 128 that shares half of its words, as texts of one
    subject do.
    """
    rng = np.random.default_rng(3)
    words = rng.zipf(1.3, 100_000) % 5000
    target, reference = words[:4096], words[9000:9128]
    best = {overlap: 9.9, exceeds: 9.9}
    for _ in range(5):
        for function, extra in ((overlap, ()), (exceeds, (0.9,))):
            started = time.perf_counter()
            function(target, reference, *extra)
            best[function] = min(best[function], time.perf_counter() - started)
    print(best)
    assert best[overlap] < 0.5
    assert best[exceeds] < 0.02
