"""`Storage`: what clients leave on a server, put together: files, vector stores, the thread that encodes, the banks served."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory3.bank.embedder import TextEmbedder
from memory3.bank.protocol import MemoryWriter
from memory3.bank.tiers import Tiers
from memory3.bank.view import BankView
from memory3.serving.catalogue import Banks, Served
from memory3.serving.data_folder import DataFolder, StorageLimits
from memory3.serving.ingest import Ingest
from memory3.serving.patient_writer import PatientWriter
from memory3.serving.store_state import Key
from memory3.serving.stored_files import StoredFiles
from memory3.serving.vector_stores import VectorStores

__all__ = ["Storage", "StoreBank", "Unowned"]


@dataclass(frozen=True)
class Unowned:
    """What a key has left that is not among the server's any more.

    Attributes:
        folder: all of it.
        files: how many.
        bytes: of these.
        stores: vector stores.
    """

    folder: Path
    files: int
    bytes: int
    stores: int


class StoreBank:
    """The bank of a vector store as a server reads it: opened when it is first read, and again after it was put away."""

    def __init__(self, stores: VectorStores, key: Key) -> None:
        """
        Args:
            stores: has it.
            key: of the store.
        """
        self._stores = stores
        self._key = key

    def pin(self) -> BankView:
        """The bank as it is now. NotStored: the store was deleted."""
        return self._stores.bank(self._key).pin()

    def refresh(self) -> None:
        """Read on from what others wrote to it, where it is open."""
        bank = self._stores.opened(self._key)
        if bank is not None:
            bank.refresh()

    def close(self) -> None:
        """Give back its RAM, if it is open."""
        bank = self._stores.opened(self._key)
        if bank is not None:
            bank.close()

    @property
    def tiers(self) -> Tiers | None:
        """The cache of its memories; None while it is not open."""
        bank = self._stores.opened(self._key)
        return None if bank is None else bank.tiers

    def __len__(self) -> int:
        return len(self._stores.bank(self._key))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stores.bank(self._key), name)


class Storage:
    """Files and vector stores of all tenants, in one folder. Their banks are served beside the others.

    Attributes:
        files: that were uploaded.
        stores: of them.
        ingest: encodes them.
    """

    def __init__(
        self,
        folder: str | Path,
        m3: MemoryWriter,
        banks: Banks,
        *,
        limits: StorageLimits | None = None,
        embedders: tuple[TextEmbedder, ...] = (),
        is_answering: Callable[[], bool] = lambda: False,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            folder: see `DataFolder`.
            m3: the model.
            banks: that are served; the stores' are added.
            limits: what tenants may keep.
            embedders: that are loaded already, besides those of the banks. New stores get the first of all.
            is_answering, threads: see `Ingest`.

        Raises:
            ServingError: another server uses the folder.
        """
        self._data = DataFolder(folder, limits)
        self._banks = banks
        loaded = [one.bank.embedder for one in banks if hasattr(one.bank, "embedder")]
        writer = PatientWriter(m3)
        self.files = StoredFiles(self._data)
        self.stores = VectorStores(self._data, writer, [*embedders, *loaded])
        for place, tenant in self._data.tenants():
            for store in self.stores.all(tenant):
                self._serve(Key(place.name, store.id), tenant)
        self.ingest = Ingest(self._data, self.files, self.stores, writer, is_answering, threads)

    @property
    def limits(self) -> StorageLimits:
        """What tenants may keep."""
        return self._data.limits

    def unowned(self, tenants: Collection[str]) -> list[Unowned]:
        """What lies here and can be seen by nobody: its key was rotated or removed, or keys were asked for only since.

        Args:
            tenants: names of all that may ask.
        """
        found = []
        for folder, tenant in self._data.tenants():
            if tenant not in tenants:
                left = Unowned(folder, *self.files.held(tenant), len(self.stores.all(tenant)))
                if left.files or left.stores:
                    found.append(left)
        return found

    def create_store(self, tenant: str, name: str, metadata: dict[str, str]) -> Key:
        """Make a store, and serve its bank.

        Args:
            tenant: whose it is.
            name: to be shown.
            metadata: of the client.
        """
        store = self.stores.create(tenant, name, metadata)
        key = self.stores.key(tenant, store.id)
        self._serve(key, tenant)
        return key

    def delete_store(self, key: Key) -> None:
        """Delete a store: nobody finds it from now on, and it is removed when nobody reads it."""
        self.stores.begin_deletion(key)
        self._banks.remove(key.store)
        self.ingest.drop(key)

    def close(self) -> None:
        """End the encoding, and let another server have the folder."""
        self.ingest.close()
        self._data.close()

    def _serve(self, key: Key, tenant: str) -> None:
        self._banks.add(Served(key.store, StoreBank(self.stores, key), owner=tenant))
