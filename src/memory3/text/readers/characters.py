"""Characters that change how a text looks or breaks, but not what it says: texts that differ in nothing else become one.

Dropped: soft hyphens (with the line end behind), word joiners, byte order marks, bidirectional controls, invisible
    operators and
tags; zero-width spaces and (non-)joiners where no script needs them. No-break and fixed-width spaces become spaces, the Latin
ligatures U+FB00 to U+FB06 letters. Kept: joiners in emoji and in Arabic, Indic and other joining scripts, zero-width spaces
between words of scripts without spaces, tags of flags, variation selectors, superscripts, fractions, the ideographic space.
"""

from __future__ import annotations

import regex

__all__ = ["plain"]

# Scripts in which a joiner or non-joiner behind a letter says nothing, and what is of no script.
_NOT_JOINING = (
    r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Armenian}\p{Georgian}\p{Hebrew}\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{N}\p{P}\s]"
)
_WITHOUT_SPACES = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}]"
_JOINERS = regex.compile(rf"(?:(?<={_NOT_JOINING})|\A)[\u200c\u200d]++")
_ZERO_WIDTH_SPACES = regex.compile(r"\u200b++")
_ZERO_WIDTH_SPACE = regex.compile(rf"(?<!{_WITHOUT_SPACES})\u200b|\u200b(?!{_WITHOUT_SPACES})")
_TAGS = regex.compile(r"(\U0001f3f4[\U000e0020-\U000e007e]++\U000e007f)|[\U000e0000-\U000e007f]++")

_DROPPED = (0xAD, 0x61C, 0x180E, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF)
_SPACES = (0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F)
_LIGATURES = ("ff", "fi", "fl", "ffi", "ffl", "st", "st")
_REPLACED: dict[int, str | None] = {
    **dict.fromkeys(_DROPPED),
    **dict.fromkeys(_SPACES, " "),
    **dict(enumerate(_LIGATURES, start=0xFB00)),
}
_ANY = regex.compile(
    r"[\u00a0\u00ad\u061c\u180e\u2000-\u200f\u202a-\u202f\u205f-\u2069\ufb00-\ufb06\ufeff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """A text without the characters named above."""
    if not _ANY.search(text):
        return text
    text = text.replace("\u00ad\n", "")
    # Shaping never leaves an f before these two: it is theirs, and stands there twice.
    text = text.replace("f\ufb03", "\ufb03").replace("f\ufb04", "\ufb04")
    text = _TAGS.sub(lambda found: found[1] or "", text.translate(_REPLACED))
    text = _ZERO_WIDTH_SPACE.sub("", _ZERO_WIDTH_SPACES.sub("\u200b", text))
    return _JOINERS.sub("", text)
