"""Web archives (WARC, ISO 28500): the pages that were answered with status 200, and texts that were taken from pages (WET).

A document's source is the page's URL, its id the file's with the number of the record. Damaged records are reported and passed
over: reading goes on at the next one. Records, their headers and what they hold unzipped are read up to a limit.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from memory3.errors import MissingDependency, ReadError
from memory3.text.readers.html import read_markup
from memory3.text.readers.source import FoundFile, SourceFile, megabytes

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".warc", ".wet")

_CHUNK = 1 << 16
_MOST_HEADERS = 1 << 16
#: Longest URL that is taken for one.
_LONGEST_URL = 2000
_LENGTH = re.compile(rb"^content-length:\s*([0-9]{1,18})\s*$", re.IGNORECASE | re.MULTILINE)
_CHARSET = re.compile(r"charset=[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_PAGES = ("text/html", "application/xhtml+xml")
_GZIP = b"\x1f\x8b\x08"


class _Damaged(Exception):
    """A record cannot be read; others behind it may be."""


def read(file: SourceFile) -> Iterator[FoundFile]:
    """A text per page, with its title and the date on which it was fetched."""
    try:
        import warcio  # noqa: F401
    except ImportError as error:
        raise MissingDependency(str(error.name or "warcio"), "prepare", "reading WARC files") from None
    others: Counter[str] = Counter()
    for number, record in _records(file):
        try:
            found = _page(file, number, record, others)
        except _Damaged as error:
            file.report(f"is passed over: {error}", number)
            continue
        except ReadError as error:  # it holds no text
            file.report(f"is passed over: {error.reason}", number)
            continue
        if found is not None:
            yield found
    if others:
        most = ", ".join(f"{kind}: {others[kind]:,}" for kind in sorted(others, key=lambda kind: (-others[kind], kind))[:9])
        file.report(f"{others.total():,} answers are no pages ({most})")


def _page(file: SourceFile, number: int, record: bytes, others: Counter[str]) -> FoundFile | None:
    """The document of a record; None where it is of another kind."""
    from warcio.archiveiterator import ArchiveIterator

    limit = file.options.max_bytes
    try:
        parsed: Any = next(iter(ArchiveIterator(io.BytesIO(record))))
        kind, headers, http = parsed.rec_type, parsed.rec_headers, parsed.http_headers
        if kind not in ("response", "conversion", "resource"):
            return None
        media = (http.get_header("Content-Type") if http else headers.get_header("Content-Type")) or ""
        status = http.get_statuscode() if http else "200"
        plain = media.partition(";")[0].strip().lower()
        if status != "200" or (plain not in _PAGES and not (plain == "text/plain" and kind == "conversion")):
            others[f"status {status}"[:20] if status != "200" else plain[:40] or "no type"] += 1
            return None
        content = parsed.content_stream().read(limit + 1)
    except Exception as error:  # warcio raises what it meets: its own kinds, and those of zlib, struct, codecs
        raise _Damaged(f"{type(error).__name__}: {error}"[:200]) from None
    if len(content) > limit:
        raise _Damaged(f"it holds more than {megabytes(limit)}")
    text = _decoded(file, number, content, media)
    url = (headers.get_header("WARC-Target-URI") or "").strip("<> ")[:_LONGEST_URL]
    date = (headers.get_header("WARC-Date") or "")[:40]
    found = read_markup(text) if plain in _PAGES else FoundFile(text)
    metadata = {**found.metadata, **({"date": date} if date else {})}
    return replace(found, metadata=metadata, row=number, source=url or None, origin="" if url else None)


def _decoded(file: SourceFile, number: int, content: bytes, media: str) -> str:
    """As the answer's header says, where that is so; else as the bytes look."""
    if named := _CHARSET.search(media):
        try:
            return content.decode(named[1])
        except (LookupError, ValueError):
            pass
    return file.decode(content, number)


