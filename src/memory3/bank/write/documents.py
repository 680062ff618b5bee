"""What a document must be to be stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from memory3.bank.format.tags import tags
from memory3.errors import InputError
from memory3.types import Document, plain

__all__ = ["checked"]


def checked(document: Document) -> Document:
    """The document as it can be stored, in Python's own types: a subclass, such as numpy's or an enum's, is the value it is.

    Raises:
        InputError: it is no document, its id is empty, its texts are no valid Unicode, or its metadata are not names with
            values.
    """
    if not isinstance(document, Document):
        raise InputError(f"{document!r:.80} is no Document: give memory3.Document(id, text, source, metadata)")
    for name in ("id", "text", "source"):
        text = getattr(document, name)
        if not isinstance(text, str):
            raise InputError(f"document {document.id!r:.80}: its {name} is {type(text).__name__}, not text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"document {document.id!r}: its {name} is not valid Unicode ({error.reason})") from None
    if not document.id:
        raise InputError(f"a document from {document.source or 'an unnamed source'!r} has an empty id")
    if not isinstance(document.metadata, Mapping):
        raise InputError(
            f"document {document.id!r}: its metadata is {type(document.metadata).__name__}, not names with values"
        )
    tags(document.metadata)
    metadata = {plain(key): plain(value) for key, value in document.metadata.items()}
    return dataclasses.replace(
        document, id=plain(document.id), text=plain(document.text), source=plain(document.source), metadata=metadata
    )
