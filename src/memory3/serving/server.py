"""`Server`: the application behind a socket, by uvicorn, which is told what it does not bound by itself: the time until the
head of a request is read and until an answer is, and how many connections there are.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from memory3.errors import MissingDependency
from memory3.serving.errors import error_body
from memory3.serving.listening import address_of, from_elsewhere, taken
from memory3.serving.state import ServerState

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingDependency(str(error.name or "uvicorn"), "serve", "memory3 serve") from None

__all__ = ["Server"]

#: Bytes of the head of a request at most.
HEAD = 32 << 10
#: Seconds that a connection may lie idle between two requests.
IDLE = 15
#: Above the connections that are answered, those that are told that there are too many.
SPARE = 64


class Server(uvicorn.Server):
    """Serves an application until it is told to stop: by SIGTERM or SIGINT, or by ``should_exit``.

    It then takes no more connections, and lets requests end that have begun. A second signal cuts them off. Either way banks
    and files are closed before it ends.

    Attributes:
        when_started: is called when it listens; None: nothing is.
    """

    def __init__(self, app: Any, state: ServerState, host: str, port: int, *, drain: float = 20.0) -> None:
        """
        Args:
            app: as `memory3.serving.app.create_app` makes it.
            state: of the server.
            host: address to listen at.
            port: to listen at; 0: any that is free.
            drain: seconds that requests are given to end.
        """
        self._state = state
        self._drain = drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self.when_started: Callable[[], None] | None = None
        limits = state.limits

        class Bounded(_Bounded):
            header_seconds = limits.header_seconds
            unread_seconds = limits.unread_seconds
            most = limits.connections + SPARE

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            """uvicorn's own bound answers in plain text: the guard refuses in the shape of all errors, and logs it."""
            if scope["type"] == "http":
                scope["state"]["is_crowded"] = len(self.server_state.connections) > limits.connections
            await app(scope, receive, send)

        super().__init__(
            uvicorn.Config(
                counted,
                host=host,
                port=port,
                http=Bounded,
                ws="none",
                lifespan="on",
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=drain,  # type: ignore[arg-type]  # it is handed to asyncio, which takes fractions
                h11_max_incomplete_event_size=HEAD,
            )
        )

    @property
    def address(self) -> str:
        """By which URL this machine reaches it, once it has started."""
        return address_of(*self._socket())

    @property
    def from_elsewhere(self) -> str | None:
        """By which URL other machines may reach it; None: they cannot, or it is not known."""
        return from_elsewhere(*self._socket())

    def _socket(self) -> tuple[str, int]:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen.

        Args:
            sockets: that are there already; None: its own.

        Raises:
            ServingError: the address is taken, or not of this machine.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn has logged why
            raise taken(self.config.host, self.config.port) from None
        if self.started and self.when_started is not None:
            self.when_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks to stop: the second one does not wait for requests.

        Args:
            sig: which.
            frame: where it came.
        """
        self._state.draining = True
        self._state.end_by = time.monotonic() + (0 if self.should_exit else self._drain)
        if self.should_exit:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cut_off)
        self.should_exit = True

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Let requests end, then the application.

        Args:
            sockets: that were given to `startup`.
        """
        await super().shutdown(sockets)
        if self.force_exit:  # of the application uvicorn then takes no leave, and banks would not be closed
            await self.lifespan.shutdown()

    def _cut_off(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()


class _Bounded(H11Protocol):
    """A connection whose requests have to come in time, and whose answers have to be read."""

    header_seconds = 10.0
    unread_seconds = 30.0
    most = 1024
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _left = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Writing is paused as soon as the system takes no more, so that `pause_writing` tells of every byte that is not read.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Between two requests uvicorn's own clock runs, until the first byte of the next.
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._stop_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        self._stop_reading()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the shape of all errors, and the connection closed.

        Args:
            msg: why.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun, and nothing may follow it
            body = json.dumps(error_body(msg, "invalid_request_error", None, "invalid_http")).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
            for part in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.header_seconds, self._abort)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _abort(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

    def _await_reading(self) -> None:
        self._left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self.unread_seconds, self._check_reading)

    def _stop_reading(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _check_reading(self) -> None:
        if self.transport.get_write_buffer_size() < self._left:  # slow, but it reads
            self._await_reading()
        else:  # also of a connection that is closing, which else waits for its reader
            self.transport.abort()
