"""A file on its way to becoming documents: what every reader is given, and what it gives back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from memory3.errors import ReadError
from memory3.files import open_unzipped
from memory3.sources import Unread
from memory3.text.readers import foreign
from memory3.text.readers.encoding import LooksBinary, decode, encoding_of, guess_note, is_guess, transcoded

__all__ = ["FoundFile", "ReadOptions", "Reader", "Scalar", "SourceFile", "megabytes"]

Scalar = str | int | float | bool

#: Of one file: rows that are reported for one reason, and different reasons that are reported once each.
_MOST_ROWS = 100
_MOST_SAID = 100
#: Formats that say themselves how their text is written.
_SELF_DESCRIBING = frozenset((".pdf", ".parquet"))


@dataclass(frozen=True)
class ReadOptions:
    """What the caller of `read_documents` asked for.

    Attributes:
        text_field: field of a record that holds the text; None: found by name.
        id_field: field that holds the id; None: found by name; empty: records are numbered.
        max_bytes: largest document.
        report: called with a place and a reason for all that is left out or altered.
        encoding: of all text files, named by the caller; None: told from each file.
        unread: what could not be read.
    """

    text_field: str | None
    id_field: str | None
    max_bytes: int
    report: Callable[[str, str], None]
    encoding: str | None = None
    unread: Unread = field(default_factory=Unread)

    def lost(self, path: Path, document_id: str, reason: str) -> None:
        """Report a file or folder that could not be read: pruning spares what it may hold.

        Args:
            path: of it.
            document_id: that it would have, or that the ids of its documents begin with.
            reason: in words.
        """
        self.unread.add(path, document_id, reason)
        self.report(str(path), reason)


@dataclass(frozen=True)
class FoundFile:
    """A text found in a file. Files of many records give ``row`` (from 1) and perhaps an ``id``; others give neither.

    Attributes:
        text: as it was found.
        metadata: of its document.
        row: number of the record.
        id: of its document; None: made of the file's.
        source, origin: of its document, where the file was made from others; None: the file itself.
        markup: the page that the text was taken from, for who takes another part of it; empty: it is no page.
    """

    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    row: int | None = None
    id: str | None = None
    source: str | None = None
    origin: str | None = None
    markup: str = ""


@dataclass(frozen=True)
class SourceFile:
    """A regular file.

    Attributes:
        path: where it is.
        id: document id of the file as a whole, and stem of the ids of its records.
        options: the caller's.
        said: what has been reported of records, and how often.
    """

    path: Path
    id: str
    options: ReadOptions
    said: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """Suffix that tells the format, in lower case; ``.gz`` is looked through."""
        return Path(self.path.stem if self._is_gzip else self.path.name).suffix.lower()

    @property
    def _is_gzip(self) -> bool:
        return self.path.suffix.lower() == ".gz"

    def open(self) -> BinaryIO:
        """The content, unzipped; text in an encoding that the caller named becomes UTF-8."""
        stream = open_unzipped(self.path)
        encoding = self.options.encoding
        if encoding is None or self.kind in _SELF_DESCRIBING:
            return stream
        return transcoded(stream, encoding, self.error)

    def read(self) -> bytes:
        """The whole content, unzipped, or a `ReadError` where it is over the limit."""
        limit = self.options.max_bytes
        with self.open() as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            size = f"more than {megabytes(limit)} unzipped" if self._is_gzip else megabytes(self.path.stat().st_size)
            raise self.error(f"holds {size}, the limit is {megabytes(limit)}: split the file or raise max_bytes")
        return content

    def decode(self, content: bytes, row: int | None = None, *, guess: bool = True) -> str:
        """Content as text. A guess at its encoding, and damage, are reported.

        Args:
            content: bytes of the file or of one row.
            row: number of the row, for what is reported.
            guess: whether an encoding may be guessed.

        Raises:
            ReadError: it is no text.
        """
        if row is None:
            self._check(content)
        try:
            text, note = decode(content, guess)
        except LooksBinary as error:
            raise self.error(str(error)) from None
        if note:
            self.report(note, row)
        return text

    def encoding_of(self, sample: bytes) -> str:
        """Encoding of a file of which these are the first lines. A guess is reported; `ReadError` where it is no text."""
        self._check(sample)
        try:
            encoding = encoding_of(sample)
        except LooksBinary as error:
            raise self.error(str(error)) from None
        if is_guess(encoding, sample):
            self.report(guess_note(encoding))
        return encoding

    def _check(self, content: bytes) -> None:
        """Raise ReadError where the first bytes are those of another format."""
        if reason := foreign.by_content(content):
            raise self.error(reason)

    def error(self, reason: str) -> ReadError:
        """An error about this file."""
        return ReadError(self.path, reason)

    def report(self, reason: str, row: int | None = None, *, unread: bool = False) -> None:
        """Tell the caller of something left out or altered. Of many rows with one reason the first are told, the rest counted.

        Args:
            reason: in words.
            row: number of the row; None: the whole file.
            unread: what is left out may be in a bank, and pruning spares it.
        """
        if unread:
            self.options.unread.add(self.path, self.id, reason)
        if row is not None:
            self.said[reason] += 1
            if self.said[reason] > _MOST_ROWS:
                return
        self.options.report(str(self.path) if row is None else f"{self.path}#{row}", reason)

    def report_rest(self) -> None:
        """Tell of the rows that were counted only, when the file has been read."""
        for reason, count in self.said.items():
            if count > _MOST_ROWS:
                self.options.report(str(self.path), f"{count - _MOST_ROWS:,} more like this: {reason}")

    def report_once(self, reason: str, row: int | None) -> None:
        """`report` what is met for the first time in this file, up to a number of different things.

        Args:
            reason: in words.
            row: number of the row; None: the whole file.
        """
        if reason not in self.said and len(self.said) <= _MOST_SAID:
            last = len(self.said) == _MOST_SAID
            self.said[reason] += row is None
            self.report("more is left out or altered, in other fields" if last else reason, row)


#: Turns a file into texts, one by one. Raises `ReadError`, or what the file system and the gzip module raise.
Reader = Callable[[SourceFile], Iterator[FoundFile]]


def megabytes(size: int) -> str:
    """A number of bytes for a message."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size:,} bytes"
