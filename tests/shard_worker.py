"""Workers with the stand-ins for model and embedder, forked from a process that has imported everything; pools of them.

`Nursery` forks them: a process that is forked before this one has threads, and does nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bank_writer import HashingEmbedder, HashingWriter

from memory3.bank import Shard, encode_shard
from memory3.cluster.pool import ShardPool
from memory3.cluster.process import WorkerProcess
from memory3.cluster.spool import Spool
from memory3.cluster.worker import Lines, serve
from memory3.codec import Codebook
from memory3.errors import ModelError


class Here:
    """A worker in this process: the same work, no process."""

    def __init__(self, spool: Spool, m3: HashingWriter) -> None:
        self.spool, self.m3 = spool, m3

    def encode(self, shard: Shard, code_book: Codebook | None) -> None:
        self.spool.keep(encode_shard(self.m3, shard, embedder=HashingEmbedder(), code_book=code_book))

    def stop(self) -> None:
        pass


def pool_here(bank: Any, m3: HashingWriter | None = None, workers: int = 2, *, references: int = 6, kind=Here) -> ShardPool:
    """A pool of such workers for the bank that lies there. All have one model, which counts what it encoded."""
    spool, model = Spool.beside(bank), m3 or HashingWriter()
    return ShardPool(spool, lambda: kind(spool, model), workers, shard_references=references)


class Forked:
    """What `WorkerProcess` needs of a `subprocess.Popen`."""

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid, self.stdin, self.stdout = pid, os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """It is another's child: its output ends with it."""
        end = time.monotonic() + (60 if timeout is None else timeout)
        while time.monotonic() < end:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return -signal.SIGKILL
            time.sleep(0.005)
        raise subprocess.TimeoutExpired("worker", timeout or 60)


class Nursery:
    """Ends when this process does."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        if os.fork() == 0:
            self._socket.close()
            _fork_when_asked(theirs)
        theirs.close()

    def start(self, folder: Path) -> Forked:
        """A worker for the spool in that folder."""
        (receive, stdin), (stdout, send) = os.pipe(), os.pipe()
        socket.send_fds(self._socket, [json.dumps(str(folder)).encode()], [receive, send])
        os.close(receive)
        os.close(send)
        return Forked(int(self._socket.recv(64)), stdin, stdout)

    def pool(self, bank: Any, workers: int = 2, *, references: int = 6, told=None, first=None, **options) -> ShardPool:
        """For the bank that lies there.

        Args:
            bank: its folder or URL.
            workers, references: see `ShardPool`.
            told: called with the pid of each worker.
            first: options of the workers' `HashingWriter`, ``hang``: seconds before anything is encoded, ``fail``:
                the error of one that cannot load its model.
            options: of `WorkerProcess`.
        """
        spool = Spool.beside(bank)

        def begin(errors: int) -> Any:
            process = self.start(spool.folder)
            if told is not None:
                told(process.pid)
            return process

        return ShardPool(
            spool, lambda: WorkerProcess(begin, spool, first or {}, **options), workers, shard_references=references
        )


def _fork_when_asked(asked: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none is waited for
    while True:
        try:
            text, handles, _, _ = socket.recv_fds(asked, 4096, 2)
        except ConnectionResetError:  # killed with an answer unread
            text = b""
        if not text:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            asked.close()
            receive, send = handles
            lines = Lines(os.fdopen(receive, "rb"), os.fdopen(send, "wb"))
            serve(lines, Spool(json.loads(text)), _load)
        for handle in handles:
            os.close(handle)
        with suppress(OSError):  # who asked was killed
            asked.send(str(pid).encode())


def _load(first: dict[str, Any]) -> Any:
    time.sleep(first.pop("hang", 0.0))
    if "fail" in first:
        raise ModelError(first["fail"])
    return HashingWriter(**first), lambda name: HashingEmbedder()
