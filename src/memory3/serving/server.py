"""`Server`: the application behind a socket, by uvicorn, which is told what it does not bound by itself: the time until the
head of a request is read, and how many connections there are.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

from memory3.errors import MissingDependency, ServingError
from memory3.serving.errors import error_body
from memory3.serving.state import ServerState

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingDependency(str(error.name or "uvicorn"), "serve", "memory3 serve") from None

__all__ = ["Server", "check_free"]

#: Bytes of the head of a request at most.
HEAD = 32 << 10
#: Seconds that a connection may lie idle between two requests.
IDLE = 15
#: Above the connections that are answered, those that are told that there are too many.
SPARE = 64


class Server(uvicorn.Server):
    """Serves an application until it is told to stop: by SIGTERM or SIGINT, or by ``should_exit``.

    It then takes no more connections, and lets requests end that have begun.

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
        self.when_started: Callable[[], None] | None = None
        limits = state.limits

        class Bounded(_Bounded):
            header_seconds = limits.header_seconds
            most = limits.connections + SPARE

        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=Bounded,
                ws="none",
                lifespan="on",
                log_level="error",
                access_log=False,
                server_header=False,
                limit_concurrency=limits.connections,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=int(drain) + 1,
                h11_max_incomplete_event_size=HEAD,
            )
        )

    @property
    def address(self) -> str:
        """Where it listens, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen.

        Args:
            sockets: that are there already; None: its own.

        Raises:
            ServingError: the address is taken, or not of this machine.
        """
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn has logged why
            raise _taken(self.config.host, self.config.port) from None
        if self.started and self.when_started is not None:
            self.when_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks to stop: the second one does not wait for requests.

        Args:
            sig: which.
            frame: where it came.
        """
        self._state.draining = True
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def check_free(host: str, port: int) -> None:
    """Raise ServingError where nothing can listen at ``host`` and ``port``: better before a model is loaded than after."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise _taken(host, port) from error


def _taken(host: str, port: int) -> ServingError:
    return ServingError(f"{host}:{port} cannot be listened at: it is taken, or not of this machine. Give another port or host")


class _Bounded(H11Protocol):
    """A connection whose requests have to come in time."""

    header_seconds = 10.0
    most = 1024
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
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
        super().connection_lost(exc)

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
