"""A server with a tiny model that keeps files: in a thread of the test, or as a process to be killed.

python tests/file_server.py DATA PORT [SECONDS]    SECONDS: that encoding a reference takes more
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from bank_writer import HashingEmbedder
from tiny import tiny_chat_tokenizer, tiny_model

from memory3 import Memory3, MemoryConfig
from memory3.serving.app import create_app
from memory3.serving.catalogue import Banks
from memory3.serving.data_folder import StorageLimits
from memory3.serving.engine import Engine
from memory3.serving.keys import Keys
from memory3.serving.limits import Limits
from memory3.serving.state import ServerState
from memory3.serving.storage import Storage
from memory3.types import Memory, Reference


class SlowModel(Memory3):
    """Takes its time to encode."""

    seconds = 0.0

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        time.sleep(self.seconds * len(references))
        return super().encode(references)


def model(seconds: float = 0.0) -> Memory3:
    config = MemoryConfig(reference_length=16, budget="uniform:4", codec="raw")
    m3 = SlowModel(tiny_model(), tiny_chat_tokenizer(), config=config, name="tiny")
    m3.seconds = seconds
    return m3


def server_state(m3: Memory3, folder: Path | None, keys: Keys | None = None, **limits: Any) -> ServerState:
    banks = Banks(m3)
    engine = Engine(m3, slots=4)
    storage = None
    if folder is not None:
        storage = Storage(
            folder,
            m3,
            banks,
            limits=StorageLimits(**limits),
            embedders=(HashingEmbedder(),),
            is_answering=lambda: engine.state.running > 0,
        )
    return ServerState(m3, engine, banks, keys or Keys(), Limits(), folder=folder, storage=storage)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(state: ServerState) -> Iterator[str]:
    """The address of a server in a thread, until the end of the block."""
    config = uvicorn.Config(create_app(state, drain=5, log=lambda line: None), port=free_port(), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < until
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


if __name__ == "__main__":
    data, port, *more = sys.argv[1:]
    state = server_state(model(float(more[0]) if more else 0.0), Path(data))
    uvicorn.run(create_app(state, drain=2, log=lambda line: None), port=int(port), log_level="warning")
