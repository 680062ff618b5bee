"""Threads of torch in a server: one team works at passes, and no other stays.

Every thread that runs torch on several threads has a team of them, which lasts as long as it does. Where there are more of
these in all than CPUs, OpenMP lets none of them wait awake any more, and each of the hundreds of small operations of a pass
begins with waking one up: on two CPUs an engine then made 60 tokens per second in place of 95. So whatever else needs
several threads runs `apart`, and everything else on one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["apart", "start"]

T = TypeVar("T")
#: As torch has it: vLLM puts something in its place that does nothing. So this file is imported before vLLM's workers begin.
_set = torch.set_num_threads


def start(work: Callable[[], None], name: str, threads: int) -> threading.Thread:
    """A thread that works, with torch on so many threads; the caller's own number stays what it is, and so does that of
    threads that begin after this one.

    Args:
        work: what it does.
        name: of the thread.
        threads: for torch in it.
    """
    begun = threading.Event()
    own = torch.get_num_threads()

    def run() -> None:
        _set(threads)
        torch.get_num_threads()  # what a thread is asked for first, it keeps
        begun.set()
        work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    begun.wait()
    _set(own)  # torch keeps the last number that was set as the default of threads to come
    return thread


def apart(work: Callable[[], T], threads: int) -> T:
    """Work in a thread that ends with it, and its team with it. Returns what ``work`` does, and raises what it raises.

    Args:
        work: what is to be done.
        threads: for torch in it.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    start(run, "memory3-apart", threads).join()
    if failed:
        raise failed[0]
    return done[0]
