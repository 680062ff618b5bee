"""`Connection`: requests to a bank's server, each with an end in sight.

What the server does not answer is asked again, a little later each time, until the request's time is over. After that the
server counts as away for some seconds, in which nobody waits for it. Answers are bounded before they are read.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx2

from memory3.bank.remote.limits import MOST_SMALL
from memory3.errors import BankChanged, BankCorrupt, BankNotFound, BankRefused, BankUnreachable, InputError
from memory3.files import parse_json

__all__ = ["Connection", "Reply"]

#: Seconds to connect, and to wait for more of an answer.
_CONNECT, _READ = 5.0, 20.0
#: A server that sends fewer bytes a second than this is given up.
_SLOWEST = 32 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: For so long a server that did not answer is not asked again.
_AWAY = 5.0
_AGAIN = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Reply:
    """What a server said.

    Attributes:
        status: of HTTP; 200 or 304.
        tag: the entity tag; "" where it gave none.
        body: as it was sent.
    """

    status: int
    tag: str
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ValueError."""
        found = parse_json(self.body)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found


class Connection:
    """To one server, kept open between requests. Safe to share between threads."""

    def __init__(self, url: str, key: str | None = None, patience: float = 15.0) -> None:
        """
        Args:
            url: of a bank.
            key: that the server wants to see; None: none is sent.
            patience: seconds in which a request is asked again, beside the time that its answer's bytes take.
        """
        self.url = url
        self._patience = patience
        headers = {"Accept-Encoding": "identity", "User-Agent": "memory3"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(_READ, connect=_CONNECT),
            limits=httpx2.Limits(max_connections=8, max_keepalive_connections=4, keepalive_expiry=60.0),
            follow_redirects=False,
        )
        self._lock = threading.Lock()
        self._away_until = 0.0
        self._why = ""
        self.received = 0  # bytes of bodies

    def close(self) -> None:
        """End it."""
        self._client.close()

    def ask(
        self,
        path: str = "",
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        tag: str = "",
        most: int = MOST_SMALL,
    ) -> Reply:
        """The server's answer.

        Args:
            path: behind the bank's address, such as ``"/search"``.
            body: sent as JSON; None: a GET.
            params: of the query.
            tag: an entity tag; if it is still in force, the answer is 304 without a body.
            most: bytes of the answer at most.

        Raises:
            BankUnreachable: no answer in time, or none that tells anything.
            BankRefused: the key is not one that may read this bank.
            BankNotFound: there is no such bank.
            BankChanged: the version that was asked for is gone.
            InputError: the server cannot do that, and says why.
            BankCorrupt: the answer is larger than it may be, or compressed.
        """
        left = self._away_until - time.monotonic()
        if left > 0:
            raise BankUnreachable(f"{self.url}: the server cannot be reached ({self._why}); it is asked again in {left:.0f} s")
        until = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        while True:
            try:
                reply = self._once(path, body, params, tag, most, until)
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                why = f"{type(error).__name__}: {_printable(str(error))}" if str(error) else type(error).__name__
                if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
                    raise InputError(f"{self.url}: is no address of a bank ({why})") from None
            else:
                if reply.status in (200, 304):
                    return reply
                if reply.status not in _AGAIN:
                    self._refuse(reply)
                why = f"status {reply.status}: {_said(reply)}"
            rest = until - time.monotonic()
            if rest <= pause:
                with self._lock:
                    self._away_until, self._why = time.monotonic() + _AWAY, why
                raise BankUnreachable(
                    f"{self.url}: the server cannot be reached ({why}): look whether `memory3 serve` runs there, and whether "
                    "this machine has a network"
                )
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(
        self, path: str, body: Mapping[str, Any] | None, params: Mapping[str, str] | None, tag: str, most: int, until: float
    ) -> Reply:
        headers = {"If-None-Match": tag} if tag else {}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        wait = httpx2.Timeout(max(0.1, min(_READ, until - time.monotonic())), connect=_CONNECT)
        method = "GET" if body is None else "POST"
        with self._client.stream(
            method, self.url + path, content=content, params=params, headers=headers, timeout=wait
        ) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BankCorrupt(f"{self.url}{path}: the answer is compressed, which was not asked for: it is not read")
            length = response.headers.get("content-length", "0" if response.status_code == 304 else "")
            if not length.isascii() or not length.isdigit() or len(length) > 12:
                raise BankCorrupt(f"{self.url}{path}: the answer does not say how long it is: this is no server of memory3")
            size = int(length)
            if size > (most if response.status_code == 200 else MOST_SMALL):
                raise BankCorrupt(f"{self.url}{path}: the answer has {size:,} bytes, more than the {most:,} that it may have")
            until = max(until, time.monotonic() + size / _SLOWEST)
            parts = []
            for part in response.iter_raw():
                parts.append(part)
                if time.monotonic() > until:
                    raise httpx2.ReadTimeout("the answer comes too slowly", request=response.request)
            data = b"".join(parts)
            with self._lock:
                self.received += len(data)
            return Reply(response.status_code, response.headers.get("etag", "")[:256], data)

    def _refuse(self, reply: Reply) -> NoReturn:
        said = _said(reply)
        if reply.status in (401, 403):
            raise BankRefused(
                f"{self.url}: the server refuses this key ({said}): give one that may read this bank, "
                "RemoteBank.open(url, m3, key=...) or the environment variable MEMORY3_API_KEY"
            )
        if reply.status == 404:
            raise BankNotFound(f"{self.url}: the server has no such bank, or not for this key ({said})")
        if reply.status == 410:
            raise BankChanged(f"{self.url}: the version that was read is gone ({said}): ask again, and the newest is read")
        if reply.status in (400, 413, 422):
            raise InputError(f"{self.url}: the server cannot do that: {said}")
        raise BankUnreachable(
            f"{self.url}: the server answers with status {reply.status} ({said}): this is no server of a bank"
        )


def _said(reply: Reply) -> str:
    """What an answer says about an error."""
    try:
        error = reply.json().get("error")
        said = error.get("message") if isinstance(error, dict) else error
    except ValueError:
        said = None
    return _printable(said) if isinstance(said, str) and said else "it does not say why"


def _printable(text: str) -> str:
    """Others' text for a message: short, and nothing that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])
