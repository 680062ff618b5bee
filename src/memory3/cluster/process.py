"""`WorkerProcess`: a worker that is a process of this machine, told of shards through a pipe.

Each line, there and back, is an object of JSON. There: its recipe once, then ``{"shard": ...}`` for one at a time.
Back: ``{"alive": true}`` every few seconds, ``{"references": n}`` for what was encoded, and at the end ``{"done": id}`` or
``{"error": class, "message": ...}``. The shard itself is left in the spool.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO

from memory3.bank import Shard
from memory3.cluster.failures import same_everywhere
from memory3.cluster.pool import SHARD_REFERENCES, ShardPool
from memory3.cluster.recipe import Recipe
from memory3.cluster.spool import Spool
from memory3.codec import Codebook
from memory3.errors import WorkerLost
from memory3.files import parse_json

__all__ = ["PATIENCE_SECONDS", "SILENCE_SECONDS", "WorkerProcess", "local_pool"]

#: A worker gives a sign of life more often than that; one that does not was stopped, or is unreachable.
SILENCE_SECONDS = 60.0
#: Some references are encoded in less than that; one that encodes none hangs.
PATIENCE_SECONDS = 1800.0
_LINE_BYTES = 1 << 20


def _environment(workers: int) -> dict[str, str]:
    """This process's, with the cores shared out among workers, unless the number of threads is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // workers)), **os.environ}


class WorkerProcess:
    """A process that runs `memory3.cluster.worker.serve`."""

    def __init__(
        self,
        start: Callable[[int], subprocess.Popen[bytes]],
        spool: Spool,
        first: Mapping[str, Any],
        *,
        silence: float = SILENCE_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """
        Args:
            start: starts the process, with pipes as its input and output; given a file's handle for standard error.
            spool: where it leaves what it encoded.
            first: what it is told first, such as a recipe.
            silence: seconds without any line after which it is given up.
            patience: seconds without an encoded reference after which it is given up.
        """
        spool.prepare()
        self._spool, self._silence, self._patience = spool, silence, patience
        handle, name = tempfile.mkstemp(".log", "worker-", spool.folder)
        self._log = Path(name)
        try:
            self._process = start(handle)
        finally:
            os.close(handle)
        assert self._process.stdout is not None
        self._answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        self._tell(first)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def encode(self, shard: Shard, code_book: Codebook | None) -> None:
        """Have a shard encoded there, and left in the spool.

        Args:
            shard: to encode.
            code_book: of the bank, if its codec needs one.
        """
        if code_book is not None:
            self._spool.keep_codebook(code_book)
        self._tell({"shard": shard.to_json()})
        encoded = time.monotonic()
        while True:
            left = encoded + self._patience - time.monotonic()
            try:
                answer = self._answers.get(timeout=max(0.0, min(self._silence, left)))
            except Empty:
                what, seconds = ("encoded", self._patience) if left <= self._silence else ("said", self._silence)
                raise self._lost(f"{what} nothing for {seconds:.1f} s") from None
            if answer is None:
                raise self._lost(f"ended ({self._ending()})")
            if "references" in answer:
                encoded = time.monotonic()
            elif "error" in answer:
                name, message = str(answer["error"]), str(answer.get("message", ""))
                raise same_everywhere(name, message) or self._lost(f"failed ({name}: {message[:200]})")
            elif answer.get("done") == shard.plan:
                return

    def stop(self) -> None:
        """End the process at once; who waits for it gets WorkerLost."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._log.unlink(missing_ok=True)

    def _tell(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # closed
            raise self._lost(f"ended ({self._ending()})") from None

    def _ending(self) -> str:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"killed by signal {-code}" if code < 0 else f"status {code}"

    def _lost(self, what: str) -> WorkerLost:
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                words = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            words = []
        return WorkerLost(f"worker {self.pid} {what}{': ' + words[-1][:200] if words else ''}")


def local_pool(spool: Spool, recipe: Recipe, workers: int, *, shard_references: int = SHARD_REFERENCES) -> ShardPool:
    """A pool of processes of this machine, each with the model.

    Args:
        spool: of the bank.
        recipe: what each loads.
        workers: how many; they share the cores.
        shard_references: see `ShardPool`.
    """
    command = [sys.executable, "-m", "memory3.cluster.worker", str(spool.folder)]
    env, pipe = _environment(workers), subprocess.PIPE

    def start(errors: int) -> subprocess.Popen[bytes]:
        # A session of its own: a terminal's interrupt is for who commits, which then stops it.
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=env, start_new_session=True)

    def worker() -> WorkerProcess:
        return WorkerProcess(start, spool, recipe.to_dict())

    return ShardPool(spool, worker, workers, shard_references=shard_references)


def _read(stream: BinaryIO, answers: SimpleQueue[dict[str, Any] | None]) -> None:
    """Lines of a worker, until it ends or sends what is none."""
    with suppress(OSError, ValueError):
        while line := stream.readline(_LINE_BYTES):
            answer = parse_json(line)
            if not isinstance(answer, dict):
                break
            answers.put(answer)
    answers.put(None)
