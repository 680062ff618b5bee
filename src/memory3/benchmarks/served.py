"""A server of one bank in a process of its own, for benchmarks that read from it.

python -m memory3.benchmarks.served FOLDER    serves it as "docs", and tells the port once it answers
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memory3.errors import MissingDependency, ServingError

__all__ = ["NAME", "main", "process", "served"]

#: Of the bank.
NAME = "docs"


@contextmanager
def process(module: str, *arguments: object) -> Iterator[int]:
    """A module of this package that runs beside us until the end of ``with``. Gives the port that it tells.

    Args:
        module: its name.
        arguments: as text it understands.

    Raises:
        ServingError: it ends without telling one.
    """
    command: Sequence[str] = [sys.executable, "-m", module, *map(str, arguments)]
    # One thread: on this machine it must not take the cores that are measured. Elsewhere it has its own.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            for line in running.stdout:
                if line.strip().isdigit():
                    yield int(line)
                    break
            else:
                raise ServingError(f"{module} ended before it served anything")
        finally:
            running.stdin.close()  # it ends by itself
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """A server of the bank in ``folder`` beside us. Gives its port."""
    with process(__name__, folder) as port:
        yield port


async def _serve(folder: str) -> None:
    try:
        import uvicorn
    except ImportError:
        raise MissingDependency("uvicorn", "serve", "memory3 bench device") from None
    from memory3.bank import Bank
    from memory3.llm import Memory3
    from memory3.serving.app import create_app
    from memory3.serving.catalogue import Banks
    from memory3.serving.engine import Engine
    from memory3.serving.state import ServerState

    manifest = Bank.describe(folder)
    m3 = Memory3.from_pretrained(manifest.model, config=manifest.config)
    banks = Banks(m3)
    banks.open(NAME, folder)
    app = create_app(ServerState(m3, Engine(m3), banks), drain=1.0, log=lambda _: None)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if server.started:
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await running


def main() -> None:
    """As the module's text says."""
    asyncio.run(_serve(sys.argv[1]))


if __name__ == "__main__":
    main()
