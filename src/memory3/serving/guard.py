"""`Guard`: what every request passes before any route: an id, the log, the key, and bounds on its body.

Pure ASGI, in front of everything, so that a client without a key cannot make the server read, parse or wait.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from memory3.errors import EngineClosed, MissingDependency
from memory3.serving.errors import RETRY_AFTER, Refused, as_refusal
from memory3.serving.state import ServerState

try:
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
except ImportError as error:
    raise MissingDependency(str(error.name or "fastapi"), "serve", "memory3 serve") from None

__all__ = ["PUBLIC", "UPLOADS", "Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: What needs no key: whether the server lives, and the web page, which asks for one itself. A name that ends in "/" stands
#: for all below it.
PUBLIC = ("/", "/health", "/ready", "/openapi.json", "/page/")
#: Where bodies may be as large as a file.
UPLOADS = ("/v1/files",)
#: What a client's own request id may be.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Guard:
    """Wraps an ASGI application."""

    def __init__(self, app: Any, state: ServerState, log: Callable[[str], None] | None = None) -> None:
        """
        Args:
            app: what is guarded.
            state: of the server.
            log: is given one line of JSON for each request; None: they go to stderr.
        """
        self._app = app
        self._state = state
        self._log = log or _to_stderr

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: ``scope``, ``receive`` and ``send`` are as that protocol says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        number = given if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        told = {"status": 0, "bytes": 0}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            elif message["type"] == "http.response.body":
                told["bytes"] += len(message.get("body", b""))
            await send(message)

        scope.setdefault("state", {})["request_id"] = number
        failed = ""
        try:
            await self._pass(scope, headers, receive, sending)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            if not told["status"]:
                await _refuse(as_refusal(error), scope, receive, sending)
        except asyncio.CancelledError:  # the server stops, and does not wait for this one any longer
            failed = "cut off: the server stops"
            if not told["status"]:
                closed = EngineClosed("the server was shut down before this was answered")
                await _refuse(as_refusal(closed), scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            route = scope.get("route")
            pattern = str(getattr(route, "path", None) or "unknown")
            self._state.metrics.request(pattern, told["status"], seconds)
            self._tell(scope, number, told, seconds, failed)

    async def _pass(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        limits, path = self._state.limits, scope["path"]
        if scope["state"].get("is_crowded"):
            message = f"There are more than {limits.connections:,} connections: ask again in a moment."
            again = {"Retry-After": str(RETRY_AFTER), "Connection": "close"}
            await _refuse(Refused(503, message, kind="server_error", code="busy", headers=again), scope, receive, send)
            return
        tenant = self._state.keys.tenant(_bearer(headers))
        if tenant is None:
            if not _is_under(path, PUBLIC):
                message = "This server asks for a key: send the header Authorization: Bearer KEY."
                wanted = {"WWW-Authenticate": "Bearer"}
                error = Refused(401, message, kind="authentication_error", code="invalid_api_key", headers=wanted)
                await _refuse(error, scope, receive, send)
                return
        else:
            scope["state"]["tenant"] = tenant
        is_upload = any(path == one or path.startswith(f"{one}/") for one in UPLOADS)
        most = limits.upload_bytes if is_upload else limits.body_bytes
        seconds = limits.seconds if is_upload else limits.body_seconds
        length = headers.get("content-length")
        if length is not None and (not length.isascii() or not length.isdigit() or int(length[:20]) > most):
            await _refuse(_too_large(most), scope, receive, send)
            return
        await self._app(scope, _bounded(receive, most, seconds), send)

    def _tell(self, scope: Scope, number: str, told: dict[str, int], seconds: float, failed: str) -> None:
        tenant = scope["state"].get("tenant")
        client = scope.get("client")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": number,
            "client": client[0] if client else None,
            "key": tenant.name if tenant is not None else None,
            "method": scope["method"],
            "path": scope["path"][:500],
            "status": told["status"],
            "bytes": told["bytes"],
            "seconds": round(seconds, 4),
        }
        if failed:
            line["error"] = failed[:500]
        self._log(json.dumps(line))


def _bounded(receive: Receive, most: int, seconds: float) -> Receive:
    """Receives a body of so many bytes at most, within so many seconds. What comes behind it is passed on."""
    read, complete = 0, False
    until = time.monotonic() + seconds

    async def bounded() -> Message:
        nonlocal read, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout(max(until - time.monotonic(), 0)):
                received = await receive()
        except TimeoutError:
            message = f"The body did not come within {seconds:g} seconds."
            raise HTTPException(408, message, {"Connection": "close"}) from None
        if received["type"] == "http.request":
            read += len(received.get("body", b""))
            complete = not received.get("more_body", False)
            if read > most:
                raise HTTPException(413, str(_too_large(most)), {"Connection": "close"})
        else:
            complete = True
        return received

    return bounded


def _too_large(most: int) -> Refused:
    return Refused(413, f"The body has more than {most:,} bytes.", code="body_too_large", headers={"Connection": "close"})


async def _refuse(error: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name. Of a header that comes twice the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _bearer(headers: dict[str, str]) -> str | None:
    """The key of a request: as OpenAI's clients send it, or as others do."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def _is_under(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or (len(name) > 1 and name.endswith("/") and path.startswith(name)) for name in names)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