def _records(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Each record with its headers, numbered from 1. Damaged ones are reported."""
    stream = _Stream(_chunks(file))
    number = 0
    while True:
        number += 1
        try:
            record = stream.record(file.options.max_bytes)
        except _Damaged as error:
            file.report(f"is passed over: {error}", number)
            continue
        if record is None:
            return
        yield number, record


class _Stream:
    """Records out of chunks of bytes, None standing for a place that could not be unzipped."""

    def __init__(self, chunks: Iterator[bytes | None]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._ended = False

    def record(self, limit: int) -> bytes | None:
        """The next record; None at the end. Raises _Damaged, after which the one behind can be read."""
        line = b""
        while not line.startswith(b"WARC/"):  # blank lines lie between records, and anything behind a damaged one
            line = self._line()
            if not line:
                return None
        headers = line
        while line.strip():
            line = self._line()
            headers += line
            if not line or len(headers) > _MOST_HEADERS:
                raise _Damaged("its headers have no end")
        found = _LENGTH.search(headers)
        if found is None:
            raise _Damaged("it does not say its length")
        length = int(found[1])
        content = self._take(length, limit + _MOST_HEADERS)
        if self._filled() and not self._buffer.startswith((b"\r\n", b"\n", b"WARC/")):
            raise _Damaged("it is not as long as it says")
        if length > limit + _MOST_HEADERS:
            raise _Damaged(f"it holds more than {megabytes(limit)}")
        return headers + content + b"\r\n\r\n"

    def _filled(self) -> bool:
        """Whether there is anything more."""
        while not self._buffer and not self._ended:
            chunk = next(self._chunks, b"")
            if chunk is None:
                raise _Damaged("it cannot be unzipped")
            self._buffer, self._ended = chunk, not chunk
        return bool(self._buffer)

    def _line(self) -> bytes:
        """Up to a line's end, and no more than headers may have."""
        line = b""
        while self._filled():
            end = self._buffer.find(b"\n") + 1
            part = self._buffer[: end or None]
            self._buffer = self._buffer[len(part) :]
            line = (line + part)[: _MOST_HEADERS + 1]
            if end:
                break
        return line

    def _take(self, length: int, most: int) -> bytes:
        """So many bytes, of which ``most`` are kept."""
        parts, kept = [], 0
        while length > 0:
            if not self._filled():
                raise _Damaged("it is cut off")
            part = self._buffer[:length]
            self._buffer = self._buffer[len(part) :]
            length -= len(part)
            if kept < most:
                parts.append(part)
                kept += len(part)
        return b"".join(parts)


def _chunks(file: SourceFile) -> Iterator[bytes | None]:
    """A file's bytes, unzipped; None where some could not be."""
    with file.path.open("rb") as raw:
        if file.path.suffix.lower() != ".gz":
            while chunk := raw.read(_CHUNK):
                yield chunk
            return
        zipped, lost = b"", False
        while zipped or (zipped := raw.read(_CHUNK)):
            if lost:
                zipped, unzip, chunk = _next_member(raw, zipped)
                if unzip is None:
                    return
            else:
                unzip, chunk = zlib.decompressobj(31), b""
            lost = False
            try:
                while True:
                    if chunk:
                        yield chunk
                    if unzip.eof:
                        break
                    if not zipped and not (zipped := raw.read(_CHUNK)):
                        yield None
                        return
                    chunk = unzip.decompress(zipped, _CHUNK)
                    zipped = unzip.unused_data if unzip.eof else unzip.unconsumed_tail
            except zlib.error:
                lost = True
                yield None


def _next_member(raw: BinaryIO, zipped: bytes) -> tuple[bytes, Any, bytes]:
    """Behind a damaged place: the next gzip member that holds a record. Gives what is left of the bytes read, what unzips the
    member, None at the end of the file, and the first of its bytes.
    """
    while True:
        while len(zipped) < _CHUNK and (more := raw.read(_CHUNK)):
            zipped += more
        start = zipped.find(_GZIP, 1)
        if start < 0:
            if len(zipped) < _CHUNK:
                return b"", None, b""
            zipped = zipped[-len(_GZIP) :]
            continue
        zipped = zipped[start:]
        unzip = zlib.decompressobj(31)
        try:
            chunk = unzip.decompress(zipped[:_CHUNK], _CHUNK)
        except zlib.error:
            continue
        if chunk.startswith(b"WARC/"):
            left = (unzip.unused_data if unzip.eof else unzip.unconsumed_tail) + zipped[_CHUNK:]
            return left, unzip, chunk
