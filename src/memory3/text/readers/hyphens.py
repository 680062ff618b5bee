"""Words that were parted at the ends of lines, put together again."""

from __future__ import annotations

import regex

__all__ = ["joined"]

_PARTED = regex.compile(r"(?<![^\W_]|[-'’])(\p{L}++(?:['’\-]\p{L}++)*+|[^\W_]++)-[ ]*+\n[ ]*+(?=([^\W_]++))")
_WORDS = regex.compile(r"[^\W_]++(?:-[^\W_]++)*+")

#: First parts of English compounds that keep their hyphen, and words before which a hyphen stands for a part left out.
_FIRST_PARTS = frozenset(
    (
        *("well", "self", "non", "half", "quasi", "high", "low", "long", "full", "first", "second", "third", "two", "three"),
        *("four", "five", "six", "cross", "deep", "real", "fast", "slow", "better", "ever", "large", "small"),
    )
)
_LEFT_OUT = frozenset(("and", "or", "to", "und", "oder", "bis", "et", "ou", "och", "og"))


def joined(text: str) -> str:
    """A text whose words are whole: ``ser-\nvice`` becomes ``service``, ``well-\nknown`` ``well-known``.

    What the rest of the text writes within its lines decides. Else the hyphen stays in a compound: before a capital or a
    number, where the word has another hyphen, and after the usual first parts of English compounds.
    """
    if "-" not in text:
        return text
    written: set[str] | None = None

    def whole(found: regex.Match[str]) -> str:
        nonlocal written
        if written is None:
            written = {word.casefold() for word in _WORDS.findall(text)}
        left, right = found[1], found[2]
        if right in _LEFT_OUT:
            return f"{left}- "
        together, compound = (left + right).casefold(), f"{left}-{right}".casefold()
        if (together in written) != (compound in written):
            keeps = compound in written
        else:
            starts_anew = right[0].isupper() and not (left + right).isupper()
            keeps = starts_anew or right[0].isdigit() or "-" in left or left.casefold() in _FIRST_PARTS
        return f"{left}-" if keeps else left

    return _PARTED.sub(whole, text)
