"""The passage behind a citation, with the text that stands around it in its document."""

from __future__ import annotations

from dataclasses import dataclass

from memory3.bank.view import BankView
from memory3.types import Reference

__all__ = ["Passage", "passage_of"]


@dataclass(frozen=True)
class Passage:
    """A reference in its document.

    Attributes:
        reference: that is meant.
        around: text of the document, of which the reference is a part.
        start: the document's character that ``around`` begins at.
        is_start, is_end: whether the document begins, or ends, with ``around``.
    """

    reference: Reference
    around: str
    start: int
    is_start: bool
    is_end: bool


def passage_of(view: BankView, reference_id: str, around: int) -> Passage | None:
    """A reference among those before and behind it; None: the bank has no such reference.

    Args:
        view: of the bank.
        reference_id: from a client.
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
