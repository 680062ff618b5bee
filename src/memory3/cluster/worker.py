"""The process that encodes shards: holds the model, knows a spool, and no bank.

    python -m memory3.cluster.worker SPOOL

It is started by `memory3.cluster.process.WorkerProcess`, which says what the lines mean. Where its input ends, as it does
when the process that started it dies, it ends at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, BinaryIO

from memory3.bank import MemoryWriter, Shard, TextEmbedder, encode_shard
from memory3.cluster.recipe import Recipe
from memory3.cluster.spool import Spool
from memory3.errors import InputError, Memory3Error
from memory3.files import parse_json

__all__ = ["Lines", "serve"]

_ALIVE_SECONDS = 5.0


class Lines:
    """The pipes to who started this process."""

    def __init__(self, receive: BinaryIO, send: BinaryIO) -> None:
        """
        Args:
            receive: lines of JSON; where it ends, so does the process.
            send: nothing else may write to it.
        """
        self._send, self._lock = send, Lock()
        self._received: SimpleQueue[dict[str, Any]] = SimpleQueue()
        Thread(target=self._receive, args=(receive,), daemon=True).start()
        Thread(target=self._live, daemon=True).start()

    def next(self) -> dict[str, Any]:
        """The next line, once there is one."""
        return self._received.get()

    def say(self, **what: Any) -> None:
        """Send a line."""
        with self._lock:
            self._send.write(json.dumps(what).encode() + b"\n")
            self._send.flush()

    def _receive(self, stream: BinaryIO) -> None:
        while line := stream.readline():
            self._received.put(parse_json(line))
        os._exit(0)  # in the midst of a pass of the model: nobody waits for it any more

    def _live(self) -> None:
        while True:
            try:
                self.say(alive=True)
            except OSError:
                os._exit(0)
            time.sleep(_ALIVE_SECONDS)


def serve(
    lines: Lines, spool: Spool, load: Callable[[dict[str, Any]], tuple[MemoryWriter, Callable[[str], TextEmbedder]]]
) -> None:
    """Encode what is asked for, for ever.

    Args:
        lines: from and to who started this process.
        spool: where encoded shards are left.
        load: gives, for the first line, the model and a loader of embedders by name.
    """
    m3, embedder_of = None, None
    failed: Memory3Error | None = None
    try:
        m3, embedder_of = load(lines.next())
    except Memory3Error as error:
        failed = error  # told when a shard is asked for
    while True:
        asked = lines.next()
        try:
            if failed is not None:
                raise failed
            assert m3 is not None
            assert embedder_of is not None
            shard = Shard.from_json(asked["shard"])
            manifest = shard.manifest
            manifest.require(m3)
            book = spool.load_codebook(manifest.code_book) if manifest.code_book else None
            encoded = encode_shard(
                m3,
                shard,
                embedder=embedder_of(manifest.embedder),
                code_book=book,
                told=lambda references: lines.say(references=references),
            )
            spool.keep(encoded)
        except Exception as error:  # whatever it is, who asked decides
            lines.say(error=type(error).__name__, message=str(error))
        else:
            lines.say(done=shard.plan)


def _main() -> None:
    if len(sys.argv) != 2:
        raise InputError("give the folder of a spool: memory3 write --workers N starts this by itself")
    send = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    serve(Lines(sys.stdin.buffer, send), Spool(sys.argv[1]), lambda first: Recipe.of(first).load())


if __name__ == "__main__":
    _main()
