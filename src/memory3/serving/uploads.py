"""An upload as it comes over HTTP: multipart/form-data, its file written to the disk chunk by chunk, within bounds.

Nothing is held in RAM but a chunk, and nothing is put into the system's temporary folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from memory3.errors import InputError, MissingDependency
from memory3.serving.stored_files import Arriving

try:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header
except ImportError as error:
    raise MissingDependency(str(error.name or "python-multipart"), "serve", "taking uploads") from None

__all__ = ["Upload", "receive"]

#: Of fields that are no file: how many, and bytes of each.
_FIELDS = 16
_FIELD_BYTES = 4096
#: Bytes that are gathered before they are written.
_WRITE_BYTES = 1 << 20


# It warns of every byte that is wrong, which the client is told: a stranger may not fill the log.
logging.getLogger("python_multipart").addHandler(logging.NullHandler())


class Upload:
    """The parts of an upload as they come.

    Attributes:
        filename: the client's name of the file; None until it has begun.
        fields: the other parts, as text.
    """

    def __init__(self, boundary: bytes) -> None:
        """``boundary``: between parts, as the request's header names it."""
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self.data = bytearray()
        self.ended = False
        self._header: list[bytearray] = [bytearray(), bytearray()]
        self._disposition = b""
        self._name: str | None = None  # of the part that comes; None: it is the file
        self._value = bytearray()
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers,
                "on_part_data": self._more,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def _part(self) -> None:
        self._disposition, self._value = b"", bytearray()

    def _header_end(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = [bytearray(), bytearray()]

    def _headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            if name != "file":
                raise InputError(f"the part {name!r:.80} is a file: the file's part is called 'file'")
            if self.filename is not None:
                raise InputError("there are two files in one upload: send one")
            self.filename = options[b"filename"].decode("utf-8", "replace")
            self._name = None
            return
        if name in self.fields or len(self.fields) >= _FIELDS:
            raise InputError(f"the part {name!r:.80} is there twice, or one too many")
        self._name = name

    def _more(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self.data += data[start:end]
        elif len(self._value) + end - start > _FIELD_BYTES:
            raise InputError(f"the part {self._name!r:.80} has more than {_FIELD_BYTES:,} bytes")
        else:
            self._value += data[start:end]

    def _part_end(self) -> None:
        if self._name is not None:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


async def receive(content_type: str, chunks: AsyncIterator[bytes], file: Arriving, seconds: float) -> Upload:
    """Take an upload.

    Args:
        content_type: header of the request.
        chunks: its body.
        file: where its file goes. It is not kept yet.
        seconds: that may pass between two chunks.

    Raises:
        InputError: it is no multipart/form-data, is cut short, or does not have one part ``file``.
        StorageFull: the file does not fit.
        TimeoutError: nothing came.
    """
    kind, options = parse_options_header(content_type)
    boundary: Any = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 70:
        raise InputError("an upload is multipart/form-data with a boundary: the official clients send it so")
    upload = Upload(boundary)
    try:
        while True:
            async with asyncio.timeout(seconds):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            for start in range(0, len(chunk), _WRITE_BYTES):
                upload.parser.write(chunk[start : start + _WRITE_BYTES])
                if len(upload.data) >= _WRITE_BYTES:
                    await _write(upload, file)
        upload.parser.finalize()
    except FormParserError as error:
        raise InputError(f"this is no multipart/form-data: {error!s:.200}") from None
    await _write(upload, file)
    if not upload.ended:
        raise InputError("the upload is cut short: its last boundary is missing")
    if upload.filename is None:
        raise InputError("there is no file in the upload: send it as the part 'file', with a filename")
    return upload


async def _write(upload: Upload, file: Arriving) -> None:
    data, upload.data = bytes(upload.data), bytearray()
    if data:
        await asyncio.to_thread(file.write, data)
