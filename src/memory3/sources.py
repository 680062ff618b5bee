"""Where documents come from: whether two names mean one place, and which places could not be read this time.

A document's ``source`` is what a person reads: the path as given, a URL, ``stdin``. Its ``origin`` is the absolute path of
the file behind it, empty where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

__all__ = ["Unread", "origin_of", "same_source"]


def origin_of(path: str | Path) -> str:
    """The absolute path, links not resolved: a link that is turned to another folder stays the same source."""
    return os.path.abspath(path)


def same_source(source: str, origin: str, other_source: str, other_origin: str) -> bool:
    """Whether two documents come from one place. Where a source is not named, nothing speaks against it.

    Files are compared by their absolute paths, as named or with links resolved. A relative path whose folder nobody knows,
    from a bank written before origins were kept, is the end of the other path.

    Args:
        source, other_source: of each document as it was named; empty: not named.
        origin, other_origin: the file's absolute path, or empty.
    """
    if not source or not other_source:
        return True
    if origin and other_origin:
        return origin == other_origin or os.path.realpath(origin) == os.path.realpath(other_origin)
    if os.path.normpath(source) == os.path.normpath(other_source):
        return True
    if not (origin or other_origin):
        return False
    known, unknown = (origin, other_source) if origin else (other_origin, source)
    if os.path.isabs(unknown):
        return os.path.realpath(known) == os.path.realpath(unknown)
    return known == origin_of(unknown) or known.endswith(os.sep + os.path.normpath(unknown))


class Unread:
    """Files and folders that could not be read, each with a reason. Nothing is known of what they would have held."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, path: str | Path, document_id: str, reason: str) -> None:
        """Remember a file or folder that could not be read.

        Args:
            path: of a file or folder.
            document_id: the id that its document, or the beginning of the ids of its documents, would have.
            reason: why it could not be read.
        """
        for spelling in (os.path.normpath(path), origin_of(path), os.path.realpath(path)):
            self._paths.setdefault(spelling, reason)
        self._ids.setdefault(document_id, reason)

    def reason(self, document_id: str, source: str, origin: str) -> str | None:
        """Why a document may still be there though it was not read. None: its file, if it has one, was read or is gone.

        Args:
            document_id: of the document in the bank.
            source: as it was named.
            origin: absolute path of its file, or empty.
        """
        if not self._ids:
            return None
        for place in (origin, source and os.path.normpath(source), source and origin_of(source)):
            for path in _with_parents(place):
                if path in self._paths:
                    return self._paths[path]
        for id_ in (document_id, document_id.rpartition("#")[0]):
            for part in _with_parents(id_):
                if part in self._ids:
                    return self._ids[part]
        return None


def _with_parents(path: str) -> Iterator[str]:
    if path:
        yield path
        yield from (str(parent) for parent in PurePath(path).parents)
