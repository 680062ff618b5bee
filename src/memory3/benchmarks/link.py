"""A slow link: a proxy for TCP that lets so many bytes a second through in each direction, each of them some time later.

    python -m memory3.benchmarks.link PORT BYTES_PER_SECOND SECONDS    says where it listens

Stands in for a network where the kernel has no ``netem``. All connections share the link. One that is new waits for a round
trip, as TCP's handshake would.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

__all__ = ["Link", "main"]

_PIECE = 16 * 1024


class _Direction:
    """Bytes leave one behind the other, at the link's rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free = 0.0

    def leaves(self, size: int) -> float:
        """When so many bytes, sent now, have left."""
        self._free = max(self._free, time.monotonic()) + size / self._rate
        return self._free


class Link:
    """To a port of this machine."""

    def __init__(self, port: int, rate: float, delay: float) -> None:
        """
        Args:
            port: what it leads to.
            rate: bytes a second, in each direction.
            delay: seconds of a round trip.
        """
        self._port = port
        self._delay = delay
        self._up, self._down = _Direction(rate), _Direction(rate)

    async def serve(self) -> asyncio.Server:
        """Listen on a free port of 127.0.0.1."""
        return await asyncio.start_server(self._connect, "127.0.0.1", 0)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._delay)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._carry(reader, there_writer, self._up), self._carry(there_reader, writer, self._down), return_exceptions=True
        )

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: _Direction) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

        async def arrive() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        arriving = asyncio.create_task(arrive())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_PIECE):
                left = direction.leaves(len(data))
                await under_way.put((left + self._delay / 2, data))
                await asyncio.sleep(max(0.0, left - time.monotonic()))
        await under_way.put((0.0, b""))
        with contextlib.suppress(ConnectionError):
            await arriving
        writer.close()


async def _main(port: int, rate: float, delay: float) -> None:
    server = await Link(port, rate, delay).serve()
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve the link of the three arguments, until it is told to stop."""
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))


if __name__ == "__main__":
    main()
