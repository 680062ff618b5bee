"""`ShardPool`: shards handed to workers, again where a worker is lost, and what came back kept in a spool."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from types import TracebackType
from typing import Protocol

from memory3.bank import EncodedShard, Shard
from memory3.cluster.spool import Spool
from memory3.codec import Codebook
from memory3.errors import ConfigError, WorkerLost, setting

__all__ = ["SHARD_REFERENCES", "ShardPool", "Worker"]

#: Workers that one shard may cost.
_TRIES = 3
#: Shards on their way for each worker: one is encoded, the others bridge a commit.
_AHEAD = 3
#: References of a shard. On a CPU they take some seconds; those of 48 KB have 3 MB.
SHARD_REFERENCES = 64


class Worker(Protocol):
    """Who encodes: one shard at a time."""

    def encode(self, shard: Shard, code_book: Codebook | None) -> None:
        """Encode a shard and leave it in the spool.

        Args:
            shard: to encode.
            code_book: of the bank, if its codec needs one.

        Raises:
            WorkerLost: the worker died, fell silent or failed in a way that another one may not.
            Memory3Error: the shard cannot be encoded, here or elsewhere.
        """
        ...

    def stop(self) -> None:
        """End it at once. Who waits in `encode` gets WorkerLost."""
        ...


class ShardPool:
    """See `memory3.bank.write.elsewhere.ShardPool`. Use as a context: at its end all workers are stopped.

    Attributes:
        shard_references, ahead: see there.
        lost: workers that died, fell silent or failed.
        encoded: of each shard that was encoded when that was done (`time.monotonic`), and how many references it had.
    """

    def __init__(
        self, spool: Spool, start: Callable[[], Worker], workers: int, *, shard_references: int = SHARD_REFERENCES
    ) -> None:
        """
        Args:
            spool: where workers leave what they encoded.
            start: a worker. Called when there is work for it, and again where one was lost.
            workers: how many work at once.
            shard_references: references of a shard, about. Another number makes other shards: what was kept is of no use.
        """
        for name, value in (("workers", workers), ("shard_references", shard_references)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{setting(name, value)}: give a whole number from 1")
        self.shard_references = shard_references
        self.ahead = _AHEAD * workers
        self.lost = 0
        self.encoded: list[tuple[float, int]] = []
        self._spool, self._start = spool, start
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="memory3-shard")
        self._lock = Lock()
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._is_closed = False

    def begin(self, shard: Shard, code_book: Codebook | None) -> _Coming:
        """Have a shard encoded, unless it is in the spool.

        Args:
            shard: of `memory3.bank.write.plan.single_shard`.
            code_book: of the bank, if its codec needs one.
        """
        self._spool.prepare()
        future = None if self._spool.has(shard.plan) else self._threads.submit(self._encode, shard, code_book)
        return _Coming(self._spool, shard.plan, future)

    def forget(self, shard_id: str) -> None:
        """Remove a shard from the spool."""
        self._spool.forget(shard_id)

    def finish(self) -> None:
        """Stop the workers and remove the spool."""
        self.close()
        self._spool.clear()

    def close(self) -> None:
        """Stop the workers. What they encoded stays in the spool."""
        with self._lock:
            self._is_closed = True
            workers = list(self._all)
        for worker in workers:
            worker.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ShardPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _encode(self, shard: Shard, code_book: Codebook | None) -> None:
        """In a thread of the pool."""
        said: list[str] = []
        while len(said) < _TRIES:
            try:
                worker = self._taken()
            except WorkerLost as error:  # it died as it began
                if self._is_closed:
                    raise
                said.append(str(error))
                with self._lock:
                    self.lost += 1
                continue
            try:
                worker.encode(shard, code_book)
            except WorkerLost as error:
                said.append(str(error))
                self._drop(worker)
            except BaseException:
                self._give_back(worker)
                raise
            else:
                self.encoded.append((time.monotonic(), len(shard.new)))
                self._give_back(worker)
                return
        names = ", ".join(repr(id_) for id_ in shard.document_ids[:3])
        raise WorkerLost(
            f"{_TRIES} workers were lost over one shard, that of {names} and others: {said[-1]}. What was committed is kept: "
            "run the same command again to go on, with fewer workers if memory is short"
        )

    def _taken(self) -> Worker:
        with self._lock:
            if self._is_closed:
                raise WorkerLost("the pool is closed")
            if self._idle:
                return self._idle.pop()
        worker = self._start()  # takes long: without the lock
        with self._lock:
            self._all.append(worker)
            is_late = self._is_closed
        if is_late:
            self._drop(worker)
            raise WorkerLost("the pool is closed")
        return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def _drop(self, worker: Worker) -> None:
        worker.stop()
        with self._lock:
            self._all.remove(worker)
            self.lost += not self._is_closed


class _Coming:
    """A shard that is being encoded, or lies in the spool."""

    def __init__(self, spool: Spool, shard_id: str, future: Future[None] | None) -> None:
        self._spool, self._id, self._future = spool, shard_id, future

    def is_ready(self) -> bool:
        return self._future is None or self._future.done()

    def wait(self) -> None:
        if self._future is not None:
            wait([self._future])

    def result(self) -> EncodedShard:
        if self._future is not None:
            self._future.result()
        return self._spool.load(self._id)
