"""Bootstrap intervals: of a mean, of a paired difference, of any aggregate of items.

95%, by percentiles of resampled items; the same seed gives the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["DRAWS", "aggregate_interval", "interval"]

#: Resamplings of a mean; of an aggregate that is no mean, a tenth of them.
DRAWS = 2000

_RANGE = [0.025, 0.975]


def interval(values: Sequence[float], *, seed: int = 0, draws: int = DRAWS) -> list[float]:
    """Interval of the mean. For the paired difference of two arms give the differences, item by item.

    Args:
        values: one per item.
        seed: of the resampling.
        draws: how many resamplings.

    Returns:
        lower and upper end, not a number without values.
    """
    data = np.asarray(values, dtype=float)
    if not len(data):
        return [float("nan"), float("nan")]
    generator = np.random.default_rng(seed)
    # In portions, so that thousands of items times thousands of draws fit into RAM.
    means = [data[generator.integers(0, len(data), (100, len(data)))].mean(axis=1) for _ in range(-(-draws // 100))]
    return [float(x) for x in np.quantile(np.concatenate(means), _RANGE)]


def aggregate_interval(values: Sequence[Any], aggregate: Callable[[list[Any]], float], *, seed: int = 0) -> list[float]:
    """Interval of any aggregate: an AUROC, a perplexity, an F1 over all items.

    Args:
        values: one per item, of any kind.
        aggregate: the figure of some of them.
        seed: of the resampling.

    Returns:
        lower and upper end.
    """
    generator = np.random.default_rng(seed)
    found = [aggregate([values[i] for i in generator.integers(0, len(values), len(values))]) for _ in range(DRAWS // 10)]
    return [float(x) for x in np.nanquantile(found, _RANGE)]
