"""Tasks in this process or in several, whose workers end with it.

A worker that outlived a killed run would write over what the next run writes. So a worker ends as soon as the process that
started it is gone, and holds a lock while it lives, for which the next run waits.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memory3.errors import InputError, Memory3Error

__all__ = ["Workers", "end_with_parent", "one_thread", "tell_read", "wait_for_workers"]

#: How often progress is told while tasks run in other processes.
_EVERY = 0.5
#: Longest wait for workers of an earlier run. They end when Python next runs in them.
_LONGEST = 120.0

#: Documents read, of this process or of all.
_read: Any = None


def tell_read(number: int) -> None:
    """Count documents that were read."""
    if _read is None:
        return
    if callable(_read):
        _read(number)
    else:
        with _read.get_lock():
            _read.value += number


class Workers:
    """Runs functions of a task's number, one task at a time in each of ``count`` processes; of one, in this process.

    Use as a context.
    """

    def __init__(self, count: int, locks: Path) -> None:
        """
        Args:
            count: of processes.
            locks: folder for a lock of each worker.
        """
        self._count, self._locks = count, locks
        self._pool: ProcessPoolExecutor | None = None
        self._value: Any = None

    def __enter__(self) -> Workers:
        if self._count > 1:
            context = multiprocessing.get_context("spawn")
            self._value = context.Value("q", 0)
            self._pool = ProcessPoolExecutor(self._count, context, _begin, (str(self._locks), self._value))
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            if kind is not None:
                for process in multiprocessing.active_children():
                    process.terminate()
            self._pool.shutdown(wait=True)

    def run(self, task: Callable[[int], None], tasks: Iterable[int], tell: Callable[[int, int], None]) -> None:
        """Run tasks; their order is nobody's business.

        Args:
            task: a picklable function of the task's number.
            tasks: their numbers.
            tell: called with the tasks done and the documents read so far.

        Raises:
            Memory3Error: what a task raised; or a process was killed.
        """
        if self._pool is None:
            self._here(task, list(tasks), tell)
            return
        self._value.value = 0
        pending: set[Future[None]] = {self._pool.submit(_guarded, task, number) for number in tasks}
        done = 0
        try:
            while pending:
                finished, pending = wait(pending, timeout=_EVERY, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done += 1
                tell(done, self._value.value)
        except BrokenProcessPool:
            raise Memory3Error(
                "a worker process was killed, probably because memory ran out: run the same command again with fewer "
                "--workers; it goes on where it stopped"
            ) from None

    def _here(self, task: Callable[[int], None], tasks: list[int], tell: Callable[[int, int], None]) -> None:
        global _read
        done = read = 0

        def count(number: int) -> None:
            nonlocal read
            read += number
            if read % 50 == 0:
                tell(done, read)

        _read = count
        try:
            for number in tasks:
                task(number)
                done += 1
                tell(done, read)
        finally:
            _read = None


def _guarded(task: Callable[[int], None], number: int) -> None:
    """Errors of several arguments cannot be sent to another process: ours are sent as their message."""
    try:
        task(number)
    except Memory3Error as error:
        raise InputError(error.args[0]) from None


def _begin(locks: str, value: Any) -> None:
    """What a worker does first."""
    global _read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it ends it
    _read = value
    end_with_parent()
    Path(locks).mkdir(parents=True, exist_ok=True)
    _held.append(FileLock(Path(locks) / f"{os.getpid()}.lock"))
    _held[0].acquire()


_held: list[FileLock] = []


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that ends. Once is enough."""
    parent = multiprocessing.parent_process()
    if parent is None or _watching.get("process") == os.getpid():
        return
    _watching["process"] = os.getpid()

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="memory3-end-with-parent", daemon=True).start()


_watching: dict[str, int] = {}


def wait_for_workers(locks: Path) -> None:
    """Wait until no worker of an earlier run is left.

    Raises:
        Memory3Error: one is still at work after two minutes.
    """
    for path in sorted(locks.glob("*.lock")) if locks.is_dir() else ():
        try:
            with FileLock(path, timeout=_LONGEST):
                pass
        except Timeout:
            raise Memory3Error(f"process {path.stem} of an earlier run is still at work: end it, then run again") from None
        path.unlink(missing_ok=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix products in one thread while the block runs: sums are then the same whatever else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
