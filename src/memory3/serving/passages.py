"""The passage behind a citation, with the text that stands around it in its document."""

from __future__ import annotations

from dataclasses import dataclass

from memory3.bank.view import BankView
from memory3.types import Reference

__all__ = ["Passage", "passage_of"]


@dataclass(frozen=True)
class Passage:
    """A part of a document, in which one reference is meant.

    Attributes:
        reference: the one that is meant.
        text: of the part.
        offset: character of the document that the part begins at; ``text[reference.start - offset:reference.end - offset]``
            is the reference's text.
        is_start, is_end: whether the document begins, or ends, with the part.
    """

    reference: Reference
    text: str
    offset: int
    is_start: bool
    is_end: bool


def passage_of(view: BankView, reference_id: str, around: int) -> Passage | None:
    """A reference among those before and behind it; None: the bank has no such reference.

    Args:
        view: of the bank.
        reference_id: as a citation says it.
        around: references before it, and behind it, at most.

    Raises:
        BankError: the bank cannot be read.
    """
    document, mark, number = reference_id.rpartition("#")
    if not mark or not number.isascii() or not number.isdigit() or len(number) > 12:
        return None
    place = int(number)
    wanted = [f"{document}#{n}" for n in range(max(0, place - around), place + around + 2)]
    known = view.snapshot.row_ids(wanted)
    if reference_id not in known:
        return None
    found = {one.ordinal: one for one in view.references([id_ for id_ in wanted if id_ in known])}
    first = last = place
    while first - 1 in found and place - first < around:
        first -= 1
    while last + 1 in found and last - place < around:
        last += 1
    text = "".join(found[n].text for n in range(first, last + 1))
    return Passage(found[place], text, found[first].start, first == 0, last + 1 not in found)
