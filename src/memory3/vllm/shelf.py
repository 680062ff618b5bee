"""`Shelf`: the banks that a process of vLLM reads, by name, and the model's card. One for each model folder and process,
so that scheduler and worker share banks where they share a process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from memory3.bank import Bank
from memory3.errors import ConfigError, InputError
from memory3.models.load import load_tokenizer
from memory3.vllm.card import Card
from memory3.vllm.decoder import Decoder

__all__ = ["Shelf", "shelf_of"]


#: Seconds after which a bank is looked at again, when it is asked for.
_REFRESH = 2.0


@dataclass
class _Opened:
    bank: Bank
    looked: float = field(default_factory=time.monotonic)


class Shelf:
    """Banks by name. Safe to share between threads.

    Attributes:
        card: of the model that reads.
        decoder: of its memories.
    """

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: of the model, with its card.
        """
        self.card = Card.read(folder)
        self.decoder = Decoder(self.card)
        self._paths: dict[str, str] = {}
        self._opened: dict[str, _Opened] = {}
        self._lent: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._lock = threading.Lock()

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(str(self.card.folder))

    def put(self, name: str, bank: Any) -> None:
        """Offer a bank that is open already, as long as its owner keeps it.

        Args:
            name: it is asked for by.
            bank: of the model.
        """
        with self._lock:
            self._lent[name] = bank

    def offer(self, paths: Mapping[str, str]) -> None:
        """Offer banks by name and folder; each is opened when it is asked for first."""
        with self._lock:
            for name, path in paths.items():
                if self._paths.get(name) != path:  # what was opened under this name is another
                    self._opened.pop(name, None)
            self._paths.update(paths)

    def bank(self, name: str) -> Any:
        """The bank of this name. One that was opened here shows what was written to it since, within some seconds.

        Raises:
            InputError: there is none.
            BankError: it cannot be opened, or is not there any more.
            FingerprintMismatch: it is another model's, maybe since a moment ago.
        """
        with self._lock:
            lent = self._lent.get(name)
            if lent is not None:
                return lent
            opened = self._opened.get(name)
            if opened is None:
                if name not in self._paths:
                    there = ", ".join(sorted(self._paths)) or "none"
                    raise InputError(f"bank {name!r:.80} is not served here: {there}")
                path = self._paths[name]
                if not Path(path).is_dir():
                    raise ConfigError(f"bank {name!r}: {path!r} is no folder of this machine")
                opened = self._opened[name] = _Opened(Bank.open(path, self.card, create=False))
        if time.monotonic() - opened.looked > _REFRESH:
            opened.bank.refresh()
            opened.looked = time.monotonic()
        return opened.bank


def shelf_of(folder: str) -> Shelf:
    """The shelf of a model's folder in this process; another one where the folder was made anew for other settings."""
    return _shelf_of(folder, Card.text(folder))


@cache
def _shelf_of(folder: str, _card: str) -> Shelf:
    return Shelf(folder)
