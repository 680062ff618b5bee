"""Which edges of texts are one edge, and how much each of them weighs: the values that everything else passes on.

An edge of a circuit stands for the edges of all texts that have its layer, its head and the roles of its ends. Its weight is
what the log-likelihood of the answer loses when all of them are taken out, in nats, the mean of the texts: above 0 it helps
the answer, below 0 it stands against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from memory3.interpret.texts import Text

__all__ = ["Alignment", "Edge", "Weights"]


@dataclass(frozen=True, order=True)
class Edge:
    """An edge of a circuit.

    Attributes:
        layer: from 0.
        head: the query head; -1: the layer's MLP.
        source: role of the key's token; of an MLP the role of its token.
        to: role of the query's token.
    """

    layer: int
    head: int
    source: str
    to: str

    @property
    def is_mlp(self) -> bool:
        """Whether it is an MLP."""
        return self.head < 0

    def __str__(self) -> str:
        part = f"MLP at {self.to}" if self.is_mlp else f"head {self.head}, {self.to} from {self.source}"
        return f"layer {self.layer}, {part}"


class Alignment:
    """Which edges of some texts are one.

    The tables are made when they are first asked for: they grow with the square of a text's length.

    Attributes:
        texts: as they were given.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = tuple(texts)

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """P names of attention edges, ``(source, to)``."""
        return self._tables[0]

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """R names of tokens."""
        return tuple(dict.fromkeys(role for text in self.texts for role in text.roles))

    @cached_property
    def _tables(self) -> tuple[tuple[tuple[str, str], ...], list[torch.Tensor]]:
        pairs: dict[tuple[str, str], int] = {}
        tables: list[torch.Tensor] = []
        for text in self.texts:
            size = len(text.tokens)
            table = torch.full((size, size), -1)
            for to in range(size):
                row = [pairs.setdefault(text.edge(source, to), len(pairs)) for source in range(to + 1)]
                table[to, : to + 1] = torch.tensor(row)
            tables.append(table)
        return tuple(pairs), tables

    @cached_property
    def _role_tables(self) -> list[torch.Tensor]:
        numbers = {role: n for n, role in enumerate(self.roles)}
        return [torch.tensor([numbers[role] for role in text.roles]) for text in self.texts]

    def pair_ids(self, text: int) -> torch.Tensor:
        """int64 ``[T, T]``, the query's place first: number of the pair in `pairs`, -1 above the diagonal."""
        return self._tables[1][text]

    def role_ids(self, text: int) -> torch.Tensor:
        """int64 ``[T]``: number of the role in `roles`."""
        return self._role_tables[text]

    def batches(self, most: int = 512) -> list[list[int]]:
        """Numbers of texts of one length and with answers at the same places, so many tokens together at most.

        Args:
            most: tokens of a batch; one text is a batch at least.
        """
        alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for number, text in enumerate(self.texts):
            alike.setdefault((len(text.tokens), tuple(place for place, _ in text.targets)), []).append(number)
        found: list[list[int]] = []
        for (size, _), numbers in alike.items():
            step = max(1, most // size)
            found += [numbers[n : n + step] for n in range(0, len(numbers), step)]
        return found


@dataclass(frozen=True)
class Weights:
    """Of all edges of a circuit, in nats.

    Attributes:
        alignment: what the numbers belong to.
        attention: ``[L, A, P]``.
        mlps: ``[L, R]``.
    """

    alignment: Alignment
    attention: torch.Tensor
    mlps: torch.Tensor

    def of(self, edge: Edge) -> float:
        """The weight of an edge.

        Args:
            edge: one of this alignment.
        """
        if edge.is_mlp:
            return float(self.mlps[edge.layer, self.alignment.roles.index(edge.to)])
        return float(self.attention[edge.layer, edge.head, self.alignment.pairs.index((edge.source, edge.to))])

    @property
    def count(self) -> int:
        """How many edges there are."""
        return self.attention.numel() + self.mlps.numel()

    def ranked(self, most: int | None = None) -> list[Edge]:
        """Edges by how far their weights are from 0, the farthest first.

        Args:
            most: how many; None: all.
        """
        _, heads, pairs = self.attention.shape
        every = torch.cat([self.attention.flatten(), self.mlps.flatten()]).abs()
        order = every.argsort(descending=True, stable=True)[:most].tolist()
        found: list[Edge] = []
        for at in order:
            if at < self.attention.numel():
                layer, rest = divmod(at, heads * pairs)
                head, pair = divmod(rest, pairs)
                found.append(Edge(layer, head, *self.alignment.pairs[pair]))
            else:
                layer, role = divmod(at - self.attention.numel(), len(self.alignment.roles))
                found.append(Edge(layer, -1, self.alignment.roles[role], self.alignment.roles[role]))
        return found
