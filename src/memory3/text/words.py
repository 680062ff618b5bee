"""Words of a text as they are compared: in small letters and without their endings. Made for English; other languages that put
spaces between words lose their endings only where these are English ones too.
"""

from __future__ import annotations

import re

__all__ = ["COMMON", "has_words", "stem", "words"]

_WORD = re.compile(r"[^\W_]+(?:[.,'’][^\W_]+)*")
_ENDINGS = ("'s", "’s", "ing", "ied", "ies", "ed", "es", "s", "e")
#: Letters of scripts that put no spaces between words: Thai to Burmese, Khmer, Japanese and Chinese.
_UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_ASKING = """
a an the of in on at to for from by with as and or but if than then that this these those is are was were be been being am do
does did done has have had having will would shall should can could may might must not no it its he she they them his her their
we our us you your i me my who whom whose which what when where why how many much some any there here about into over after
before between during under out up down s t
"""
#: Words that ask, and do not say what about.
COMMON = frozenset(_ASKING.split())


def words(text: str) -> list[str]:
    """In order, in small letters; ``3,100.5`` is one, and loses its comma."""
    return [word.lower().replace(",", "") for word in _WORD.findall(text)]


def stem(word: str) -> str:
    """A word of `words` without its ending, where three letters are left."""
    for end in _ENDINGS:
        if word.endswith(end) and len(word) - len(end) >= 3:
            return word[: -len(end)]
    return word


def has_words(text: str) -> bool:
    """Whether a text's words can be told apart by spaces, and there are any."""
    return _UNSPACED.search(text) is None and _WORD.search(text) is not None
