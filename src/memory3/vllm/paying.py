"""`Payments`: how much attention the tokens of a worker's rows paid to each reference, counted until somebody asks.

Queries are kept as they come, and one product per layer and head tells of all of them when what a row reads changes, or when
somebody asks (`memory3.attention.reading`): to add attention up at each step would read every memory twice as often.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memory3.attention.reading import Reading, counted
from memory3.types import LayerMemory, MemoryBatch

__all__ = ["Lead", "Paid", "Payments"]

#: Tokens of which queries are kept.
_TOKENS = 64
#: By token, counted from the request's first, by reference: attention over the layers that are counted and a worker's heads.
Paid = dict[int, dict[str, float]]


class Lead:
    """Memories that tokens of one row read (`memory3.attention.lane.Leading`). It is shown their queries.

    Attributes:
        batch: the memories, of one chunk.
        counted: layers whose queries it wants to see.
    """

    def __init__(self, batch: MemoryBatch, names: Sequence[str]) -> None:
        """
        Args:
            batch: the memories, of one chunk.
            names: of its references.
        """
        self.batch = batch
        self.counted = counted(batch.layers)
        self._names = names
        self._reading = Reading(batch)
        self._tokens: list[int] = []

    def fed(self, token: int) -> bool:
        """A token will read them next. Returns whether so many have that they are to be settled before."""
        self._tokens.append(token)
        return len(self._tokens) > _TOKENS

    def saw(self, layer: int, query: torch.Tensor, lse: torch.Tensor, scale: float) -> None:
        """See `memory3.attention.reading.Reading.saw`.

        Args:
            layer: number of the layer, one of ``counted``.
            query: ``[1, A, 1, d]``.
            lse: ``[1, A, 1]``.
            scale: what scores were multiplied with.
        """
        self._reading.saw(layer, query, lse, scale)

    def settled(self) -> Paid:
        """What was paid since the last call."""
        paid = self._reading.settle_each(self.batch)[0].tolist()  # [T, R]
        read, self._tokens = self._tokens[: len(paid)], self._tokens[len(paid) :]
        return {at: dict(zip(self._names, mass, strict=False)) for at, mass in zip(read, paid, strict=True)}


class Payments:
    """Of all rows of a worker."""

    def __init__(self) -> None:
        self._leads: dict[str, Lead] = {}
        self._paid: dict[str, Paid] = {}

    def lead(self, request: str, batch: MemoryBatch, names: Sequence[str]) -> Lead:
        """Tokens of a row will read other memories.

        Args:
            request: whose row.
            batch: the memories, of one or more chunks, of which the last counts.
            names: of its references.
        """
        self.settle(request)
        layers = {number: _last(layer) for number, layer in batch.layers.items()}
        lead = self._leads[request] = Lead(MemoryBatch(layers, batch.references[-1:]), names)
        return lead

    def fed(self, request: str, token: int) -> None:
        """A token of a row is about to read.

        Args:
            request: whose row.
            token: counted from the request's first.
        """
        if self._leads[request].fed(token):
            self.settle(request)

    def settle(self, request: str) -> None:
        """Count what was kept of a row. A token that was computed again pays once."""
        lead = self._leads.get(request)
        if lead is not None:
            self._paid.setdefault(request, {}).update(lead.settled())

    def take(self, request: str) -> Paid:
        """What a row's tokens paid, as far as it was not told yet."""
        self.settle(request)
        return self._paid.pop(request, {})

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._leads.pop(request, None)
        self._paid.pop(request, None)


def _last(layer: LayerMemory) -> LayerMemory:
    """The last chunk of what chunks read in a layer; a view."""
    bias = None if layer.bias is None else layer.bias[-1:]
    return LayerMemory(layer.keys[-1:], layer.values[-1:], bias, layer.owner[-1:], layer.widths)
