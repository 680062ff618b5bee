"""Where a server listens: whether it can, and by which addresses it is reached. Imports nothing that takes time."""

from __future__ import annotations

import ipaddress
import socket

from memory3.errors import ServingError

__all__ = ["address_of", "check_free", "from_elsewhere", "is_local", "taken"]


def check_free(host: str, port: int) -> None:
    """Raise ServingError where nothing can listen at ``host`` and ``port``: better before a model is loaded than after."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise taken(host, port) from error


def taken(host: str, port: int) -> ServingError:
    """That nothing can listen there."""
    return ServingError(f"{host}:{port} cannot be listened at: it is taken, or not of this machine. Give another port or host")


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens at ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(host: str, port: int) -> str:
    """By which URL this machine reaches what listens at ``host``, which may stand for all addresses."""
    if _is_any(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return _url(host, port)


def from_elsewhere(host: str, port: int) -> str | None:
    """By which URL other machines of the network may reach it; None: they cannot, or it is not known.

    Args:
        host: that it listens at.
        port: the same.
    """
    if not _is_any(host):
        return None if is_local(host) else _url(host, port)
    family, somewhere = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((somewhere, 9))  # sends nothing: the system says which of its addresses it would send from
            found = str(asking.getsockname()[0])
    except OSError:  # there is no network
        return None
    return None if is_local(found) else _url(found, port)


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
