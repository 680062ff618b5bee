"""Text that is read as it stands: prose, Markdown, source code. Line ends become ``\\n``."""

from __future__ import annotations

from collections.abc import Iterator

from memory3.text.readers.encoding import with_plain_newlines
from memory3.text.readers.source import FoundFile, SourceFile

__all__ = ["SUFFIXES", "read", "read_unknown"]

SUFFIXES = (
    *(".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".log", ".srt", ".vtt"),
    *(".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".ts", ".rs", ".rb", ".php", ".sh", ".sql"),
)


def read(file: SourceFile) -> Iterator[FoundFile]:
    """The text of a file known by its suffix, in whatever encoding."""
    yield FoundFile(with_plain_newlines(file.decode(file.read())))


def read_unknown(file: SourceFile) -> Iterator[FoundFile]:
    """The text of a file of unknown kind: only UTF-8 or a byte order mark make it text, for a guess may take anything for
    text.
    """
    yield FoundFile(with_plain_newlines(file.decode(file.read(), guess=False)))
