"""`Bag`: what is sampled without replacement, round after round."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from memory3.errors import InputError

__all__ = ["Bag"]


@dataclass
class Bag:
    """Numbers from 0 in random order, over and over.

    Attributes:
        name: of what is numbered, for messages.
        size: how many there are.
        rng: decides the order.
        used: numbers that are passed over until the next round.
        gone: numbers that are passed over for ever.
        queue: the rest of this round, last one first.
    """

    name: str
    size: int
    rng: random.Random
    used: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    queue: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many are not gone."""
        return self.size - len(self.gone)

    def take(self) -> int:
        """The next number.

        Raises:
            InputError: all are gone.
        """
        while True:
            if not self.queue:
                self.queue = [n for n in range(self.size) if n not in self.gone]
                if not self.queue:
                    raise InputError(
                        f"all {self.size} {self.name}s are held back for looking at: give more data, or lower eval_groups"
                    )
                self.rng.shuffle(self.queue)
                self.used = set()
            number = self.queue.pop()
            if number not in self.used and number not in self.gone:
                self.used.add(number)
                return number

    def hold_back(self) -> None:
        """What has been used in this round is gone."""
        self.gone |= self.used
