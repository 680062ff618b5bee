"""`StoreWriter`: documents of uploaded files go into the bank of their store, and out of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence, Set
from contextlib import suppress

from memory3.bank import Bank, WriteProgress
from memory3.errors import BankBusy, BankFull, FingerprintMismatch, InputError, Memory3Error
from memory3.serving.data_folder import NotStored, StorageFull
from memory3.serving.reading import Unreadable
from memory3.serving.store_state import Key, Member
from memory3.serving.vector_stores import VectorStores
from memory3.text.readers.read import READERS
from memory3.types import Document

__all__ = ["StoreWriter"]

#: Seconds that a bank which others write is waited for.
_PATIENCE = 5.0

_log = logging.getLogger(__name__)


class StoreWriter:
    """For one thread: the only one that changes banks of stores."""

    def __init__(self, stores: VectorStores, told: Callable[[Key, str, int], None]) -> None:
        """
        Args:
            stores: whose banks are written.
            told: is told while a file is written how many bytes its memories take so far: store, file, bytes. Of files that
                are written together the first is said to have all.
        """
        self._stores = stores
        self._told = told

    def write(self, key: Key, files: Sequence[tuple[Member, list[Document]]]) -> list[Member]:
        """Documents of files go into a store, all in one commit; where that fails, each file's in one of its own.

        Args:
            key: of the store.
            files: and what was read from each.

        Returns:
            the files as they are then.

        Raises:
            NotStored: the store is gone.
            FingerprintMismatch: its memories are of another model.
            BankBusy: others write its bank.
        """
        if not files:
            return []
        try:
            bank = self._stores.bank(key)
            self._write(bank, key, files)
            bytes_of = _usage(bank, {member.file_id for member, _ in files})
            return [
                dataclasses.replace(member, status="completed", usage=bytes_of[member.file_id], error=())
                for member, _ in files
            ]
        except (NotStored, FingerprintMismatch, BankBusy):
            raise
        except Exception as error:
            if len(files) == 1:
                return [self.fail(key, files[0][0], error)]
            return [result for one in files for result in self.write(key, [one])]  # one of them is to blame

    def fail(self, key: Key, member: Member, error: Exception) -> Member:
        """Nothing of a file stays in a store.

        Args:
            key: of the store.
            member: the file.
            error: why it failed.

        Returns:
            the file as it is then.
        """
        if not isinstance(error, Unreadable):
            _log.warning("%s of %s was not encoded", member.file_id, key.store, exc_info=error)
        with suppress(Memory3Error):
            self._delete(self._stores.bank(key), member.file_id)
        return dataclasses.replace(member, status="failed", error=_reason(error, member))

    def remove(self, key: Key, file_id: str) -> None:
        """A file and its documents go from a store.

        Args:
            key: of the store.
            file_id: of the file.

        Raises:
            NotStored: the whole store is gone.
            BankBusy: others write its bank.
            BankError, OSError: it cannot be removed.
        """
        self._delete(self._stores.bank(key), file_id)
        self._stores.forget(key, file_id)

    def _write(self, bank: Bank, key: Key, files: Sequence[tuple[Member, list[Document]]]) -> None:
        size, first = bank.manifest.record_bytes, files[0][0].file_id

        def told(progress: WriteProgress) -> None:
            self._told(key, first, progress.references * size)

        documents = [document for _, each in files for document in each]
        names = {document.id for document in documents}
        stale = [name for name in _held(bank, {member.file_id for member, _ in files}) if name not in names]
        if stale:
            bank.delete(stale, wait_seconds=_PATIENCE)
        bank.write(documents, replace=True, lazy=False, progress=told, wait_seconds=_PATIENCE)

    @staticmethod
    def _delete(bank: Bank, file_id: str) -> None:
        bank.delete(_held(bank, {file_id}), wait_seconds=_PATIENCE)


def _held(bank: Bank, file_ids: Set[str]) -> list[str]:
    """The documents of files."""
    return [each.id for each in bank.documents() if each.id.partition("#")[0] in file_ids]


def _usage(bank: Bank, file_ids: Set[str]) -> dict[str, int]:
    """Bytes of the memories of files."""
    found = dict.fromkeys(file_ids, 0)
    for each in bank.documents():
        file_id = each.id.partition("#")[0]
        if file_id in found:
            found[file_id] += each.references * bank.manifest.record_bytes
    return found


def _reason(error: Exception, member: Member) -> tuple[str, str]:
    """Why a file failed, as its client may know it: code and message."""
    if isinstance(error, BankFull | StorageFull):
        return "server_error", "the server's disk is full: delete files, then add this one again"
    if isinstance(error, Unreadable | InputError):
        known = member.suffix.removesuffix(".gz") in READERS
        return "invalid_file" if known else "unsupported_file", f"{member.filename}: {error}"
    return "server_error", f"it could not be encoded ({type(error).__name__})"
