"""Costs and a model's sizes that are small enough to work out by hand."""

from __future__ import annotations

from memory3.models.sizes import ModelSizes
from memory3.planner.cost import Cost, Costs, Term

#: All sizes different: L=3, H=6, Hkv=2, dh=7, d=11, W=13, vocabulary 17, so H dh = 42 is not d.
ODD = ModelSizes(3, 6, 2, 7, 11, 13, 17)


def lines(implicit=(100, 0), explicit=(10, 1), external=(0, 6)):
    """Costs with these (write, read)."""
    return Costs(*(Cost((Term("", "", write),), (Term("", "", read),)) for write, read in (implicit, explicit, external)))
