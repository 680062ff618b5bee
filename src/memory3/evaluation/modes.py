"""Modes: what a question is answered from. Two choices make one: how it is read, and which references.

    memory   read as memories      those retrieved
    text     read as text (RAG)    those retrieved
    none     nothing               -                        closed book
    random   read as memories      random ones              control: does any memory help?
    other    read as memories      those another question got   control: do good memories of another subject help?
    gold, gold_text                the right one, as memory or as text: what retrieval costs
    absent   read as memories      those that a bank without the right document would give

A mode may name its number of references, ``text:7``, and how far their cosine may be below the best one's, ``memory:5@0.05``.
Without a number, both are the settings'.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memory3.errors import ConfigError

__all__ = ["CONTROLS", "KINDS", "Mode", "parse_modes"]

#: How each kind is read, and which references it reads.
KINDS: dict[str, tuple[str, str]] = {
    "memory": ("memory", "retrieved"),
    "text": ("text", "retrieved"),
    "none": ("none", ""),
    "random": ("memory", "random"),
    "other": ("memory", "other"),
    "gold": ("memory", "gold"),
    "gold_text": ("text", "gold"),
    "absent": ("memory", "absent"),
}

CONTROLS = ("random", "other")


@dataclass(frozen=True)
class Mode:
    """One way of answering.

    Attributes:
        kind: a key of `KINDS`.
        k: references at most.
        gap: by how much their score may be below the best one's.
    """

    kind: str
    k: int
    gap: float = 2.0

    @property
    def read(self) -> str:
        """``"memory"``, ``"text"`` or ``"none"``."""
        return KINDS[self.kind][0]

    @property
    def source(self) -> str:
        """``"retrieved"``, ``"random"``, ``"other"``, ``"gold"``, or nothing."""
        return KINDS[self.kind][1]

    @property
    def name(self) -> str:
        """``memory:5``, ``memory:5@0.05``; ``none``, which reads nothing, and ``gold``, which reads one, have no number."""
        if self.source in ("", "gold"):
            return self.kind
        return f"{self.kind}:{self.k}" + (f"@{self.gap:g}" if self.gap < 2 and self.source != "random" else "")

    def __str__(self) -> str:
        return self.name


def parse_modes(texts: Sequence[str], k: int, gap: float = 2.0) -> list[Mode]:
    """``["memory", "text:3"]``; ``k`` and ``gap`` where no number is given.

    Args:
        texts: modes as the command line has them.
        k: references to read where no number is given.
        gap: how far below the best a reference may score; 2 is any.

    Raises:
        ConfigError: an unknown mode, a number that is none, or no mode at all.
    """
    modes: dict[str, Mode] = {}
    for text in (t.strip() for t in texts):
        if not text:
            continue
        kind, colon, number = text.partition(":")
        number, at, distance = number.partition("@")
        if kind not in KINDS:
            raise ConfigError(
                f"mode {text!r} is unknown: use some of {', '.join(KINDS)}, with a number of references as in text:3"
            )
        far = re.fullmatch(r"[01](\.\d+)?|\.\d+", distance)
        if (colon and (not number.isdigit() or int(number) < 1 or KINDS[kind][1] in ("", "gold"))) or (at and not far):
            raise ConfigError(
                f"mode {text!r}: write {kind}:N with N from 1, or {kind}:N@GAP with a gap below 2"
                if KINDS[kind][1]
                else f"mode {text!r}: {kind} reads none"
            )
        most = 0 if not KINDS[kind][1] else 1 if KINDS[kind][1] == "gold" else int(number) if colon else k
        mode = Mode(kind, most, float(distance) if at else 2.0 if colon else gap)
        modes.setdefault(mode.name, mode)
    if not modes:
        raise ConfigError(f"no mode was given: use some of {', '.join(KINDS)}")
    return list(modes.values())
