"""Formats that are not read here, told by a file's name and by the bytes it begins with, and what to make of them instead.

Whatever lies in them, taken for text it would be nonsense in a bank, which nobody is told of.
"""

from __future__ import annotations

__all__ = ["SUFFIXES", "by_content", "by_name"]

_TEXT = "save it as PDF, HTML or text"
_TABLE = "save it as CSV"
_PICTURE = "recognise the text first, for example with `tesseract`"
_ARCHIVE = "unpack it and give what was in it"
_NO_TEXT = "it has no text"

#: What is called so is never text, whatever it holds: kind and remedy by suffix.
SUFFIXES: dict[str, tuple[str, str]] = {
    **dict.fromkeys((".doc", ".docx", ".docm", ".dotx"), ("a Word document", _TEXT)),
    **dict.fromkeys((".odt", ".rtf", ".wpd"), ("a document of a word processor", _TEXT)),
    **dict.fromkeys((".ppt", ".pptx", ".odp"), ("a presentation", _TEXT)),
    **dict.fromkeys((".xls", ".xlsx", ".xlsm", ".ods"), ("a spreadsheet", _TABLE)),
    **dict.fromkeys((".epub", ".mobi", ".azw3", ".djvu"), ("an e-book", _TEXT)),
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif"), ("a picture", _PICTURE)
    ),
    **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".zst"), ("an archive", _ARCHIVE)),
    **dict.fromkeys(
        (".mp3", ".wav", ".flac", ".ogg", ".m4a", ".mp4", ".mkv", ".mov", ".avi", ".webm"), ("a recording", _NO_TEXT)
    ),
    **dict.fromkeys((".exe", ".dll", ".so", ".dylib", ".class", ".jar", ".pyc", ".wasm"), ("a program", _NO_TEXT)),
    **dict.fromkeys((".sqlite", ".sqlite3", ".mdb", ".accdb"), ("a database", _TABLE)),
}

#: The bytes that files of a format begin with (https://en.wikipedia.org/wiki/List_of_file_signatures), as far as no text may
#: begin so: an article on GIF may begin with ``GIF89a``. Its pictures have NUL bytes, by which they are known.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a ZIP file, as those of Word, Excel and e-books are", _TEXT),
    (b"PK\x05\x06", "a ZIP file with nothing in it", _NO_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _TEXT),
    (b"{\\rtf", "an RTF document", _TEXT),
    (b"%PDF-", "a PDF file: call it .pdf", ""),
    (b"\x1f\x8b", "a gzip file: call it .gz behind the suffix of what is in it", ""),
    (b"\x89PNG\r\n\x1a\n", "a picture", _PICTURE),
    (b"\xff\xd8\xff", "a picture", _PICTURE),
    (b"II*\x00", "a picture", _PICTURE),
    (b"MM\x00*", "a picture", _PICTURE),
    (b"7z\xbc\xaf\x27\x1c", "an archive", _ARCHIVE),
    (b"Rar!\x1a\x07", "an archive", _ARCHIVE),
    (b"BZh91AY&SY", "an archive", _ARCHIVE),
    (b"\xfd7zXZ\x00", "an archive", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", "an archive", _ARCHIVE),
    (b"\x7fELF", "a program", _NO_TEXT),
    (b"\xca\xfe\xba\xbe", "a program", _NO_TEXT),
    (b"\x00asm", "a program", _NO_TEXT),
    (b"SQLite format 3\x00", "a database", _TABLE),
    (b"ID3\x03", "a recording", _NO_TEXT),
    (b"ID3\x04", "a recording", _NO_TEXT),
)


def by_name(suffix: str) -> str | None:
    """Why a file of this name is not read; None: its name is no hindrance.

    Args:
        suffix: in lower case, such as ``.docx``.
    """
    if suffix not in SUFFIXES:
        return None
    kind, remedy = SUFFIXES[suffix]
    return f"is {kind} by its name ({suffix}), which is not read: {remedy}"


def by_content(content: bytes) -> str | None:
    """Why bytes are no text, however a file is called; None: they do not begin as any of these formats does.

    Args:
        content: the first bytes of a file, unzipped.
    """
    for beginning, kind, remedy in _BEGINNINGS:
        if content.startswith(beginning):
            return f"looks binary: it begins as {kind}{f', which is not read: {remedy}' if remedy else ''}"
    return None
