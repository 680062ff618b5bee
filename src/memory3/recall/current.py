"""Whom the forward passes of a thread belong to.

A recall is entered by ``with``; passes of the same thread (or task: it is a context variable) belong to what was entered
last. State lives in the recall, so several may be open on one model: in threads beside one another, within one another,
or entered by turns for a pass each.

The model has one hook, which stays: hooks that came and went would be in the way of passes of other threads. It does
nothing while nobody has entered.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from memory3.errors import RecallError

__all__ = ["Nobody", "Owner", "belong_to", "install", "owner"]


class Owner(Protocol):
    """Whom forward passes belong to."""

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called before each of its passes, as torch calls a pre-hook: None, or other arguments.

        Args:
            args, kwargs: of the forward pass.
        """


class Nobody:
    """Whom passes belong to that read no memories, whatever is open around them."""

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the pass go on as it is: None.

        Args:
            args, kwargs: of the forward pass.
        """


class _Entry:
    """A block that was entered: a model's transformer without its language head, and whom its passes belong to.

    It says itself when it was left, since tasks that were begun in it keep a copy of what was entered then.
    """

    def __init__(self, base: torch.nn.Module, whom: Owner) -> None:
        self.base = base
        self.whom = whom
        self.is_open = True


#: What was entered, innermost last.
_entered: ContextVar[tuple[_Entry, ...]] = ContextVar("memory3_entered", default=())
_guard = threading.Lock()
#: By the identity of a transformer: how many blocks of any thread are open. Such a block holds the transformer, so it
#: stays the same.
_open: Counter[int] = Counter()


@contextmanager
def belong_to(whom: Owner, base: torch.nn.Module) -> Iterator[None]:
    """Forward passes of ``base`` in this thread belong to ``whom``, until the block is left."""
    entry = _Entry(base, whom)
    _count(base, whom, 1)
    _entered.set((*(one for one in _entered.get() if one.is_open), entry))
    try:
        yield
    finally:
        entry.is_open = False
        # Not by a token: a generator may be closed in another context than it began in.
        _entered.set(tuple(one for one in _entered.get() if one is not entry))
        _count(base, whom, -1)


def _count(base: torch.nn.Module, whom: Owner, by: int) -> None:
    if isinstance(whom, Nobody):  # which concerns no other thread
        return
    with _guard:
        _open[id(base)] += by
        if not _open[id(base)]:
            del _open[id(base)]


def install(base: torch.nn.Module) -> None:
    """Give a transformer the hook that asks whom a pass belongs to, unless it has it."""
    with _guard:
        if not any(hook is _ask_owner for hook in base._forward_pre_hooks.values()):
            base.register_forward_pre_hook(_ask_owner, with_kwargs=True)


def owner(base: torch.nn.Module) -> Owner | None:
    """Whom a forward pass of ``base`` in this thread belongs to; None: nobody has said so."""
    return next((one.whom for one in reversed(_entered.get()) if one.base is base and one.is_open), None)


def _ask_owner(base: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if (
        id(base) not in _open or "memory3" in kwargs
    ):  # that has a reader already: the encoder, at work inside a recall (lazy encoding)
        return None
    whom = owner(base)
    if whom is None:
        raise RecallError(
            "this thread runs a model in which another thread is recalling: enter the recall in the thread that "
            "generates, or use "
            "Memory3.generate"
        )
    return whom.before_forward(args, kwargs)
