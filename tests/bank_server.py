"""A real server of real banks in a thread, on the tiny model; and a link in front of it that can be made worse."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping

import uvicorn
from bank_writer import HashingEmbedder
from tiny import tiny_model, tiny_tokenizer

from memory3.bank import Bank
from memory3.config import MemoryConfig
from memory3.llm import Memory3
from memory3.serving.app import create_app
from memory3.serving.catalogue import Banks, Served
from memory3.serving.engine import Engine
from memory3.serving.keys import Keys
from memory3.serving.state import ServerState
from memory3.types import Document

WORDS = (
    "river",
    "bridge",
    "county",
    "mountain",
    "sea",
    "town",
    "key",
    "value",
    "harbour",
    "mill",
    "rail",
    "wood",
    "lake",
    "fort",
)


def tiny_m3(**settings) -> Memory3:
    settings = {"reference_length": 31, "chunk_length": 7, "references_per_chunk": 2, "dtype": "float32", **settings}
    return Memory3(tiny_model("llama"), tiny_tokenizer(), MemoryConfig(**settings), name="tiny")


def texts(count: int = 12) -> list[Document]:
    return [
        Document(
            f"books/doc {n}",
            f"The {WORDS[n % 14]} of number {n} lies by the {WORDS[(n * 5 + 3) % 14]}, near the {WORDS[(n * 3 + 1) % 14]}. "
            f"It was built in {1800 + n}.",
            source=f"shelf/{n}.txt",
            metadata={"book": "abc"[n % 3], "year": 2000 + n % 5, "new": n % 2 == 0},
        )
        for n in range(count)
    ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def server(m3: Memory3, banks: Mapping[str, Bank], *, keys: Keys | None = None, port: int = 0) -> Iterator[str]:
    """Its address. Banks are left open."""
    port = port or free_port()
    served = Banks(m3)
    for name, bank in banks.items():
        served.add(Served(name, bank))
    engine = Engine(m3)
    app = create_app(ServerState(m3, engine, served, keys or Keys()), log=lambda line: None)
    # The banks are the test's: a server that is taken down leaves them open for the next.
    web = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not web.started and time.monotonic() < until:
        time.sleep(0.01)
    assert web.started
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        web.should_exit = True
        thread.join(20)
        engine.close()


def embedder() -> HashingEmbedder:
    return HashingEmbedder()
