"""Which backend a bank's place has."""

from __future__ import annotations

import os

from memory3.bank.address import checked_store_url
from memory3.bank.backends.base import Backend
from memory3.bank.backends.folder import FolderBackend

__all__ = ["backend_of"]


def backend_of(place: str | os.PathLike[str] | Backend) -> Backend:
    """A folder's, an object store's (`memory3.bank.backends.object_store`), or the one that is given.

    Raises:
        InputError: a URL that no bank can lie at.
    """
    if isinstance(place, Backend):
        return place
    url = checked_store_url(place)
    if url is None:
        return FolderBackend(place)
    from memory3.bank.backends.object_store import ObjectBackend

    return ObjectBackend(url)
