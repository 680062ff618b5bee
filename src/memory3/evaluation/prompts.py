"""Prompts as token rows: one question, read in one way, from given references.

Two styles. ``chat``: the question is a user's turn, as `Memory3.generate` puts it, and what is scored is the assistant's. ``plain``: the context stands as it is
and what is scored follows it, as lm-evaluation-harness has it; memories, or the passages, stand in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memory3.bank import Bank
from memory3.errors import ConfigError
from memory3.llm import Memory3

__all__ = ["STYLES", "PromptRow", "prompt_row", "room"]

STYLES = ("chat", "plain")


@dataclass(frozen=True)
class PromptRow:
    """A prompt.

    Attributes:
        tokens: ids of what the model encodes, without padding.
        references: ids of the references it reads as memories; empty in the modes text and none.
    """

    tokens: list[int]
    references: list[str] = field(default_factory=list)


def room(m3: Memory3, reading: bool) -> int:
    """Positions left for a prompt and what follows it, when memories stand in front or do not."""
    taken = len(m3.frame.prefix) + m3.config.reference_length if reading else 0
    return m3.geometry.max_positions - taken


def prompt_row(
    m3: Memory3, bank: Bank | None, read: str, context: Sequence[int], references: Sequence[str], style: str, *, after: int = 0
) -> PromptRow:
    """The prompt of one context.

    Args:
        m3, bank: who reads, from where.
        read: ``"memory"``, ``"text"`` or ``"none"``.
        context: token ids of the question, without any template.
        references: ids; without any, the question is asked closed-book.
        style: one of `STYLES`.
        after: tokens that will follow; a context too long for the model loses its beginning.
    """
    if style not in STYLES:
        raise ConfigError(f"prompt style {style!r} is unknown: use one of {', '.join(STYLES)}")
    ids, frame = list(context), m3.frame
    read = read if references else "none"
    passages: list[list[int]] = []
    if read == "text":
        if bank is None:
            raise ConfigError("mode text needs a bank")
        passages = [list(reference.token_ids) for reference in bank.references(list(references))]
    around = len(frame.closed_book([0])) + len(frame.separator) if style == "chat" else 1
    around += sum(len(p) + len(frame.separator) for p in passages) + (len(frame.prefix) if passages else 0)
    left = room(m3, read == "memory") - after - around
    if left < 1:
        raise ConfigError(
            f"{len(references)} references leave no room for a question in the {m3.geometry.max_positions} positions of {m3.name}"
        )
    ids = ids[-left:]
    if read == "text":
        return PromptRow(frame.with_text(passages, ids) if style == "chat" else frame.insert_text(ids, passages))
    if read == "memory":
        return PromptRow(frame.after(ids) if style == "chat" else ids, list(references))
    return PromptRow(frame.closed_book(ids) if style == "chat" else ids)
