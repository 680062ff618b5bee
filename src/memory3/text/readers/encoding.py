"""From bytes to text that every later stage can take."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Callable
from typing import BinaryIO, cast

from memory3.errors import InputError

__all__ = [
    "LooksBinary",
    "clean",
    "decode",
    "encoding_of",
    "guess_note",
    "is_guess",
    "marked_encoding",
    "text_codec",
    "transcoded",
    "with_plain_newlines",
]

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Never guessed: valid UTF-8, or a mark says so.
_UNICODE = frozenset(("utf-8", "utf-8-sig", "utf-16", "utf-32"))
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
#: What may be guessed for text in Latin letters, and for any other: what Windows, the web, Unix, DOS and the Mac wrote.
_LATIN = (
    *("windows-1252", "windows-1250", "windows-1254", "windows-1257", "windows-1258", "iso8859-2", "iso8859-15"),
    *("cp437", "cp850", "cp852", "mac-roman"),
)
_OTHERS = (
    *("windows-1251", "koi8-r", "koi8-u", "cp866", "iso8859-5", "windows-1253", "iso8859-7"),
    *("windows-1255", "iso8859-8", "windows-1256", "iso8859-6", "cp874"),
    *("cp932", "euc-jp", "gb18030", "big5", "cp949"),
)
#: Names in declarations that mean more than they say: https://encoding.spec.whatwg.org/#names-and-labels
_MEANT = {
    **dict.fromkeys(("ascii", "iso8859-1"), "windows-1252"),
    "iso8859-9": "windows-1254",
    "tis-620": "cp874",
    "iso8859-11": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
_DECLARED = re.compile(rb"""<(?:meta\b[^>]*?\bcharset|\?xml\b[^>]*?\bencoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_DECLARED_WITHIN = 4096

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
#: Signs of windows-1252 as they stand in text: before a word, behind one, or inside one.
_BEFORE_WORD = frozenset("’‘“„«‹¡¿§£€¥¢±©°µ–—½¼¾×÷·•¬¶\xa0")
_BEHIND_WORD = frozenset("’‘”“»›…™®©°²³¹ªº†‡–—·•‰\xa0\xad")
_IN_WORD = frozenset("’·–—\xa0\xad")

#: Share of control characters above which a guessed text is taken for binary.
_MOST_CONTROL = 0.02
#: Bytes of the lines beyond ASCII that a guess looks at.
_SAMPLE = 64 * 2**10


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


def text_codec(name: str) -> str:
    """The codec a caller names, by Python's name for it. InputError: there is none, or it is no encoding of text."""
    try:
        codec = codecs.lookup(name)
        "a".encode(codec.name)
    except (LookupError, ValueError, TypeError):
        raise InputError(
            f"encoding {name!r} is unknown: name one such as utf-8, windows-1252, iso-8859-2, shift_jis"
        ) from None
    return codec.name


def encoding_of(content: bytes, guess: bool = True) -> str:
    """Name of the encoding of some text.

    In this order: a byte order mark; UTF-8 where it fits, or where more characters beyond ASCII fit than do not; what HTML and
    XML declare, if it fits; a guess. A guess prefers the likely: UTF-16 and UTF-32 where zeros stand as they do in them;
    windows-1252 where it makes all bytes beyond ASCII signs that stand where such signs do (``80 °C``, ``£5``); else what
    chardet finds, for text that is mostly ASCII among the encodings of Latin letters alone. `is_guess` tells guesses.

    Args:
        content: the bytes, or the first lines of them.
        guess: whether an encoding may be guessed or declared.

    Raises:
        LooksBinary: nothing fits.
    """
    if marked := marked_encoding(content):
        return marked
    if b"\0" in content:
        if guess and (wide := _wide_encoding(content)):
            return wide
        raise LooksBinary
    try:
        content.decode("utf-8")
        return _escaped_encoding(content) if guess and b"\x1b$" in content else "utf-8"
    except UnicodeDecodeError:
        text = content.decode("utf-8", "replace")
    if sum(not character.isascii() for character in text) > 2 * text.count("\ufffd"):
        return "utf-8"
    if not guess:
        raise LooksBinary
    name = _declared_encoding(content) or _likeliest(content)
    text = content.decode(name, "replace")
    if len(_CONTROL.findall(text)) > _MOST_CONTROL * len(text):
        raise LooksBinary
    return name


def is_guess(encoding: str, content: bytes) -> bool:
    """Whether `encoding_of` found this encoding by guessing: no mark and no declaration says so, and it is not UTF-8.

    Args:
        encoding: what `encoding_of` said.
        content: the bytes it saw.
    """
    return encoding not in _UNICODE and encoding != _declared_encoding(content)


def guess_note(encoding: str) -> str:
    """What a report says of a guess."""
    return f"read as {encoding}, a guess: if it is another, name it with --encoding"


def decode(content: bytes, guess: bool = True) -> tuple[str, str | None]:
    """Text, and a note where its encoding is a guess or damaged places became U+FFFD.

    Args:
        content: of the whole file.
        guess: whether an encoding may be guessed where nothing names it.

    Raises:
        LooksBinary: it is no text.
    """
    encoding = encoding_of(content, guess)
    note = guess_note(encoding) if is_guess(encoding, content) else None
    try:
        return content.decode(encoding), note
    except UnicodeDecodeError as error:
        damage = f"read, but damaged places became U+FFFD: not {encoding} from byte {error.start} on"
        return content.decode(encoding, "replace"), f"{damage}; {note}" if note else damage


def transcoded(stream: BinaryIO, encoding: str, error: Callable[[str], Exception]) -> BinaryIO:
    """The same text as UTF-8. Reading raises what ``error`` makes of a reason where a byte does not fit the encoding.

    Args:
        stream: bytes in ``encoding``.
        encoding: name of the codec.
        error: makes an exception of a reason.
    """
    return cast(BinaryIO, io.BufferedReader(_Transcoded(stream, encoding, error)))


class _Transcoded(io.RawIOBase):
    """A stream of text in some encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str, error: Callable[[str], Exception]) -> None:
        self._stream = stream
        self._encoding = encoding
        self._error = error
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._before = 0
        self._ready = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill the buffer; 0 at the end."""
        while not self._ready:
            content = self._stream.read(_SAMPLE)
            pending = len(self._decoder.getstate()[0])
            try:
                self._ready = self._decoder.decode(content, final=not content).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                place, byte = self._before - pending + error.start, error.object[error.start]
                raise self._error(f"is not {self._encoding}: byte {place:,} is 0x{byte:02x} ({error.reason})") from None
            self._before += len(content)
            if not content:
                break
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        """Close the stream behind it, too."""
        self._stream.close()
        super().close()


def _declared_encoding(content: bytes) -> str | None:
    """What a page says of itself, if that is an encoding its bytes fit."""
    found = _DECLARED.search(content[:_DECLARED_WITHIN])
    if found is None:
        return None
    try:
        name = text_codec(found[1].decode("ascii"))
        name = text_codec(_MEANT.get(name, name))
        content.decode(name)
    except (InputError, UnicodeDecodeError):
        return None
    return name


def _wide_encoding(content: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: all characters exist, none are controls, and some are ASCII, as spaces are in any
    script.
    """
    for name in _WIDE:
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        common = sum(character.isascii() for character in text)
        exist = all(unicodedata.category(character) not in ("Cn", "Co", "Cs") for character in text)
        if common and 24 * common >= len(text) and exist and "\0" not in text and not _CONTROL.search(text):
            return None if _are_pairs(text) else name
    return None


def _are_pairs(text: str) -> bool:
    """Whether most characters beyond ASCII are two of ASCII each: then a stray NUL stands in text of one byte a character."""
    beyond = [ord(character) for character in text if not character.isascii()]
    pairs = [all(byte < 0x80 and (chr(byte).isprintable() or byte == 10) for byte in divmod(code, 256)) for code in beyond]
    return 5 * sum(pairs) > 3 * len(beyond)  # of Chinese in UTF-16, a third


def _escaped_encoding(content: bytes) -> str:
    """ISO-2022-JP or -KR, which are ASCII to the eye, or UTF-8."""
    for name in ("iso2022_jp", "iso2022_kr"):
        try:
            if not content.decode(name).isascii():
                return name
        except UnicodeDecodeError:
            continue
    return "utf-8"


def _likeliest(content: bytes) -> str:
    """A guess at the encoding of text that is not UTF-8."""
    if _are_signs(content.decode("windows-1252", "replace")):
        return text_codec("windows-1252")
    sample = b"\n".join(line for line in content.splitlines() if not line.isascii())[:_SAMPLE]
    runs = _HIGH_BYTES.findall(sample)
    letters = sum(byte < 0x80 and chr(byte).isalpha() for byte in sample)
    # Words of Latin letters have one or two beyond ASCII at a time; "—————" is no word.
    is_latin = letters >= 2 * sum(map(len, runs)) and all(len(run) < 3 or len(set(run)) == 1 for run in runs)
    among = _LATIN if is_latin else (*_LATIN, *_OTHERS)
    import chardet  # here, because it takes a tenth of a second, and most texts are UTF-8
    from chardet.enums import EncodingEra

    found = chardet.detect_all(sample, ignore_threshold=True, encoding_era=EncodingEra.ALL, should_rename_legacy=True)
    likely = {text_codec(name) for name in among}
    names = [text_codec(each["encoding"]) for each in found if each["encoding"]]
    names = [name for name in (_MEANT.get(name, name) for name in names) if text_codec(name) in likely] or ["cp1252"]
    fitting = [name for name in names if _fits(content, name)] or names[:1]
    if not is_latin:
        return fitting[0]
    # The nearest of its kin where signs would stand within words.
    kin = [*fitting, *(text_codec(name) for name in _LATIN if _fits(content, name))]
    return next((name for name in kin if _signs_stand_well(content.decode(name, "replace"))), fitting[0])


def _fits(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _are_signs(text: str) -> bool:
    """Whether all characters beyond ASCII are signs, not letters, and stand where signs do."""
    beyond = _BEYOND_ASCII.findall(text)
    return all(sign != "\ufffd" and (not sign.isalpha() or sign in "ªºµ") for sign in beyond) and _signs_stand_well(text)


def _signs_stand_well(text: str) -> bool:
    """Whether every sign beyond ASCII stands where signs do: "dzi¶" is a word in another encoding."""
    for found in _BEYOND_ASCII.finditer(text):
        sign, before, behind = found[0], text[max(found.start() - 1, 0) : found.start()], text[found.end() : found.end() + 1]
        allowed = _IN_WORD if before.isalpha() and behind.isalpha() else _BEFORE_WORD if behind.isalpha() else _BEHIND_WORD
        is_sign = not unicodedata.category(sign).startswith(("L", "M"))
        if is_sign and (before.isalpha() or behind.isalpha()) and sign not in allowed:
            return False
    return True
