"""Threads of torch in a server: each has the number it was given, and nobody else's changes."""

from __future__ import annotations

import threading
from queue import Queue

import pytest
import torch

from memory3.serving.threads import apart, start


def default_of_new_threads() -> int:
    found: Queue[int] = Queue()
    thread = threading.Thread(target=lambda: found.put(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found.get()


def test_apart_has_its_own_number() -> None:
    own = torch.get_num_threads()
    number, where = apart(lambda: (torch.get_num_threads(), threading.current_thread()), own + 2)
    assert number == own + 2
    assert where is not threading.current_thread()
    assert not where.is_alive()
    assert torch.get_num_threads() == own
    assert default_of_new_threads() == own


def test_what_fails_apart_is_raised_here() -> None:
    def fail() -> None:
        raise ValueError("of no use")

    with pytest.raises(ValueError, match="of no use"):
        apart(fail, 1)


def test_a_thread_keeps_its_number_while_others_set_theirs() -> None:
    own = torch.get_num_threads()
    go, found = threading.Event(), Queue[int]()

    def work() -> None:
        go.wait()
        found.put(torch.get_num_threads())

    thread = start(work, "kept", own + 3)
    start(lambda: None, "another", own + 5).join()
    go.set()
    thread.join()
    assert found.get() == own + 3
    assert torch.get_num_threads() == own
