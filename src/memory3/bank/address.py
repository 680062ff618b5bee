"""Addresses of banks that other machines serve: told from folders, and checked."""

from __future__ import annotations

from typing import Any, TypeGuard
from urllib.parse import urlsplit

from memory3.errors import InputError

__all__ = ["checked_address", "is_address"]


def is_address(place: Any) -> TypeGuard[str]:
    """Whether a bank's place is an address of HTTP rather than a folder."""
    return isinstance(place, str) and place.lower().startswith(("http://", "https://"))


def checked_address(url: str) -> str:
    """An address without what must not be in it.

    Args:
        url: such as ``"http://host:port/banks/name"``.

    Raises:
        InputError: it is none, or has a user, a password, a query or a fragment in it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{url!r:.200} is no address of a bank ({error})") from None
    if parts.username or parts.password:
        raise InputError("a bank's address has no user and no password in it: give the key, RemoteBank.open(url, m3, key=...)")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url!r:.200} is no address of a bank: write http://host:port/banks/name")
    if parts.query or parts.fragment:
        raise InputError(f"{url!r:.200}: a bank's address ends with its name, without '?' and '#'")
    return url.rstrip("/")
