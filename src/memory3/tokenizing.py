"""Tokenizers in several threads.

A fast tokenizer is set up anew at every call (padding, truncation, what counts as a control token), and cannot be set up
while another thread uses it. So calls of one tokenizer take turns. Decoding changes nothing and needs no turn.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["tokenize"]

_guard = threading.Lock()
_turns: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()


def tokenize(tokenizer: Any, text: Any, **options: Any) -> Any:
    """``tokenizer(text, **options)``, while no other thread does the same."""
    with _guard:
        turn = _turns.setdefault(tokenizer, threading.Lock())
    with turn:
        return tokenizer(text, **options)
