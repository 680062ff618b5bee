"""`VectorStores`: the vector stores of tenants, each a bank, and the state of every file in one.

What is acknowledged is on the disk before, as `memory3.serving.store_state` lays it out. A store that goes is marked first and
removed when nobody reads it any more.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from memory3.bank import Bank
from memory3.bank.embedder import TextEmbedder
from memory3.bank.protocol import MemoryWriter
from memory3.files import flush_folder, remove
from memory3.serving.data_folder import DataFolder, NotStored, StorageFull, new_id, saving, write_state
from memory3.serving.errors import invalid
from memory3.serving.store_banks import StoreBanks
from memory3.serving.store_state import Batch, Key, Member, Scalar, Store, copy_of, found_stores
from memory3.serving.stored_files import StoredFile

__all__ = ["VectorStores"]


class VectorStores:
    """The vector stores of all tenants. Safe to call from any thread. Whoever changes a bank is the encoder alone."""

    def __init__(self, data: DataFolder, m3: MemoryWriter, embedders: Sequence[TextEmbedder] = ()) -> None:
        """
        Args:
            data: where they are.
            m3: the model whose memories they keep.
            embedders: that are loaded already. New stores get the first; without any, the catalogue's default.
        """
        self._data = data
        self._lock = threading.RLock()
        self._banks = StoreBanks(m3, embedders)
        self._stores: dict[str, dict[str, Store]] = {}
        for folder, _ in data.tenants():
            self._stores[folder.name] = found_stores(folder / "stores")

    # ---- stores ------------------------------------------------------------------------------------------------------

    def create(self, tenant: str, name: str, metadata: Mapping[str, str]) -> Store:
        """Make an empty store.

        Args:
            tenant: whose it is.
            name: to be shown.
            metadata: of the client.

        Raises:
            StorageFull: there are as many as may be, or the disk is full.
        """
        folder = self._data.tenant(tenant)
        with self._lock:
            there = self._stores.setdefault(folder.name, {})
            most = self._data.limits.tenant_stores
            if len(there) >= most:
                raise StorageFull(f"There are {most:,} vector stores, which is the most: delete some.")
            store = Store(new_id("vs_"), time.time_ns(), name, dict(metadata), used=int(time.time()))
            there[store.id] = store
        try:
            place = self._place(Key(folder.name, store.id))
            with saving():
                for each in (place, place / "files", place / "batches"):
                    each.mkdir(mode=0o700)
                flush_folder(place, files=False)
                flush_folder(place.parent, files=False)
            write_state(place / "store.json", store.state)
        except BaseException:
            with self._lock:
                del there[store.id]
            remove(place)
            raise
        return store

    def all(self, tenant: str) -> list[Store]:
        """The stores of a tenant, oldest first."""
        folder = self._data.tenant(tenant)
        with self._lock:
            there = [store for store in self._stores.get(folder.name, {}).values() if not store.going]
        return sorted(there, key=lambda store: (store.created, store.id))

    def key(self, tenant: str, store_id: str) -> Key:
        """Where a store of a tenant is.

        Args:
            tenant: who asks.
            store_id: from a client.

        Raises:
            NotStored: the tenant has none of that id.
        """
        folder = self._data.tenant(tenant)
        with self._lock:
            store = self._stores.get(folder.name, {}).get(store_id)
            if store is None or store.going:
                raise NotStored("vector store", store_id)
        return Key(folder.name, store_id)

    def get(self, key: Key) -> Store:
        """What is known of a store: a copy. NotStored: it is gone."""
        with self._lock:
            return copy_of(self._store(key))

    def modify(self, key: Key, name: str | None, metadata: Mapping[str, str] | None) -> None:
        """Call a store otherwise.

        Args:
            key: of the store.
            name, metadata: new ones; None: as they are.
        """
        with self._lock:
            store = self._store(key)
            changed = dataclasses.replace(
                store,
                name=store.name if name is None else name,
                metadata=store.metadata if metadata is None else dict(metadata),
            )
            write_state(self._place(key) / "store.json", changed.state)
            store.name, store.metadata = changed.name, changed.metadata

    def touch(self, key: Key) -> None:
        """It was used now."""
        with self._lock:
            self._store(key).used = int(time.time())

    def begin_deletion(self, key: Key) -> None:
        """From now on a store is not there for its tenant. Survives a restart."""
        with self._lock:
            store = self._store(key)
            write_state(self._place(key) / "store.json", {**store.state, "going": True})
            store.going = True

    def finish_deletion(self, key: Key) -> bool:
        """Remove a store whose deletion has begun. Returns False while somebody still reads it, who may finish, for a
        minute.
        """
        if not self._banks.leave(key):
            return False
        # The state goes last: an interruption leaves a store that goes, not one that nobody knows.
        place = self._place(key)
        for path in place.iterdir() if place.is_dir() else ():
            if path.name != "store.json":
                remove(path)
        remove(place)
        with self._lock:
            self._stores[key.folder].pop(key.store, None)
        return True

    # ---- files of stores ---------------------------------------------------------------------------------------------

    def add(
        self, key: Key, files: Sequence[tuple[StoredFile, Mapping[str, Scalar]]], *, together: bool = False
    ) -> Batch | None:
        """Put files into a store's queue. When this returns they are in it whatever happens.

        One that is there already with the same attributes, and did not fail, stays as it is.

        Args:
            key: of the store.
            files: each with its attributes.
            together: whether to remember them as a batch, which is returned.

        Raises:
            StorageFull: the store has as many files as may be, or the disk is full.
            Refused: one is being removed from the store.
        """
        with self._lock:
            store = self._store(key)
            most = self._data.limits.store_files
            if len(store.members.keys() | {file.id for file, _ in files}) > most:
                raise StorageFull(f"A vector store has at most {most:,} files: make another.")
            for file, attributes in files:
                there = store.members.get(file.id)
                if there is not None and there.status == "going":
                    raise invalid("file_id", f"{file.id} is being removed from {store.id}: add it again when it is gone.")
                if there is not None and there.status != "failed" and there.attributes == attributes:
                    continue
                since = time.time_ns() if there is None else there.created
                self.put(key, Member(file.id, file.filename, file.suffix, since, dict(attributes)))
            store.used = int(time.time())
            if not together:
                return None
            batch = Batch(new_id("vsfb_"), time.time_ns(), tuple(dict.fromkeys(file.id for file, _ in files)))
            write_state(self._place(key) / "batches" / f"{batch.id}.json", dataclasses.asdict(batch))
            store.batches[batch.id] = batch
            return batch

    def put(self, key: Key, member: Member) -> None:
        """Remember how far a file is.

        Args:
            key: of the store.
            member: the file as it is now.
        """
        with self._lock:
            store = self._store(key)
            write_state(self._place(key) / "files" / f"{member.file_id}.json", dataclasses.asdict(member))
            store.members[member.file_id] = member

    def member(self, key: Key, file_id: str) -> Member:
        """A file of a store.

        Args:
            key: of the store.
            file_id: from a client.

        Raises:
            NotStored: the store has none of that id.
        """
        with self._lock:
            found = self._store(key).members.get(file_id)
        if found is None or found.status == "going":
            raise NotStored("vector store file", file_id)
        return found

    def begin_removal(self, key: Key, file_id: str) -> None:
        """From now on a file goes from a store. Survives a restart.

        Args:
            key: of the store.
            file_id: of a file of it.
        """
        with self._lock:
            self.put(key, dataclasses.replace(self.member(key, file_id), status="going"))

    def forget(self, key: Key, file_id: str) -> None:
        """A file has gone from a store's bank.

        Args:
            key: of the store.
            file_id: of a file of it.
        """
        folder = self._place(key) / "files"
        with self._lock:
            remove(folder / f"{file_id}.json")
            flush_folder(folder, files=False)
            self._store(key).members.pop(file_id, None)

    def holding(self, tenant: str, file_id: str) -> list[Key]:
        """The stores of a tenant that have a file.

        Args:
            tenant: whose.
            file_id: of the file.
        """
        folder = self._data.tenant(tenant)
        with self._lock:
            stores = self._stores.get(folder.name, {}).values()
            return [Key(folder.name, store.id) for store in stores if file_id in store.members and not store.going]

    def everything(self) -> Iterator[tuple[Key, Store]]:
        """All stores of all tenants, also those that go."""
        with self._lock:
            there = [(Key(folder, store.id), copy_of(store)) for folder, of in self._stores.items() for store in of.values()]
        yield from there

    # ---- banks -------------------------------------------------------------------------------------------------------

    def bank(self, key: Key) -> Bank:
        """The bank of a store, opened or made.

        Raises:
            NotStored: the store is gone.
            BankError: it cannot be opened.
            StorageFull: the disk is full.
        """
        return self._banks.get(key, self._place(key) / "bank", self.get)

    def opened(self, key: Key) -> Bank | None:
        """The bank of a store if it is open now."""
        return self._banks.opened(key)

    def _place(self, key: Key) -> Path:
        return self._data.path / key.folder / "stores" / key.store

    def _store(self, key: Key) -> Store:
        store = self._stores.get(key.folder, {}).get(key.store)
        if store is None or store.going:
            raise NotStored("vector store", key.store)
        return store
