"""Why nothing is read: what a caller asked a bank for that cannot give a single reference, and how to say so."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from memory3.recall.retrieval import Retrieval

__all__ = ["Counted", "Described", "why_nothing"]


class Counted(Protocol):
    """What is asked of a bank."""

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many references there are."""


@runtime_checkable
class Described(Protocol):
    """A bank that knows what its documents can be filtered by."""

    def metadata(self) -> Mapping[str, Sequence[Any]]:
        """By key, its values."""


def why_nothing(bank: Counted, each: Sequence[Retrieval]) -> list[str]:
    """For each request why it can read nothing of the bank; empty where it can.

    Args:
        bank: that is asked.
        each: what the requests look up.
    """
    found: dict[str, str] = {}
    return [_why(bank, retrieval, found) for retrieval in each]


def _why(bank: Counted, retrieval: Retrieval, found: dict[str, str]) -> str:
    """``found``: what the bank has said of a condition before."""
    where = retrieval.where
    if retrieval.references is not None:
        return "" if retrieval.references else "no references were given: answered without the bank"
    if retrieval.k == 0:
        return "0 references were asked for: answered without the bank"
    key = repr(where)
    if key not in found:
        if bank.count(where):
            found[key] = ""
        elif not where or not bank.count():
            found[key] = "the bank is empty: answered without it"
        else:
            found[key] = f"no reference has {_condition(where)}: answered without the bank{_hint(bank, where)}"
    return found[key]


def _condition(where: Mapping[str, Any]) -> str:
    """``year=2020 and lang=en or de``."""
    return " and ".join(f"{key}={' or '.join(dict.fromkeys(map(str, _listed(value))))}" for key, value in where.items())


def _hint(bank: object, where: Mapping[str, Any]) -> str:
    """What there is instead of what was asked for."""
    there = bank.metadata() if isinstance(bank, Described) else {}
    if not there:
        return ""
    for key, value in where.items():
        if key not in there:
            near = difflib.get_close_matches(key, there, n=1)
            return f". Did you mean {near[0]}? Keys: {_some(there)}" if near else f". Keys that exist: {_some(there)}"
        if not {str(one) for one in _listed(value)} & {str(one) for one in there[key]}:
            return f". Values of {key}: {_some(there[key])}"
    return ""


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _some(names: Any, most: int = 8) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")
