"""When a memory is worth its disk: written at the n-th recall of a reference, dropped when others are wanted more.

Until it is written a reference is *lazy*: text alone, encoded at every recall. Writing at the recall where what was paid so
equals what writing costs is never more than twice as dear as knowing the future (the ski-rental argument;
`memory3.planner.traffic` shows it).

How much a memory is wanted is its recency-weighted count: of its recalls, each halved in weight per half-life. It is kept
as a logarithm, so that nothing has to be aged:

    log weight = log2( sum over recalls at times t of 2^(t / half_life) )

Knows names and numbers; no disks (`memory3.bank.recalls`, `memory3.bank.lazy`) and no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from memory3.errors import ConfigError

__all__ = ["HALF_LIFE", "RecallCounts", "Retention", "RetentionPolicy", "WritePolicy"]

#: Seconds after which a recall counts half: 30 days.
HALF_LIFE = 30 * 86400.0
#: Dropping goes down to this part of the budget, so that it is due once in a while and not at every recall.
KEPT = 0.9


@dataclass(frozen=True)
class RetentionPolicy:
    """What becomes of new documents, and of lazy references that are recalled.

    Attributes:
        write: ``"now"``: documents are encoded when they are added. ``"auto"``: they are added lazily, as text.
        after: a lazy reference's memory is stored at this recall of it, from 1.
        disk_bytes: memories stored at most; beyond, those wanted least become lazy again. None: no limit.
    """

    write: str = "now"
    after: int = 1
    disk_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.write not in ("now", "auto"):
            raise ConfigError(f"write policy {self.write!r} is unknown: use now or auto")
        if isinstance(self.after, bool) or not isinstance(self.after, int) or self.after < 1:
            raise ConfigError(f"memories cannot be written after {self.after!r} recalls: give a whole number from 1")
        if self.disk_bytes is not None and (
            isinstance(self.disk_bytes, bool) or not isinstance(self.disk_bytes, int) or self.disk_bytes < 1
        ):
            raise ConfigError(f"a disk budget of {self.disk_bytes!r} bytes holds nothing: give a whole number from 1, or none")
        if self.write == "now" and (self.after != 1 or self.disk_bytes is not None):
            raise ConfigError(
                "a number of recalls or a disk budget needs the write policy auto: with now, all is written at once"
            )

    @classmethod
    def of(cls, policy: RetentionPolicy | str) -> RetentionPolicy:
        """The policy itself, or the one of that name with its defaults."""
        return policy if isinstance(policy, RetentionPolicy) else cls(policy)


#: Its name in earlier releases.
WritePolicy = RetentionPolicy


class RecallCounts:
    """How often each name was recalled, and how much it is wanted.

    Attributes:
        half_life: in the unit of the times that are given.
        recalls: how many, by name.
        log_weights: see the module; by name.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self.half_life = half_life
        self.recalls: dict[str, int] = {}
        self.log_weights: dict[str, float] = {}

    def add(self, name: str, now: float, recalls: int = 1) -> None:
        """Count recalls of one moment.

        Args:
            name: what was recalled.
            now: the moment, in the unit of `half_life`.
            recalls: how many.
        """
        self.merge(name, recalls, now / self.half_life + math.log2(recalls))

    def merge(self, name: str, recalls: int, log_weight: float) -> None:
        """Count recalls whose weight is known.

        Args:
            name: what was recalled.
            recalls: how many.
            log_weight: log2 of their weight, see the module.
        """
        self.recalls[name] = self.recalls.get(name, 0) + recalls
        before = self.log_weights.get(name, -math.inf)
        high, low = max(before, log_weight), min(before, log_weight)
        self.log_weights[name] = high + math.log2(1 + 2 ** (low - high))

    def log_weight(self, name: str) -> float:
        """Of a name; of one never recalled minus infinity."""
        return self.log_weights.get(name, -math.inf)


class Retention:
    """Applies a policy: which lazy references to store, which memories to drop.

    Attributes:
        policy: see there.
        capacity: memories that fit into the budget; None: any number.
    """

    def __init__(self, policy: RetentionPolicy, record_bytes: int) -> None:
        self.policy = policy
        self.capacity = None if policy.disk_bytes is None else policy.disk_bytes // record_bytes
        #: Log weight of what was dropped last; whatever has no more would go next.
        self.floor = -math.inf
        self._dropped: dict[str, int] = {}  # recalls at that time: whatever was dropped must earn its place anew

    def wants(self, name: str, counts: RecallCounts) -> bool:
        """Is the memory of this lazy reference to be stored, its present recall being counted?

        Args:
            name: the reference.
            counts: of all recalls so far.
        """
        recalls = counts.recalls.get(name, 0) - self._dropped.get(name, 0)
        if recalls < self.policy.after or self.capacity == 0:
            return False
        return self.capacity is None or counts.log_weight(name) > self.floor

    def surplus(self, stored: Iterable[str], counts: RecallCounts) -> list[str]:
        """The memories to drop, those wanted least first, so that the others fit into the budget; none while all do.

        Args:
            stored: names of the memories that are stored.
            counts: of all recalls so far.
        """
        names = list(stored)
        if self.capacity is None or len(names) <= self.capacity:
            return []
        names.sort(key=lambda name: (counts.log_weight(name), name))
        dropped = names[: len(names) - max(1, int(KEPT * self.capacity))] if self.capacity else names
        self.floor = counts.log_weight(dropped[-1])
        self._dropped.update((name, counts.recalls.get(name, 0)) for name in dropped)
        return dropped
