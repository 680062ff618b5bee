"""Personal data masked: e-mail and public IPv4 addresses, by datatrove's formatter.

Names, telephone numbers and all else stay.
"""

from __future__ import annotations

from collections.abc import Iterator

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.formatters.pii import PIIFormatter

__all__ = ["EMAIL", "IP", "Personal", "masked"]

#: What stands in the place of what was masked.
EMAIL, IP = "[e-mail]", "[IP address]"
#: Longest e-mail address (RFC 5321: 64 characters, an @ and 255).
_REACH = 320


class Personal(PIIFormatter):
    """Masks texts and the metadata that are text. Ids and sources stay: documents are found by them."""

    name = "personal"

    def __init__(self) -> None:
        super().__init__(email_replacement=EMAIL, ip_replacement=IP)

    def format(self, text: str) -> str:
        """A text, masked. Only what is near an @ is searched for addresses: in a long text without one, the time of
        the pattern grows with the square of its length.
        """
        parts: list[str] = []
        end = 0
        for start, stop in _around(text, "@"):
            parts += (text[end:start], self.emails_replacer.replace(text[start:stop]))
            end = stop
        return self.ip_replacer.replace("".join([*parts, text[end:]]))

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents of a task, masked."""
        for document in data:
            fields = document.metadata["fields"]
            changed = {name: self.format(value) if isinstance(value, str) else value for name, value in fields.items()}
            text = self.format(document.text)
            self.stat_update("total")
            if text != document.text or changed != fields:
                self.stat_update("masked")
                document.text, document.metadata["fields"] = text, changed
            yield document


def masked(text: str) -> str:
    """A text as the stage leaves it."""
    return Personal().format(text)


def _around(text: str, mark: str) -> Iterator[tuple[int, int]]:
    """The stretches within an address's length of a mark, those that meet made one."""
    start = stop = -1
    place = text.find(mark)
    while place >= 0:
        if start < 0 or place - _REACH > stop:
            if start >= 0:
                yield start, stop
            start = max(0, place - _REACH)
        stop = min(len(text), place + _REACH)
        place = text.find(mark, place + 1)
    if start >= 0:
        yield start, stop
