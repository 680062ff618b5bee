"""Traffic of recalls, and what a policy that does not know the future pays for it, against the best in hindsight.

A document recalled as text costs the external format's read, as memory the explicit format's; writing it once the explicit
write. Without a budget, writing at the break-even-th recall costs at most twice the optimum, whatever comes (the ski-rental
argument): when it writes, it has paid less for text than writing costs, and the optimum has paid at least that by then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from memory3.errors import ConfigError
from memory3.planner.cost import Costs
from memory3.planner.usage import DocumentUsage
from memory3.retention import RecallCounts, Retention, RetentionPolicy

__all__ = ["Outcome", "break_even", "optimum", "shuffled", "simulate", "zipf"]


@dataclass(frozen=True)
class Outcome:
    """What a policy paid for some traffic.

    Attributes:
        flops: in all.
        written, dropped: memories, some perhaps more than once.
        from_memory: share of the recalls that found a memory, 0 to 1.
        stored: memories at the end.
    """

    flops: float
    written: int
    dropped: int
    from_memory: float
    stored: int


def break_even(costs: Costs) -> int:
    """The recall at which writing pays: the first at which text would have cost as much as writing and reading memory."""
    low = costs.interval[0]
    if math.isinf(low):
        raise ConfigError("memory never pays here: reading it costs as much as reading text")
    return max(1, math.ceil(low))


def zipf(documents: int, recalls: int, exponent: float = 1.0, seed: int = 0) -> np.ndarray:
    """Numbers of the documents recalled, int64 ``[recalls]``; document r is drawn with weight ``1 / (r+1)^exponent``.

    Args:
        documents: how many there are.
        recalls: how many are drawn.
        exponent: 0: all alike; about 1 for most traffic.
        seed: of the draw.

    Raises:
        ConfigError: there is nothing to draw, or the exponent is negative or not finite.
    """
    if documents < 1 or recalls < 1:
        raise ConfigError(f"{recalls} recalls of {documents} documents are no traffic: give at least one of each")
    if not (math.isfinite(exponent) and exponent >= 0):
        raise ConfigError(f"a Zipf exponent of {exponent} is none: give a number from 0 (all alike), about 1 for most traffic")
    weights = np.arange(1, documents + 1, dtype=float) ** -exponent
    bounds = np.cumsum(weights / weights.sum())
    return np.searchsorted(bounds, np.random.default_rng(seed).random(recalls)).clip(max=documents - 1)


def shuffled(usage: Sequence[DocumentUsage], seed: int = 0) -> np.ndarray:
    """Traffic with the counts of a usage log, whose order nobody knows, in random order; numbers are places in the log.

    Args:
        usage: counts by document.
        seed: of the order.
    """
    traffic = np.repeat(np.arange(len(usage)), [u.count for u in usage])
    return np.random.default_rng(seed).permutation(traffic)


def simulate(
    traffic: Sequence[Hashable] | np.ndarray,
    costs: Costs,
    policy: RetentionPolicy,
    record_bytes: int = 1,
    *,
    lazy_as_text: bool = True,
) -> Outcome:
    """Follow the traffic with a policy; time is counted in recalls, and one counts half after as many as there are names.

    Args:
        traffic: names or numbers of references in order of their recalls.
        costs: of a reference.
        policy: when to write, and what fits.
        record_bytes: of a memory, for the policy's budget.
        lazy_as_text: a lazy reference is put into the prompt, as mode ``text`` does. False: it is encoded into a memory that
            is used and not stored, as mode ``memory`` does today; waiting then saves disk, not work.
    """
    names = [str(name) for name in traffic]
    retention, counts = Retention(policy, record_bytes), RecallCounts(half_life=max(1, len(set(names))))
    warm, write = costs.explicit.read_flops, costs.explicit.write_flops
    unwritten = costs.external.read_flops if lazy_as_text else write + warm
    stored: set[str] = set()
    flops, written, dropped, hits = 0.0, 0, 0, 0
    for now, name in enumerate(names):
        counts.add(name, now)
        if name in stored:
            hits += 1
            flops += warm
        elif retention.wants(name, counts):
            flops += write + warm
            written += 1
            stored.add(name)
            full = retention.capacity is not None and len(stored) > retention.capacity
            surplus = retention.surplus(stored, counts) if full else []
            dropped += len(surplus)
            stored.difference_update(surplus)
        else:
            flops += unwritten
    return Outcome(flops, written, dropped, hits / max(1, len(names)), len(stored))


def optimum(traffic: Sequence[Hashable] | np.ndarray, costs: Costs, capacity: int | None = None) -> float:
    """FLOPs of the best choice for each name in hindsight: text for ever, or memory from the first recall on.

    With a capacity: the best so many names for the whole time. Dropping some for others meanwhile could be cheaper still.

    Args:
        traffic: the name recalled, recall by recall.
        costs: of writing and reading a reference.
        capacity: names that may have memories; None: all.
    """
    counts = Counter(str(name) for name in traffic).values()
    text = costs.external.read_flops
    saved = sorted((n * text - costs.explicit.total(n) for n in counts), reverse=True)
    return sum(n * text for n in counts) - sum(gain for gain in saved[:capacity] if gain > 0)
