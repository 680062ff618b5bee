"""A server on a real socket for tests: a tiny model, banks of a few documents, and OpenAI's own client.

with served.server(folder) as server:
    server.client().chat.completions.create(model="tiny@docs", ...)
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import tiny
from bank_writer import HashingEmbedder
from openai import OpenAI

from memory3 import Bank, Document, Memory3
from memory3.config import MemoryConfig
from memory3.serving.app import create_app
from memory3.serving.catalogue import Banks, Served
from memory3.serving.data_folder import StorageLimits
from memory3.serving.engine import Engine
from memory3.serving.keys import Keys
from memory3.serving.limits import Limits
from memory3.serving.metrics import Metrics
from memory3.serving.server import Server
from memory3.serving.state import ServerState
from memory3.serving.storage import Storage

#: What the banks of `server` hold.
BANKS = {
    "docs": [
        Document("bridge", "The bridge was built in 1874 by the engineer of the county. " * 6, "guide/bridge.md"),
        Document("river", "The river rises in the mountains and reaches the sea. " * 6, "https://example.org/river"),
        Document("town", "Memories are keys and values near the old town. " * 6, "", {"title": "The town", "year": 1874}),
    ],
    "secret": [Document("plan", "Who built the bridge, and when? Nobody may know of the plan. " * 4, "plan.md")],
}


@dataclass
class Running:
    """A server that runs."""

    address: str
    state: ServerState
    server: Server
    log: list[dict[str, Any]] = field(default_factory=list)

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def http(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.address, timeout=60, **options)

    def wait_until_idle(self, seconds: float = 20.0) -> None:
        """Until nothing runs in the engine any more."""
        until = time.monotonic() + seconds
        while (state := self.state.engine.state).running or state.waiting:
            assert time.monotonic() < until, state
            time.sleep(0.01)


def tiny_memory3(*, head_dim: int = 14, **config: Any) -> Memory3:
    """A tiny model called "tiny", with short references and chunks, so that a short text has several."""
    settings = {"reference_length": 24, "chunk_length": 16, "references_per_chunk": 2, "score_gap": 2.0} | config
    model = tiny.tiny_model(max_position_embeddings=4096, head_dim=head_dim)
    return Memory3(model, tiny.tiny_chat_tokenizer(), MemoryConfig(**settings), name="tiny")


@contextlib.contextmanager
def server(
    folder: Path,
    *,
    m3: Memory3 | None = None,
    banks: dict[str, list[Document]] | None = None,
    keys: list[str] | None = None,
    limits: Limits | None = None,
    drain: float = 10.0,
    slots: int = 8,
    waiting: int = 16,
    files: StorageLimits | None = None,
    engine_of: Callable[..., Any] = Engine,
    **state: Any,
) -> Iterator[Running]:
    """A server on 127.0.0.1, with banks in ``folder``, and within ``files`` what clients upload.

    ``engine_of``: makes its engine.
    """
    m3 = m3 or tiny_memory3()
    metrics = Metrics()
    catalogue = Banks(m3)
    for name, documents in (BANKS if banks is None else banks).items():
        bank = Bank.open(folder / name, m3, embedder=HashingEmbedder())
        bank.write(documents)
        catalogue.add(Served(name, bank))
    engine = engine_of(m3, slots=slots, waiting=waiting, observer=metrics)
    known = Keys.of(keys) if keys else Keys()
    if files is not None:
        busy = {"embedders": (HashingEmbedder(),), "is_answering": lambda: engine.state.running > 0}
        state["storage"] = Storage(folder / "files", m3, catalogue, limits=files, **busy)
    made = ServerState(m3, engine, catalogue, known, limits or Limits(), metrics, **state)
    log: list[dict[str, Any]] = []
    app = create_app(made, drain=drain, log=lambda line: log.append(json.loads(line)))
    one = Server(app, made, "127.0.0.1", 0, drain=drain)
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not one.started:
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield Running(one.address, made, one, log)
    finally:
        one.should_exit = True
        thread.join(drain + 20)
        assert not thread.is_alive(), "the server does not stop"
