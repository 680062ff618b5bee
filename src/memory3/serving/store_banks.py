"""`StoreBanks`: the banks of vector stores that are open, the least recently used put away first."""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from memory3.bank import Bank
from memory3.bank.embedder import TextEmbedder
from memory3.bank.protocol import MemoryWriter
from memory3.errors import BankFull, BankNotFound
from memory3.serving.data_folder import StorageFull
from memory3.serving.store_state import Key

__all__ = ["StoreBanks"]

#: Banks that are kept open, and RAM for the memories of each.
_OPEN = 32
_CACHE_BYTES = 64 << 20
#: A store that was deleted while it was read is removed after this many seconds, whoever still reads.
_READERS_SECONDS = 60.0


class StoreBanks:
    """Opens banks and keeps them. Safe to call from any thread."""

    def __init__(self, m3: MemoryWriter, embedders: Sequence[TextEmbedder] = ()) -> None:
        """
        Args:
            m3: the model whose memories they keep.
            embedders: that are loaded already. New banks get the first; without any, the catalogue's default.
        """
        self._m3 = m3
        self._embedders = {each.name: each for each in embedders}
        self._opening = threading.Lock()
        self._banks: OrderedDict[Key, Bank] = OrderedDict()
        self._leaving: dict[Key, tuple[weakref.ref[Bank], float]] = {}

    def get(self, key: Key, path: Path, check: Callable[[Key], object]) -> Bank:
        """The bank of a store, opened or made.

        Args:
            key: of the store.
            path: of its bank.
            check: raises where the store is gone. It is called where no other thread can be about to remove the bank.

        Raises:
            BankError: it cannot be opened.
            StorageFull: the disk is full.
        """
        with self._opening:
            check(key)
            bank = self._banks.get(key)
            if bank is None:
                bank = self._banks[key] = self._open(path)
            self._banks.move_to_end(key)
            while len(self._banks) > _OPEN:
                self._banks.popitem(last=False)
            return bank

    def opened(self, key: Key) -> Bank | None:
        """The bank of a store if it is open now."""
        return self._banks.get(key)

    def leave(self, key: Key) -> bool:
        """The store goes. Returns False while somebody still reads its bank, who may finish, for a minute."""
        with self._opening:
            bank = self._banks.pop(key, None)
        if bank is not None:
            self._leaving[key] = (weakref.ref(bank), time.monotonic() + _READERS_SECONDS)
            del bank
        if key in self._leaving:
            reader, until = self._leaving[key]
            if reader() is not None and time.monotonic() < until:
                return False
            del self._leaving[key]
        return True

    def _open(self, path: Path) -> Bank:
        try:
            name = Bank.describe(path).embedder
        except BankNotFound:
            name = next(iter(self._embedders), "")
        try:
            bank = Bank.open(path, self._m3, embedder=self._embedders.get(name), cache_bytes=_CACHE_BYTES)
        except BankFull as error:
            raise StorageFull from error
        self._embedders.setdefault(bank.embedder.name, bank.embedder)
        return bank
