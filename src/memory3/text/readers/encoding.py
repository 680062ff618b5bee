"""From bytes to text that every later stage can take."""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

__all__ = ["LooksBinary", "clean", "decode", "encoding_of", "marked_encoding", "with_plain_newlines"]

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")

#: Share of control characters above which a guessed text is taken for binary.
_MOST_CONTROL = 0.02


class LooksBinary(ValueError):
    """The bytes are no text in any encoding that could be recognised."""

    def __init__(self) -> None:
        super().__init__("looks binary: it has NUL bytes or no known text encoding")


def clean(text: str) -> str:
    """Replace by U+FFFD what cannot be written as UTF-8 (lone surrogates) and NUL, which ends strings elsewhere."""
    return _UNSTORABLE.sub("\ufffd", text)


def with_plain_newlines(text: str) -> str:
    """``\\r\\n`` and ``\\r`` as ``\\n``, so that a checkout on Windows gives the same documents."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def marked_encoding(content: bytes) -> str | None:
    """The encoding a byte order mark announces."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)


def encoding_of(content: bytes, guess: bool = True) -> str:
    """Name of the encoding of some text.

    In this order: a byte order mark decides; UTF-8 where it fits, or where more characters beyond ASCII fit than do not; else what
    charset-normalizer finds, which honours declarations such as ``<meta charset>``.

    Args:
        content: the bytes, or the first lines of them.
        guess: whether encodings other than UTF-8 may be guessed.

    Raises:
        LooksBinary: NUL bytes without a mark, or no encoding fits.
    """
    if marked := marked_encoding(content):
        return marked
    if b"\0" in content:
        raise LooksBinary
    try:
        content.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        text = content.decode("utf-8", "replace")
    if sum(not character.isascii() for character in text) > 2 * text.count("\ufffd"):
        return "utf-8"
    best = from_bytes(content).best() if guess else None
    if best is None or len(_CONTROL.findall(str(best))) > _MOST_CONTROL * len(str(best)):
        raise LooksBinary
    return best.encoding


def decode(content: bytes, guess: bool = True) -> tuple[str, str | None]:
    """Text, and a warning where damaged places became U+FFFD. Arguments and errors as for `encoding_of`."""
    encoding = encoding_of(content, guess)
    try:
        return content.decode(encoding), None
    except UnicodeDecodeError as error:
        warning = f"read, but damaged places became U+FFFD: not {encoding} from byte {error.start} on"
        return content.decode(encoding, "replace"), warning
