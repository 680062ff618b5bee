"""Which document belongs in which format, given how often each was used: eq. 1 taken literally, against one format for all.

A document of r references that was recalled c times costs  r write + c read  in a format; its cheapest is chosen. Knows costs
and usage; nothing of banks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from memory3.errors import InputError
from memory3.planner.cost import FORMATS, Costs
from memory3.planner.usage import DocumentUsage

__all__ = ["Allocation", "allocate"]


@dataclass(frozen=True)
class Allocation:
    """The cheapest format of each document, in the order of the usage it was made from.

    Attributes:
        usage: documents and counts.
        formats: name of `memory3.planner.cost.FORMATS` for each.
        each: for ``"cheapest"`` and each format, what every document costs in it, FLOPs.
    """

    usage: tuple[DocumentUsage, ...]
    formats: tuple[str, ...]
    each: dict[str, tuple[float, ...]]

    @property
    def totals(self) -> dict[str, float]:
        """FLOPs of all documents: the cheapest format for each, and one format for all."""
        return {name: sum(costs) for name, costs in self.each.items()}

    @property
    def documents(self) -> dict[str, int]:
        """Number of documents by format."""
        count = Counter(self.formats)
        return {name: count[name] for name in FORMATS}


def allocate(usage: Sequence[DocumentUsage], costs: Costs) -> Allocation:
    """Choose for each document; of equally cheap formats the one that is cheaper to write.

    Args:
        usage: how often each document is read, and of how many references it is.
        costs: of writing and reading a reference in each format.

    Raises:
        InputError: no documents.
    """
    if not usage:
        raise InputError("no document to allocate: the usage is empty")
    priced = {
        name: tuple(u.references * cost.write_flops + u.count * cost.read_flops for u in usage)
        for name, cost in costs.formats().items()
    }
    # Cheapest to write first: of equals, the first is taken.
    choices = [
        min((priced[name][place], order, name) for order, name in enumerate(reversed(FORMATS))) for place in range(len(usage))
    ]
    formats = tuple(name for _, _, name in choices)
    cheapest = tuple(cost for cost, _, _ in choices)
    return Allocation(tuple(usage), formats, {"cheapest": cheapest, **priced})
