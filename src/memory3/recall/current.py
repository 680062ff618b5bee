"""Which recall the forward passes of a thread belong to.

A recall is entered by ``with``; passes of the same thread (or task: it is a context variable) belong to the recall that was entered last. State lives in
the recall, so several may be open on one model: in threads beside one another, within one another, or entered by turns for a pass each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["Nobody", "belong_to", "owner"]

#: What was entered, innermost last: a model's transformer without its language head, and whom its passes belong to.
_entered: ContextVar[tuple[tuple[torch.nn.Module, object], ...]] = ContextVar("memory3_entered", default=())


class Nobody:
    """Whom passes belong to that read no memories, whatever is open around them."""


@contextmanager
def belong_to(whom: object, base: torch.nn.Module) -> Iterator[None]:
    """Forward passes of ``base`` in this thread belong to ``whom``, until the block is left."""
    entry = (base, whom)
    _entered.set((*_entered.get(), entry))
    try:
        yield
    finally:
        # Not by a token: a generator may be closed in another context than it began in.
        _entered.set(tuple(one for one in _entered.get() if one is not entry))


def owner(base: torch.nn.Module) -> object | None:
    """Whom a forward pass of ``base`` in this thread belongs to; None: nobody has said so."""
    return next((whom for model, whom in reversed(_entered.get()) if model is base), None)
