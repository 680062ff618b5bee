"""An address that leads to a server and to none of its banks: which banks there are is asked, to say what was meant."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from memory3.bank.remote.connection import Connection
from memory3.errors import BankError, InputError

__all__ = ["require_name"]

#: Paths of a server that people take for a bank's address.
_NO_BANK = ("", "/", "/v1", "/banks")
#: Seconds that a server is given to say which banks it has, and names that are told.
_PATIENCE = 3.0
_MOST = 10


def require_name(url: str, key: str | None) -> None:
    """Check that an address names a bank.

    Args:
        url: as `memory3.bank.address.checked_address` leaves it.
        key: that the server wants to see; None: none is sent.

    Raises:
        InputError: it names none; the message has the names of those that the server shows to this key.
    """
    parts = urlsplit(url)
    if parts.path.rstrip("/") not in _NO_BANK:
        return
    root = f"{parts.scheme}://{parts.netloc}"
    names = _names(root, key)
    known = f" It serves {', '.join(names)}." if names else ""
    meant = f"{root}/banks/{names[0] if names else 'NAME'}"
    raise InputError(f"{url} is the address of a server and names none of its banks: write {meant}.{known}")


def _names(root: str, key: str | None) -> list[str]:
    """As many as are told; none where the server does not say."""
    connection = Connection(root, key, _PATIENCE)
    try:
        names: Any = connection.ask("/banks").json().get("banks")
        return [name for name in names[:_MOST] if isinstance(name, str) and name.isprintable() and len(name) < 200]
    except (BankError, InputError, ValueError, TypeError):  # whatever is there, it is no server that says its banks
        return []
    finally:
        connection.close()
