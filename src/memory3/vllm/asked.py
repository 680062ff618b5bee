"""What a request says of its memories: ``kv_transfer_params={"memory3": {...}}``, as text that may come from anywhere.

    {"bank": "docs", "k": 5, "gap": 0.2, "where": {"lang": "en"}, "references": ["a#0", "b#3"]}

All of it may be left out. ``false`` in its place: nothing is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory3.config import MemoryConfig
from memory3.errors import ConfigError
from memory3.recall.retrieval import EVERYTHING, Retrieval
from memory3.serving.limits import Limits

__all__ = ["KEY", "MOST", "Wanted", "wanted"]

#: Of a request's parameters, the one that is ours.
KEY = "memory3"
#: References that a request may read at once, where nobody says another number.
MOST = Limits.k
_FIELDS = ("bank", "gap", "k", "references", "where")


@dataclass(frozen=True)
class Wanted:
    """What a request wants to read.

    Attributes:
        bank: name of the bank.
        retrieval: what is looked up there.
    """

    bank: str
    retrieval: Retrieval


def wanted(params: Mapping[str, Any] | None, config: MemoryConfig, default: str | None, most: int = MOST) -> Wanted | None:
    """What a request wants to read; None: nothing.

    Args:
        params: ``kv_transfer_params`` of the request.
        config: what is read where a request does not say.
        default: bank of requests that name none; None: they read nothing.
        most: references that it may ask for at once.

    Raises:
        ConfigError: it says something that cannot be.
    """
    said = (params or {}).get(KEY, {})
    if said is False or (not said and default is None):
        return None
    if not isinstance(said, Mapping):
        raise ConfigError(f"{KEY}: {said!r:.40} is neither an object nor false")
    unknown = sorted(set(map(str, said)) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"{KEY}: {', '.join(unknown):.80} is unknown: give {', '.join(_FIELDS)}")
    bank = said.get("bank", default)
    if not isinstance(bank, str):
        raise ConfigError(f"{KEY}: name a bank of this server in {KEY}.bank")
    k, gap, where, references = (said.get(name) for name in ("k", "gap", "where", "references"))
    if where is not None and not isinstance(where, Mapping):
        raise ConfigError(f"{KEY}: where={where!r:.40} is no object of metadata")
    if gap is not None and (isinstance(gap, bool) or not isinstance(gap, int | float)):
        raise ConfigError(f"{KEY}: gap={gap!r:.40} is no number")
    if references is not None and not (isinstance(references, list) and all(isinstance(one, str) for one in references)):
        raise ConfigError(f"{KEY}: references={references!r:.40} is no list of ids")
    many = len(references) if references is not None else k if isinstance(k, int) else 0
    if many > most:
        raise ConfigError(f"{KEY}: {many} references are asked for, and {most} at most are read at once")
    within = gap if gap is not None else config.score_gap if k is None else EVERYTHING
    pinned = None if references is None else tuple(references)
    return Wanted(bank, Retrieval(config.references_per_chunk if k is None else k, within, where, pinned))
