"""From paths to documents: which reader a file gets, what its documents are called, and what happens when one fails."""

from __future__ import annotations

import hashlib
import logging
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TextIO

from memory3.errors import InputError, ReadError, setting
from memory3.sources import Unread, origin_of
from memory3.text.readers import csv_table, foreign, html, json_records, parquet, pdf, plain, prepared, warc
from memory3.text.readers.characters import plain as plain_characters
from memory3.text.readers.encoding import LooksBinary, clean, decode, text_codec, with_plain_newlines
from memory3.text.readers.listing import FileSource, FolderSource, GlobSource, Source, locate
from memory3.text.readers.source import FoundFile, Reader, ReadOptions, SourceFile, megabytes
from memory3.types import Document

__all__ = ["READERS", "Documents", "found_documents", "read_documents"]

#: Readers by suffix. A new format is a new file and a line here.
READERS: dict[str, Reader] = {
    **dict.fromkeys(plain.SUFFIXES, plain.read),
    **dict.fromkeys(html.SUFFIXES, html.read),
    **dict.fromkeys(pdf.SUFFIXES, pdf.read),
    **dict.fromkeys(json_records.LINE_SUFFIXES, json_records.read_lines),
    **dict.fromkeys(json_records.LIST_SUFFIXES, json_records.read_list),
    **dict.fromkeys(csv_table.SUFFIXES, csv_table.read),
    **dict.fromkeys(parquet.SUFFIXES, parquet.read),
    **dict.fromkeys(warc.SUFFIXES, warc.read),
}

_STDIN = "-"
_log = logging.getLogger(__name__)


def read_documents(
    *sources: str | Path,
    text_field: str | None = None,
    id_field: str | None = None,
    max_bytes: int = 64 * 2**20,
    on_skip: Callable[[str, str], None] | None = None,
    stdin: TextIO | BinaryIO | None = None,
    encoding: str | None = None,
    prefix: str = "",
    stdin_id: str | None = None,
) -> Documents:
    """Read documents from files, folders, patterns (``docs/**/*.md``) and standard input (``-``), one by one.

    Formats go by suffix: text, Markdown and source code, HTML, PDF, JSON lines, JSON lists, CSV and TSV, Parquet, WARC, each
    also with ``.gz`` behind. Files of another suffix are read when they are UTF-8 text, unless name or content are of
    another format (``.docx``, pictures, archives). Of a folder that ``memory3 prepare`` made, its documents are read, as they
    were before. Folders are read with all below them, in order of names; hidden entries and folders of tools
    (``__pycache__``, ``node_modules``, ...) are passed over and links to folders are not followed.

    **Ids.** A file in a folder is called by its path relative to that folder (``guide/intro.md``), one matched by a pattern by
    its path relative to the folder before the first wildcard, one named outright by the path as given, standard input
    ``stdin-`` and a hash of its text; always with forward slashes. So a folder gives the same ids from wherever it is
    read. A record is called by its id field, or else ``<file id>#<row>``, rows counting from 1 (lines, in JSON lines).
    The document's source is the path as given. A file reached twice is read once, a document with the id and the text of
    an earlier one is skipped, and one with the id of an earlier one but another text is an error.

    **Failures.** A file named outright that cannot be read raises. In folders and patterns it is skipped and reported,
    with the documents already read from it kept. Empty files and records are skipped and reported. If nothing at all was
    read, that is an error. Bytes that are not UTF-8 are read in the encoding they seem to have; damaged places become
    U+FFFD and are reported.

    Args:
        *sources: paths, patterns or ``"-"``.
        text_field: field of a record that holds its text. By default the first of text, content, body, passage, document, ...
        id_field: field that holds its id. By default the first of id, _id, doc_id, ...; ``""`` numbers the records instead.
            The other fields, as far as they are text of up to 1000 characters, numbers or booleans, become metadata; what else
            they hold is left out and reported, once a field. A table's row whose cells are not sure is an error that names it.
        max_bytes: largest document: a text file, a page, a PDF, a record.
        on_skip: called with a path and a reason for all that is left out or altered. By default it is logged.
        stdin: where ``"-"`` reads from, by default `sys.stdin`.
        encoding: of all text files. By default it is told from each; every guess is reported.
        prefix: put before all ids, so that two sources with the same names can lie in one bank.
        stdin_id: id of standard input, so that it can be updated later.

    Raises:
        InputError: a source is missing or holds no files, two documents claim one id, or nothing was read.
        ReadError: a file named outright cannot be read.
    """
    if not sources:
        raise InputError("nothing to read: give a file, a folder, a pattern or '-' for standard input")
    if max_bytes < 1:
        raise InputError(f"max_bytes must be at least 1, not {max_bytes}")
    if [str(source) for source in sources].count(_STDIN) > 1:
        raise InputError("standard input ('-') can be read only once")
    found = [None if str(source) == _STDIN else locate(source) for source in sources]
    reading = _Reading(on_skip)
    named = None if encoding is None else text_codec(encoding)
    options = ReadOptions(text_field, id_field, max_bytes, reading.report, named)
    documents = reading.documents(found, options, stdin, stdin_id)
    return Documents((replace(document, id=prefix + document.id) for document in documents), prefix, options.unread)


