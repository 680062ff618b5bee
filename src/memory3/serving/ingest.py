"""`Ingest`: the thread that turns uploaded files into memories, beside the engine, and the only one that changes banks.

Its queue is what the state files say is in progress or going, so a restart goes on where the server was killed. Removals
come first: a file that is being written stands back for them and is gone on with afterwards. Tenants take turns. Small files
of one store that wait together are one commit of its bank.

It encodes few references at a time, and rests while answers are being written. Its priority is as any
thread's: one of low priority that holds Python's lock and does not get a core would hold up all others.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch

from memory3.errors import BankBusy, BankError, FingerprintMismatch, ServingError
from memory3.serving.data_folder import DataFolder, NotStored
from memory3.serving.patient_writer import PatientWriter
from memory3.serving.reading import DocumentReader, Unreadable
from memory3.serving.store_state import Key, Member
from memory3.serving.store_writer import StoreWriter
from memory3.serving.stored_files import StoredFiles
from memory3.serving.threads import apart, start
from memory3.serving.vector_stores import VectorStores
from memory3.types import Document

__all__ = ["Ingest"]

#: Files that are written together: how many, their bytes as they came, and of their text.
_TOGETHER = 32
_TOGETHER_BYTES = 64 << 10
_TOGETHER_TEXT = 256 << 10
#: While answers are written: seconds of rest for every second of encoding.
_REST = 1.0
#: Seconds until a bank that others write, or a disk that is full, is tried again.
_AGAIN_SECONDS = 5.0
#: Seconds until a store that is to be dropped and is still read is looked at again.
_LOOK_SECONDS = 0.1

_log = logging.getLogger(__name__)


class _StoodBack(BaseException):
    """The write ends here and is gone on with later. No `Exception`, so that nothing takes it for a failure."""


@dataclass(frozen=True)
class _File:
    """A file that is being read, or has been."""

    member: Member
    documents: Future[list[Document]]


@dataclass(frozen=True)
class _Current:
    """Files of one store that are being read, or encoded together."""

    key: Key
    files: tuple[_File, ...]

    @property
    def are_read(self) -> bool:
        return all(file.documents.done() for file in self.files)


class Ingest:
    """Encodes and removes files until it is closed. Safe to call from any thread."""

    def __init__(
        self,
        data: DataFolder,
        files: StoredFiles,
        stores: VectorStores,
        writer: PatientWriter,
        is_answering: Callable[[], bool] = lambda: False,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            data: the server's folder.
            files: in it.
            stores: in it, whose banks are written with ``writer``.
            writer: the model.
            is_answering: whether requests are being answered now, for which encoding rests.
            threads: of torch, for encoding; None: as many as the caller's.
        """
        self._data = data
        self._files = files
        self._stores = stores
        self._store_writer = StoreWriter(stores, self._told)
        self._is_answering = is_answering
        self._threads = threads or torch.get_num_threads()
        self._encoding: threading.Thread | None = None
        self._reader = DocumentReader(seconds=data.limits.read_seconds, text_bytes=data.limits.text_bytes)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="memory3-reading")
        self._current: _Current | None = None
        self._changed = threading.Condition()
        self._wanted: OrderedDict[str, OrderedDict[tuple[Key, str], None]] = OrderedDict()  # by the tenant's folder
        self._removals: OrderedDict[tuple[Key, str], list[Future[None]]] = OrderedDict()
        self._drops: OrderedDict[Key, None] = OrderedDict()
        self._later: dict[Key, float] = {}  # stores to drop, and when to look again
        self._usage: dict[tuple[Key, str], int] = {}
        self._closed = False
        self._resume()
        writer.before = self._between
        self._thread = start(self._run, "memory3-ingest", 1)

    def close(self) -> None:
        """End after what is being encoded now; what is left goes on with the next server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._reader.stop()
        self._reading.shutdown(cancel_futures=True)
        self._reader.close()

    @property
    def waiting(self) -> int:
        """Files that are in progress."""
        with self._changed:
            return sum(map(len, self._wanted.values()))

    def usage(self, key: Key, member: Member) -> int:
        """Bytes of a file's memories, as far as they are made.

        Args:
            key: of the store.
            member: a file of it.
        """
        return member.usage or self._usage.get((key, member.file_id), 0)

    def encode(self, key: Key, file_ids: Sequence[str]) -> None:
        """Files of a store are in its queue: work on them.

        Args:
            key: of the store.
            file_ids: of files that are in progress there.
        """
        with self._changed:
            for file_id in file_ids:
                self._wanted.setdefault(key.folder, OrderedDict())[key, file_id] = None
            self._changed.notify_all()

    def remove(self, key: Key, file_id: str) -> Future[None]:
        """A file goes from a store: done when nobody can find it there any more.

        Args:
            key: of the store.
            file_id: of a file whose removal has begun.
        """
        done: Future[None] = Future()
        with self._changed:
            if self._closed:
                done.set_exception(ServingError("the server is shutting down: this will be removed when it is back"))
                return done
            self._removals.setdefault((key, file_id), []).append(done)
            self._wanted.get(key.folder, OrderedDict()).pop((key, file_id), None)
            self._changed.notify_all()
        return done

    def finish_deletions(self) -> None:
        """Delete files that are to go: from the stores that still have them, and then for good."""
        for folder, file in self._files.going():
            there = [
                (key, store) for key, store in self._stores.everything() if key.folder == folder and file.id in store.members
            ]
            for key, store in there:
                with suppress(NotStored):
                    if store.members[file.id].status != "going":
                        self._stores.begin_removal(key, file.id)
                        self.remove(key, file.id)
            if not there:
                self._files.finish_deletion(folder, file)

    def drop(self, key: Key) -> None:
        """A store goes.

        Args:
            key: of a store whose deletion has begun.
        """
        with self._changed:
            self._drops[key] = None
            for one in [one for one in self._wanted.get(key.folder, ()) if one[0] == key]:
                del self._wanted[key.folder][one]
            self._changed.notify_all()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """What the server that was here before left to do."""
        for key, store in self._stores.everything():
            if store.going:
                self.drop(key)
                continue
            for member in sorted(store.members.values(), key=lambda each: each.created):
                if member.status == "going":
                    self.remove(key, member.file_id)
                elif member.status == "in_progress":
                    self.encode(key, [member.file_id])

    def _run(self) -> None:
        self.finish_deletions()
        self._reading.submit(self._reader.start)  # takes seconds, which the first file need not wait for
        while True:
            with self._changed:
                while not (self._closed or self._removals or self._drops or self._is_read()):
                    self._changed.wait(_LOOK_SECONDS if self._later else None)
                    self._drops.update((key, None) for key in self._due())
                if self._closed:
                    break
                removal = next(iter(self._removals), None)
                drop = None if removal else next(iter(self._drops), None)
                current = None if removal or drop else self._current
            try:
                if removal:
                    self._remove(*removal)
                elif drop:
                    self._drop(drop)
                elif current:
                    apart(partial(self._encode, current), self._threads)
                self.finish_deletions()
            except Exception:  # a fault of ours or of the disk must not end the thread: what is left is tried again
                _log.exception("the encoder of uploaded files met a fault")
                self._rest(_AGAIN_SECONDS)
        with self._changed:
            for waiting in self._removals.values():
                for done in waiting:
                    done.set_exception(ServingError("the server is shutting down: this will be removed when it is back"))

    def _due(self) -> list[Key]:
        """Stores that somebody still read and that are to be looked at again. Held: `_changed`."""
        now = time.monotonic()
        due = [key for key, when in self._later.items() if when <= now]
        for key in due:
            del self._later[key]
        return due

    def _is_read(self) -> bool:
        """Whether a file is ready to be encoded. If none is being read, the next one is from now on. Held: `_changed`."""
        current = self._current
        if current is not None:
            wanted = self._wanted.get(current.key.folder, OrderedDict())
            left = tuple(file for file in current.files if (current.key, file.member.file_id) in wanted)
            if not left and not current.are_read:
                for file in current.files:
                    file.documents.cancel()
                self._reader.stop()  # nobody wants it any more
            self._current = current = dataclasses.replace(current, files=left) if left else None
        while current is None and (job := self._next()):
            files = []
            for key, file_id in self._together(job):
                try:
                    member = self._stores.member(key, file_id)
                except NotStored:  # it went meanwhile
                    del self._wanted[key.folder][key, file_id]
                    continue
                files.append(_File(member, self._reading.submit(self._read, key, member)))
            if files:
                self._current = current = _Current(job[0], tuple(files))
                for file in files:
                    file.documents.add_done_callback(self._notice)
        return current is not None and current.are_read

    def _together(self, first: tuple[Key, str]) -> list[tuple[Key, str]]:
        """A file, and small ones of the same store that wait behind it. Held: `_changed`."""
        found, room = [first], _TOGETHER_BYTES - self._files.size(first[0].folder, first[1])
        for other in self._wanted[first[0].folder]:
            if len(found) >= _TOGETHER or room <= 0:
                break
            if other != first and other[0] == first[0]:
                size = self._files.size(other[0].folder, other[1])
                if size <= room:
                    found.append(other)
                    room -= size
        return found

    def _notice(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _next(self) -> tuple[Key, str] | None:
        """The next file, of the tenant whose turn it is. Held: `_changed`."""
        for folder in list(self._wanted):
            if self._wanted[folder]:
                self._wanted.move_to_end(folder)
                return next(iter(self._wanted[folder]))
            del self._wanted[folder]
        return None

    def _told(self, key: Key, file_id: str, usage: int) -> None:
        self._usage[key, file_id] = usage

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _between(self, seconds: float) -> None:
        """Before a batch is encoded: stand back for what must not wait, and rest for answers."""
        if threading.current_thread() is not self._encoding:
            return
        with self._changed:
            if self._closed or self._removals or self._drops:
                raise _StoodBack
        if self._is_answering():
            time.sleep(_REST * min(seconds, 1.0))

    # ---- encoding ----------------------------------------------------------------------------------------------------

    def _encode(self, current: _Current) -> None:
        key, files, later = current.key, *_first_of(current.files)
        self._encoding = threading.current_thread()
        results: list[Member] = []
        try:
            read = []
            for file in files:
                try:
                    read.append((file.member, file.documents.result()))
                except Exception as error:
                    results.append(self._store_writer.fail(key, file.member, error))
            results += self._store_writer.write(key, read)
        except _StoodBack:
            return
        except NotStored:  # the store is gone, and all of it
            results = []
        except FingerprintMismatch as error:  # the server was started with another model: they wait for the right one
            _log.warning("%s waits: %s", key.store, error)
            results = []
        except BankBusy as error:
            _log.warning("%s", error)
            self._rest(_AGAIN_SECONDS)
            return
        ended = {member.file_id: member for member in results}
        with self._changed:
            self._current = dataclasses.replace(current, files=later) if later else None
            for file in files:
                self._end(key, file.member, ended.get(file.member.file_id))

    def _end(self, key: Key, member: Member, result: Member | None) -> None:
        """Remember what has become of a file, unless something else is wanted of it by now. Held: `_changed`."""
        if (key, member.file_id) in self._removals:
            return
        with suppress(NotStored):
            now = self._stores.member(key, member.file_id)
            if now.attributes != member.attributes:  # they were changed meanwhile: once more
                return
            if result is not None:
                self._stores.put(key, result)
        self._usage.pop((key, member.file_id), None)
        self._wanted.get(key.folder, OrderedDict()).pop((key, member.file_id), None)

    def _read(self, key: Key, member: Member) -> list[Document]:
        path = self._data.path / key.folder / "files" / (member.file_id + member.suffix)
        if not path.is_file():
            raise Unreadable("the file was deleted before it was encoded")
        return self._reader.read(path, member.file_id, member.filename, member.attributes)

    # ---- removing ----------------------------------------------------------------------------------------------------

    def _remove(self, key: Key, file_id: str) -> None:
        fault: Exception | None = None
        try:
            self._store_writer.remove(key, file_id)
        except NotStored:
            pass  # the whole store goes
        except BankBusy as error:
            _log.warning("%s", error)
            return
        except (BankError, OSError) as error:
            fault = error
            _log.exception("%s was not removed from %s", file_id, key.store)
        with self._changed:
            waiting = self._removals.pop((key, file_id), [])
        for done in waiting:
            if fault is None:
                done.set_result(None)
            else:
                done.set_exception(ServingError("it could not be removed now: this is tried again when the server restarts"))

    def _drop(self, key: Key) -> None:
        gone = self._stores.finish_deletion(key)
        with self._changed:
            self._drops.pop(key, None)
            if not gone:  # somebody reads it: others first
                self._later[key] = time.monotonic() + _LOOK_SECONDS


def _first_of(files: tuple[_File, ...]) -> tuple[tuple[_File, ...], tuple[_File, ...]]:
    """Files that are written now, and those whose text is too much for one commit with the others."""
    size = 0
    for number, file in enumerate(files):
        if file.documents.exception() is None:
            size += sum(len(document.text) for document in file.documents.result())
        if number and size > _TOGETHER_TEXT:
            return files[:number], files[number:]
    return files, ()
