"""Which references each item reads in each mode.

They are looked up once for all modes, and guarded. Controls are sampled by chance that the item's id decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory3.bank import Bank
from memory3.evaluation.guard import Guard
from memory3.evaluation.modes import Mode
from memory3.evaluation.task import Item, Task
from memory3.llm import Memory3

__all__ = ["FoundReferences", "Lookup"]

#: Further hits looked up, for modes that leave some out.
_SPARE = 20

#: Controls are sampled from so many references, or questions, chosen by the seed: each memory is written once, and there are
#: enough to be of any subject.
POOL = 200


@dataclass(frozen=True)
class FoundReferences:
    """What one item reads.

    Attributes:
        references: ids, most similar first.
        dropped: how many the guard took out.
        scores: cosines of the references, where they were retrieved.
    """

    references: list[str]
    dropped: int = 0
    scores: tuple[float, ...] = ()


class Lookup:
    """References for the items of one task from one bank."""

    def __init__(self, m3: Memory3, bank: Bank, task: Task, *, k: int, seed: int) -> None:
        """``k``: the most that any mode reads."""
        self.m3, self.bank, self.task, self.seed = m3, bank, task, seed
        self.k = k
        self._hits: dict[str, list[tuple[str, str, float]]] = {}
        self._question: dict[str, list[int]] = {}
        self._tokens: dict[str, tuple[int, ...]] = {}
        sizes = {entry.id: entry.references for entry in bank.documents()}
        self._documents = {f"{document}#{n}": document for document, size in sizes.items() for n in range(size)}
        rng = random.Random(f"{seed}:pool:{task.name}")
        self._pool = rng.sample(sorted(self._documents), min(POOL + k, len(self._documents)))
        partners = list(task.items)
        random.Random(seed).shuffle(partners)  # as the runner draws its items, so that these are among those of a limited run
        self._partners = partners[:POOL]

    def find(self, items: Sequence[Item], mode: Mode, guard: Guard) -> list[FoundReferences]:
        """What each item reads in this mode, without what the guard drops.

        Args:
            items: what is asked.
            mode: says what is read, and how much.
            guard: drops what gives the answer away.
        """
        if not mode.source:
            return [FoundReferences([]) for _ in items]
        others = [self._partner(item) for item in items] if mode.source == "other" else []
        if mode.source in ("retrieved", "absent", "other"):
            self.search([*items, *others])
        found = []
        for n, item in enumerate(items):
            if mode.source == "gold":
                names: list[tuple[str, float]] = [(name, 0.0) for name in self.task.holders(self.bank, item)]
            elif mode.source == "random":
                names = [(name, 0.0) for name in self._draw(item, mode.k)]
            else:
                hits = self._hits[(others[n] if others else item).id]
                if mode.source != "retrieved":
                    hits = [hit for hit in hits if hit[1] not in item.gold]
                names = [(name, score) for name, _, score in hits]
            names = names[: mode.k]
            if mode.source not in ("gold", "random"):
                names = [(name, score) for name, score in names if score >= names[0][1] - mode.gap]
            kept = [(name, score) for name, score in names if not self._gives_away(guard, item, name)]
            found.append(
                FoundReferences([name for name, _ in kept], len(names) - len(kept), tuple(score for _, score in kept))
            )
        return found

    def search(self, items: Sequence[Item]) -> None:
        """Look up those that have not been yet, all at once."""
        new = list({item.id: item for item in items if item.id not in self._hits}.values())
        if not new:
            return
        found = self.bank.search([item.query for item in new], self.k + _SPARE)
        for item, hits in zip(new, found, strict=True):
            self._hits[item.id] = [(hit.reference_id, hit.document_id, float(hit.score)) for hit in hits]

    def recall_at(self, items: Sequence[Item], k: int) -> float | None:
        """Share of the items that have a reference holding the answer among the first ``k`` retrieved.

        None where nobody knows which those are.
        """
        self.search(items)
        known = [(item, set(self.task.holders(self.bank, item))) for item in items]
        hits = [any(name in holders for name, _, _ in self._hits[item.id][:k]) for item, holders in known if holders]
        return sum(hits) / len(hits) if hits else None

    def overlapping(self, items: Sequence[Item], k: int, guards: Sequence[Guard]) -> list[tuple[int, int]]:
        """For each guard, how many of the first ``k`` references of all items it drops, and of how many items.

        Args:
            items: what is asked.
            k: references looked at per item.
            guards: each is counted alone.
        """
        self.search(items)
        counts = []
        for guard in guards:
            drops = [
                sum(
                    guard.drops(self._question_tokens(item), self._reference_tokens(name))
                    for name, _, _ in self._hits[item.id][:k]
                )
                for item in items
            ]
            counts.append((sum(drops), sum(d > 0 for d in drops)))
        return counts

    def _gives_away(self, guard: Guard, item: Item, name: str) -> bool:
        if guard.threshold is None:
            return False
        return guard.drops(self._question_tokens(item), self._reference_tokens(name))

    def _question_tokens(self, item: Item) -> list[int]:
        if item.id not in self._question:
            self._question[item.id] = self.m3.prompts.ids(item.query)
        return self._question[item.id]

    def _reference_tokens(self, name: str) -> tuple[int, ...]:
        if name not in self._tokens:
            wanted = {name} | {n for hits in self._hits.values() for n, _, _ in hits[: self.k] if n not in self._tokens}
            self._tokens.update({r.id: r.token_ids for r in self.bank.references(sorted(wanted))})
        return self._tokens[name]

    def _rng(self, item: Item, purpose: str) -> Any:
        return random.Random(f"{self.seed}:{purpose}:{self.task.name}:{item.id}")

    def _draw(self, item: Item, k: int) -> list[str]:
        drawn = self._rng(item, "random").sample(self._pool, len(self._pool))
        return [name for name in drawn if self._documents[name] not in item.gold][:k]

    def _partner(self, item: Item) -> Item:
        """Another question, whose right documents are not this one's."""
        rng, items = self._rng(item, "other"), self._partners
        other = item
        for _ in range(100):
            other = items[rng.randrange(len(items))]
            if other.id != item.id and not set(other.gold) & set(item.gold):
                break
        return other