class Documents(Iterator[Document]):
    """What `read_documents` gives, one by one.

    Attributes:
        prefix: of all ids.
        unread: files and folders that could not be read, as far as reading has come.
    """

    def __init__(self, documents: Iterator[Document], prefix: str, unread: Unread) -> None:
        self.prefix = prefix
        self.unread = unread
        self._documents = documents

    def __next__(self) -> Document:
        return next(self._documents)


class _Reading:
    """One call of `read_documents`: what it has met so far."""

    def __init__(self, on_skip: Callable[[str, str], None] | None) -> None:
        self.on_skip = on_skip
        self.first_report = ""
        self.files: set[Path] = set()
        self.texts: dict[str, tuple[str, bytes]] = {}  # id -> source and hash of the text

    def report(self, place: str, reason: str) -> None:
        self.first_report = self.first_report or f"{place}: {reason}"
        if self.on_skip is not None:
            self.on_skip(place, reason)
        else:
            _log.warning("%s: %s", place, reason)

    def documents(
        self, sources: Sequence[Source | None], options: ReadOptions, stdin: TextIO | BinaryIO | None, stdin_id: str | None
    ) -> Iterator[Document]:
        for source in sources:
            documents = (
                _stdin_document(stdin or sys.stdin, options, stdin_id) if source is None else self._of_source(source, options)
            )
            yield from filter(self._is_new, documents)
        if not self.texts:
            raise InputError(f"no document was read. First reason: {self.first_report}")

    def _of_source(self, source: FileSource | FolderSource | GlobSource, options: ReadOptions) -> Iterator[Document]:
        for file in source.files(options):
            resolved = file.path.resolve()
            if resolved in self.files:
                file.report("was read before, under another name or from another source")
                continue
            self.files.add(resolved)
            try:
                yield from (document for document, _ in found_documents(file))
            except ReadError as error:
                if source.strict:
                    raise
                file.report(error.reason, unread=True)

    def _is_new(self, document: Document) -> bool:
        content = document.text + repr(sorted(document.metadata.items()))
        digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if document.id not in self.texts:
            self.texts[document.id] = (document.source, digest)
            return True
        source, earlier = self.texts[document.id]
        if earlier == digest:
            self.report(document.source, f"{document.id!r} is skipped: same id and text as one from {source}")
            return False
        if source == document.source:
            raise InputError(
                f"{source} has two records called {document.id!r}: name another {setting('id_field')}, or '' to number them"
            )
        raise InputError(
            f"two documents are called {document.id!r}, one from {source} and one from {document.source}: read the folder "
            f"above both, write one of them with a {setting('prefix')}, or, if they are records, name another "
            f"{setting('id_field')}, or '' to number them"
        )


def found_documents(file: SourceFile) -> Iterator[tuple[Document, FoundFile]]:
    """The documents of one file, each with what its reader found. Whether their ids are new is not looked at.

    Raises:
        ReadError: the file cannot be read, or not to its end.
    """
    read = prepared.read if prepared.is_part(file.path) else READERS.get(file.kind, plain.read_unknown)
    if reason := foreign.by_name(file.kind):
        raise file.error(reason)
    count = 0
    try:
        for found in read(file):
            count += 1
            if document := _document(file, found):
                yield document, found
    except (EOFError, zlib.error) as error:
        raise file.error(f"is truncated or damaged: {error}") from None
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror or error}") from None
    finally:
        file.report_rest()
    if not count:
        file.report("holds no text")


def _document(file: SourceFile, found: FoundFile) -> Document | None:
    text = plain_characters(clean(found.text))
    if not text.strip():
        file.report("is empty", found.row)
        return None
    own_id = file.id if found.row is None else f"{file.id}#{found.row}"
    metadata = {clean(name): clean(value) if isinstance(value, str) else value for name, value in found.metadata.items()}
    source = str(file.path) if found.source is None else found.source
    origin = origin_of(file.path) if found.origin is None else found.origin
    return Document(clean(found.id or own_id), text, clean(source), metadata, clean(origin))


def _stdin_document(stream: TextIO | BinaryIO, options: ReadOptions, id_: str | None) -> Iterator[Document]:
    binary = getattr(stream, "buffer", stream)
    content = binary.read(options.max_bytes + 1)
    if len(content) > options.max_bytes:
        raise ReadError("stdin", f"holds more than {megabytes(options.max_bytes)}: split it or raise max_bytes")
    try:
        if isinstance(content, str):
            text, warning = content, None
        elif options.encoding:
            text, warning = content.decode(options.encoding), None
        else:
            text, warning = decode(content)
    except UnicodeDecodeError as error:
        raise ReadError("stdin", f"is not {options.encoding}: byte {error.start:,} ({error.reason})") from None
    except LooksBinary as error:
        raise ReadError("stdin", str(error)) from None
    if warning:
        options.report("stdin", warning)
    text = plain_characters(clean(with_plain_newlines(text)))
    if text.strip():
        yield Document(id_ or f"stdin-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}", text, "stdin")
    else:
        options.report("stdin", "is empty")
