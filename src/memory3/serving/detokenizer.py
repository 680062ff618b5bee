"""`Detokenizer`: the text of tokens that come one by one, at the same cost for each.

To decode all tokens again at each new one costs as the square of their number. Here only the last ones are decoded, and
what they add is put behind the text of those before. A few tokens are decoded twice, since what a decoder writes for a
token can depend on the one before it. Exact twin: `decode` of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer"]

#: What decoders write for bytes that are no character yet.
UNFINISHED = "\ufffd"
#: Tokens that are decoded again at each new one, at most, as long as their texts can be told apart.
_WINDOW = 24
#: Tokens that a new window shares with the old one.
_SHARED = 6


class Detokenizer:
    """The text of tokens so far.

    Attributes:
        ids: the tokens.
        text: their text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """
        Args:
            decode: the text of tokens.
        """
        self.ids: list[int] = []
        self.text = ""
        self._decode = decode
        self._start = 0  # of the window
        self._before = ""  # text of the tokens before the window

    def add(self, token: int) -> str:
        """Take a token. Returns the text of all."""
        self.ids.append(token)
        self.text = self._before + self._decode(self.ids[self._start :])
        if len(self.ids) - self._start >= _WINDOW:
            self._move()
        return self.text

    def _move(self) -> None:
        """Let the window begin later, if its text there is the end of the text of all."""
        start = len(self.ids) - _SHARED
        tail = self._decode(self.ids[start:])
        if tail and UNFINISHED not in tail and self.text.endswith(tail):
            self._start, self._before = start, self.text[: len(self.text) - len(tail)]
