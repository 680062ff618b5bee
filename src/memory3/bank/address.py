"""Addresses of banks, of other machines that serve them and of object stores: told from folders, and checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from memory3.errors import InputError

__all__ = ["checked_address", "checked_store_url", "is_address", "is_store_url"]

_STORES = ("s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


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


def is_store_url(place: Any) -> TypeGuard[str]:
    """Whether a bank's place is the URL of an object store: ``s3://``, ``gs://`` or ``az://``, bucket and prefix."""
    return isinstance(place, str) and place.lower().startswith(tuple(f"{scheme}://" for scheme in _STORES))


def checked_store_url(place: Any) -> str | None:
    """The URL of an object store without a slash at its end; None where the place is no URL but a folder.

    Args:
        place: text or `Path`.

    Raises:
        InputError: it is a URL of another kind, has no bucket, or has in it what must not be; or a `Path` was made of one.
    """
    text = str(place)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return None
    if isinstance(place, Path):
        if scheme[1].lower() in _STORES:
            raise InputError(f"{text!r:.200} is a URL that was made a Path, which loses a slash: give it as text")
        return None
    if not text.startswith(f"{scheme[0]}/"):
        return None
    if not is_store_url(text):
        known = ", ".join(f"{name}://" for name in _STORES)
        raise InputError(f"{text!r:.200} is no place of a bank: give a folder, or a URL that begins with {known} or http://")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{text!r:.200} is no URL of an object store ({error})") from None
    if parts.username or parts.password or parts.query or parts.fragment or parts.port:
        raise InputError(
            f"{parts.scheme}://...: a bank's URL is its bucket and its prefix, no more. Keys and the endpoint come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
        )
    if (
        not parts.netloc
        or not parts.path.strip("/")
        or any(part in ("", ".", "..") for part in parts.path.strip("/").split("/"))
    ):
        raise InputError(f"{text!r:.200}: write bucket and prefix, as in {parts.scheme}://bucket/bank")
    return f"{parts.scheme.lower()}://{parts.netloc}/{parts.path.strip('/')}"
