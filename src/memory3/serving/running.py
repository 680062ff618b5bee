"""`Run`: the jobs of one request on their way through the engine, for asyncio. When its client is gone, so are they."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any, TypeVar

from memory3.errors import InputError
from memory3.serving.base import BaseEngine
from memory3.serving.errors import Refused, as_refusal
from memory3.serving.handle import Handle
from memory3.serving.job import Event, Failed, Finished, Job

__all__ = ["ClientGone", "Run", "unless_gone"]

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Refused):
    """The client has closed its connection. Nobody reads this."""

    def __init__(self) -> None:
        super().__init__(499, "The client has closed its connection.", code="client_gone")


class Run:
    """Jobs that run beside one another. To be closed, or used as an async context, which cancels what has not ended."""

    def __init__(self, engine: BaseEngine, jobs: Sequence[Job], field: str) -> None:
        """Submit all jobs, or none.

        Args:
            engine: answers.
            jobs: of one request.
            field: of its body that has the prompt, for errors.

        Raises:
            EngineBusy: there is no room for all of them.
            EngineClosed: it takes no more.
        """
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._handles: list[Handle] = []
        self._left = len(jobs)
        self._field = field
        self._kept: list[tuple[int, Event]] = []
        try:
            for n, job in enumerate(jobs):
                self._handles.append(engine.submit(job, self._teller(n)))
        except BaseException:
            self.close()
            raise

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not ended: it leaves the batch before the next pass."""
        for handle in self._handles:
            handle.cancel()

    async def begin(self) -> None:
        """Wait for the first event, which `events` gives again: what cannot be answered at all is known by then.

        Raises:
            Memory3Error: it cannot be answered.
        """
        n, event = await self._events.get()
        self._kept.append((n, self._checked(event)))

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Events with the number of their job, until all jobs have ended.

        Raises:
            Memory3Error: one cannot be answered; the others are cancelled.
        """
        while self._left:
            n, event = self._kept.pop(0) if self._kept else await self._events.get()
            try:
                self._checked(event)
            except BaseException:
                self.close()
                raise
            if isinstance(event, Finished):
                self._left -= 1
            yield n, event

    def _teller(self, n: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (n, event))
            except RuntimeError:  # the server has stopped: nobody listens any more
                return

        return tell

    def _checked(self, event: Event) -> Event:
        if isinstance(event, Failed):
            # An engine takes no other input than prompts: one that it cannot use is empty, too long, or not of its template.
            raise as_refusal(event.error, self._field) if isinstance(event.error, InputError) else event.error
        if isinstance(event, Finished) and event.reason == "time" and not event.token_ids:
            message = "The server is too busy to have begun in time: ask again later, or for less."
            raise Refused(503, message, kind="server_error", code="timeout", headers={"Retry-After": "5"})
        return event


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client closes its connection.

    Args:
        receive: of the ASGI request, whose body has been read.
        work: what is done for it.

    Raises:
        ClientGone: it has.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGone
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
