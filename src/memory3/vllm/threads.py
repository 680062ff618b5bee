"""Threads of torch beside vLLM's own."""

from __future__ import annotations

import torch

__all__ = ["one_thread"]

#: As torch has it: vLLM puts something in its place that does nothing. So this file is imported before vLLM's worker begins.
_set = torch.set_num_threads


def one_thread() -> None:
    """Let this thread compute alone. What helps it would wait for the cores that vLLM's steps hold, and they for it."""
    _set(1)
    torch.get_num_threads()  # what a thread is asked for first, it keeps
