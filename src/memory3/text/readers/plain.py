"""Text that is read as it stands: prose, Markdown, source code. Line ends become ``\\n``."""

from __future__ import annotations

from collections.abc import Iterator

from memory3.text.readers.encoding import LooksBinary, decode, with_plain_newlines
from memory3.text.readers.source import Found, SourceFile

__all__ = ["SUFFIXES", "read", "read_unknown"]

SUFFIXES = (
    *(".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".log", ".srt", ".vtt"),
    *(".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".ts", ".rs", ".rb", ".php", ".sh", ".sql"),
)


def read(file: SourceFile) -> Iterator[Found]:
    """The text of a file known by its suffix, in whatever encoding."""
    yield _text(file, guess=True)


def read_unknown(file: SourceFile) -> Iterator[Found]:
    """The text of a file of unknown kind: only UTF-8 or a byte order mark make it text, for a guess may take anything for text."""
    yield _text(file, guess=False)


def _text(file: SourceFile, guess: bool) -> Found:
    try:
        text, warning = decode(file.read(), guess)
    except LooksBinary as error:
        raise file.error(str(error)) from None
    if warning:
        file.report(warning)
    return Found(with_plain_newlines(text))
