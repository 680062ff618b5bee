"""`Shelf`: the banks that a process of vLLM reads, by name, and the model's card. One for each model folder and process,
so that scheduler and worker share banks where they share a process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from memory3.bank import Bank
from memory3.bank.cache import MemoryCache
from memory3.bank.reader import MemoryReader
from memory3.bank.record import MemoryRecord
from memory3.errors import ConfigError, InputError
from memory3.models.load import load_tokenizer
from memory3.types import Memory
from memory3.vllm.card import Card

__all__ = ["Shelf", "shelf_of"]


class Shelf:
    """Banks by name. Safe to share between threads.

    Attributes:
        card: of the model that reads.
    """

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: of the model, with its card.
        """
        self.card = Card.read(folder)
        self._paths: dict[str, str] = {}
        self._banks: dict[str, Any] = {}
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
            self._paths.update(paths)

    def bank(self, name: str) -> Any:
        """The bank of this name.

        Raises:
            InputError: there is none.
            BankError: it cannot be opened.
            FingerprintMismatch: it is another model's.
        """
        with self._lock:
            lent = self._lent.get(name)
            if lent is not None:
                return lent
            if name not in self._banks:
                if name not in self._paths:
                    there = ", ".join(sorted({*self._paths, *self._banks})) or "none"
                    raise InputError(f"bank {name!r:.80} is not served here: {there}")
                if not Path(self._paths[name]).is_dir():
                    raise ConfigError(f"bank {name!r}: {self._paths[name]!r} is no folder of this machine")
                self._banks[name] = Bank.open(self._paths[name], self.card, create=False)
            return self._banks[name]

    def decode(self, name: str, records: Sequence[MemoryRecord], device: torch.device) -> list[Memory]:
        """Memories of packed records.

        Args:
            name: of the bank they are of.
            records: of one version of it.
            device: where they are wanted.

        Raises:
            BankCorrupt: a record cannot be decoded.
        """
        snapshot = self.bank(name).pin().snapshot
        reader = MemoryReader(snapshot.manifest, lambda: snapshot.codec, MemoryCache(0), snapshot.id, str(snapshot.path))
        return reader.decode(records, device=device)


@cache
def shelf_of(folder: str) -> Shelf:
    """The shelf of a model's folder in this process."""
    return Shelf(folder)
