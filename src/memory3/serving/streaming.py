"""`EventStream`: a response of server-sent events, which ends when its client is gone or reads too slowly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from memory3.errors import MissingDependency
from memory3.serving.running import ClientGone, Run, unless_gone

try:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise MissingDependency(str(error.name or "fastapi"), "serve", "memory3 serve") from None

__all__ = ["EventStream", "event"]


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event.

    Args:
        data: as JSON; text stands as it is.
        name: of its kind; None: none.
    """
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


class EventStream(Response):
    """Sends events as they come."""

    media_type = "text/event-stream"

    def __init__(
        self,
        run: Run,
        events: AsyncIterator[str],
        failed: Callable[[Exception], str],
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            run: that makes them; closed at the end.
            events: as `event` writes them.
            failed: the last event, if an error ends them.
            seconds: after which the connection is cut, whoever is slow.
            headers: of the response.
        """
        self.status_code = 200
        self.background = None
        self._run = run
        self._events = events
        self._failed = failed
        self._seconds = seconds
        # Proxies keep what is short back unless they are told not to.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI response: ``scope``, ``receive`` and ``send`` are as that protocol says."""
        try:
            await unless_gone(receive, self._send(send))
        except ClientGone:
            return
        finally:
            self._run.close()

    async def _send(self, send: Send) -> None:
        async with asyncio.timeout(self._seconds):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for text in self._events:
                    await send({"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True})
            except Exception as error:  # the status has been sent: the stream itself has to say it
                text = self._failed(error)
                await send({"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
