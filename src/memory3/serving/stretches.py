"""The text of an answer as it grows: what may be shown already, where a stop text ends it, and into which stretches it
falls, so that each can be cited for itself.

A stretch is a sentence or a line. Knows no model and no bank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory3.serving.detokenizer import UNFINISHED, Detokenizer

__all__ = ["GrowingText", "Stretch"]

#: Where a stretch ends: behind the end of a sentence that something follows, or behind a line.
_END = re.compile(r"[.!?]['\")\]]*(?=\s)|\n")
#: Tokens of a stretch at most; a longer sentence is several.
MOST_TOKENS = 64


@dataclass(frozen=True)
class Stretch:
    """A part of an answer.

    Attributes:
        start, end: which characters of the answer.
        first, last: which of its tokens: those from ``first`` to before ``last``.
    """

    start: int
    end: int
    first: int
    last: int


class GrowingText:
    """The text of one answer.

    Attributes:
        text: what may be shown: without white space around it, and without what may become a stop text.
        stopped: whether a stop text ended it.
        stretches: those that are complete.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        """
        Args:
            decode: the text of tokens.
            stop: texts that end the answer; they are not part of it.
        """
        self.text = ""
        self.stopped = False
        self.stretches: list[Stretch] = []
        self._decode = decode
        self._said = Detokenizer(decode)
        self._stop = [one for one in stop if one]
        self._lengths: list[int] = []  # of the text that may be shown, after each token

    def add(self, token: int) -> str:
        """Take a token. Returns what can be shown in addition; empty, where that is not certain yet."""
        return self._show(self._said.add(token).lstrip(), last=False)

    def finish(self) -> str:
        """The answer has ended. Returns what was held back."""
        more = "" if self.stopped else self._show(self._decode(self._said.ids).strip(), last=True)
        self._cut(last=True)
        return more

    def _show(self, whole: str, last: bool) -> str:
        if self.stopped:
            return ""
        at = min((found for found in (whole.find(one) for one in self._stop) if found >= 0), default=-1)
        if at >= 0:
            self.stopped, safe = True, whole[:at].rstrip()
        elif last:
            safe = whole
        else:
            safe = whole[: len(whole) - self._held(whole)].rstrip(UNFINISHED).rstrip()
        # A decoder may tidy up what it has written before; what was shown stays.
        more = safe[len(self.text) :] if safe.startswith(self.text) else ""
        self.text += more
        self._lengths.append(len(self.text))
        self._cut(last=False)
        return more

    def _held(self, whole: str) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        for size in range(min(len(whole), max(map(len, self._stop), default=1) - 1), 0, -1):
            if any(one.startswith(whole[-size:]) for one in self._stop):
                return size
        return 0

    def _cut(self, last: bool) -> None:
        """Close the stretches that are complete."""
        done = self.stretches[-1] if self.stretches else Stretch(0, 0, 0, 0)
        while True:
            found = _END.search(self.text, done.end)
            long = len(self._said.ids) - done.last >= MOST_TOKENS
            if not found and not ((last or long) and self.text[done.end :].strip()):
                return
            end = found.end() if found else len(self.text)
            start = done.end + len(self.text[done.end : end]) - len(self.text[done.end : end].lstrip())
            if not self.text[start:end].strip():  # an empty line
                done = Stretch(done.start, end, done.first, done.last)
                if end >= len(self.text):
                    return
                continue
            upto = next((n + 1 for n, length in enumerate(self._lengths) if length >= end), len(self._said.ids))
            done = Stretch(start, end, done.last, max(min(upto, len(self._said.ids)), done.last + 1))
            self.stretches.append(done)
