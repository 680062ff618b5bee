"""`RemoteBank`: a bank that another machine serves, with what `memory3.Bank` offers for reading."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from memory3.bank.address import checked_address
from memory3.bank.ahead import Ahead
from memory3.bank.cache import MemoryCache
from memory3.bank.codebooks import cached_codebook, received_codec
from memory3.bank.disk import DiskCache
from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.tags import Scalar
from memory3.bank.protocol import MemoryWriter
from memory3.bank.reader import MemoryReader
from memory3.bank.record import MemoryRecord
from memory3.bank.remote.about import About
from memory3.bank.remote.connection import Connection
from memory3.bank.remote.kept import ItemShape, Kept
from memory3.bank.remote.server import require_name
from memory3.bank.remote.view import RemoteView
from memory3.bank.reports import Hit
from memory3.bank.tiers import TierBytes, Tiers
from memory3.bank.where import Where
from memory3.codec import Codec, RawCodec
from memory3.errors import BankChanged, BankCorrupt, BankRefused, BankUnreachable, ConfigError
from memory3.files import parse_json
from memory3.models.catalogue import cache_dir
from memory3.types import Memory, Reference

if TYPE_CHECKING:
    import torch

__all__ = ["RemoteBank"]

T = TypeVar("T")
#: Of a codebook; the largest (product codecs of large models) have some ten megabytes.
_MOST_CODEBOOK = 256 << 20
#: Guesses that wait at most: a search costs this machine nothing.
_MOST_GUESSES = 16
#: After so many seconds without a request it is asked first whether the version is still there.
_IDLE = 60.0
#: What a bank in a folder offers besides: it changes the bank, or looks at its files.
_AT_HOME = frozenset(
    {
        "compact",
        "delete",
        "deliver",
        "documents",
        "embedder",
        "info",
        "policy",
        "purge",
        "rebuild",
        "recalls",
        "verify",
        "write",
    }
)


class RemoteBank:
    """Made by ``Bank.open("http://host:port/banks/name", m3)``, or by `open` with what only this bank has. Read only.

    Safe to share between threads. Shows the version that was in force when it was opened or last refreshed; once the server
    has dropped that one, the newest.

    Attributes:
        path: the address.
        tiers: the cache: device, RAM and disk.
        offline: whether it was opened without the server, from what is cached here.
    """

    def __init__(
        self, connection: Connection, about: About, m3: MemoryWriter | None, bounds: TierBytes, disk: DiskCache, offline: bool
    ) -> None:
        self.path = connection.url
        self.tiers = Tiers(bounds, disk)
        self.offline = offline
        self._connection = connection
        self._m3 = m3
        self._disk = disk
        self._guesses = Ahead(_MOST_GUESSES)
        self._lock = Lock()
        self._asked = time.monotonic()
        self._view = self._look(about)

    @classmethod
    def open(
        cls,
        url: str,
        m3: MemoryWriter | None,
        *,
        key: str | None = None,
        device_bytes: int | None = None,
        cache_bytes: int = 1 << 30,
        disk_bytes: int = 4 << 30,
        folder: str | os.PathLike[str] | None = None,
        patience: float = 15.0,
    ) -> RemoteBank:
        """Open a bank that another machine serves.

        Args:
            url: of the bank, ``"http://host:port/banks/name"``.
            m3: the model that reads; another than the bank's raises FingerprintMismatch. None: the bank can be searched and
                its texts read, but not its memories.
            key: that the server wants to see; None: the environment variable MEMORY3_API_KEY, if it is set.
            device_bytes: of the device that reads, for memories read recently; None: 1 GiB on a GPU, 0 on a CPU.
            cache_bytes: RAM for the same; 0 switches it off.
            disk_bytes: of the cache on disk, which all banks of other machines share; 0 switches it off.
            folder: of that cache; None: ``remote`` in memory3's cache folder.
            patience: seconds in which a request is tried again before the server counts as away.

        Raises:
            InputError: it is no such address, or that of a server without the name of a bank.
            BankNotFound: the server has no such bank.
            BankRefused: the key may not read it.
            BankUnreachable: the server does not answer, and the bank was never opened on this machine.
        """
        address, key = checked_address(url), key or os.environ.get("MEMORY3_API_KEY")
        require_name(address, key)
        connection = Connection(address, key, patience)
        disk = DiskCache(Path(folder) if folder is not None else cache_dir() / "remote", disk_bytes)
        about, offline = _ask_about(connection, disk)
        if m3 is not None:
            about.manifest.require(m3)
        bounds = TierBytes.of(m3, device_bytes, cache_bytes, disk_bytes)
        return cls(connection, about, m3, bounds, disk, offline)

    @property
    def manifest(self) -> BankManifest:
        """What the bank says about itself."""
        return self._view.about.manifest

    @property
    def cache(self) -> MemoryCache:
        """RAM's tier, by its name in earlier releases."""
        return self.tiers.ram

    @property
    def received_bytes(self) -> int:
        """What came over the network since it was opened, without headers."""
        return self._connection.received

    def pin(self) -> RemoteView:
        """The bank as it is known now, to search and read from: one version.

        If the server has dropped that version, since others wrote, the bank is refreshed first.
        """
        if time.monotonic() - self._asked > _IDLE:
            try:
                self._connection.ask(params={"version": self._view.about.version}, tag=self._view.about.tag)
            except BankChanged:
                self.refresh()
            except BankUnreachable:
                pass  # what is cached can be read all the same
            self._asked = time.monotonic()
        return self._view

    def refresh(self) -> None:
        """See what was written on the server since the bank was opened. The memories kept in RAM are dropped if anything was.

        Raises:
            BankUnreachable: the server does not answer.
            FingerprintMismatch: the bank was encoded anew for another model.
        """
        with self._lock:
            about = _ask_server(self._connection, self._disk)
            self.offline = False
            self._asked = time.monotonic()
            if about.version != self._view.about.version:
                if self._m3 is not None:
                    about.manifest.require(self._m3)
                self._view = self._look(about)
                self.tiers.clear()

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """For each query the ``k`` most similar references, best first.

        Args:
            queries: texts; the server embeds them.
            k: how many.
            where: metadata that references must have.
        """
        return self._reading(lambda view: view.search(queries, k, where))

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """The memories of references, in order: from RAM, from this machine's disk, or from the server.

        Args:
            reference_ids: which.
            use_cache: look into the RAM cache first, and keep there what is read.
            device: where keys and values are to lie; default the CPU.
        """
        return self._reading(lambda view: view.memories(reference_ids, use_cache=use_cache, device=device))

    def records(self, reference_ids: Sequence[str]) -> list[MemoryRecord]:
        """The memories of references as they are stored, packed, in order."""
        return self._reading(lambda view: view.records(reference_ids))

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order."""
        return self._reading(lambda view: view.references(reference_ids))

    def count(self, where: Where | None = None) -> int:
        """How many references match."""
        return self._reading(lambda view: view.count(where))

    def metadata(self) -> dict[str, list[Scalar]]:
        """What documents can be filtered by: every key, and its values."""
        return self._reading(lambda view: view.metadata())

    def prefetch(self, reference_ids: Sequence[str]) -> None:
        """Fetch memories beside what this thread does; see `RemoteView.prefetch`."""
        self._view.prefetch(reference_ids)

    def close(self) -> None:
        """Give back the RAM and the connection. What is on disk stays. The bank must not be used after that."""
        self._guesses.close(wait=True)
        self._view.remember()
        self._connection.close()
        self.tiers.clear()

    def __len__(self) -> int:
        return len(self._view)

    def __enter__(self) -> RemoteBank:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __getattr__(self, name: str) -> NoReturn:
        if name in _AT_HOME:
            raise BankRefused(
                f"{self.path} is read over the network, and has no {name!r} here: do that on the machine where the bank lies, "
                "with Bank.open(folder, m3) or the commands of memory3"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _reading(self, read: Callable[[RemoteView], T]) -> T:
        """``read`` from the version that is known; if the server has dropped it, from the newest."""
        view = self.pin()
        try:
            return read(view)
        except BankChanged:
            self.refresh()
            if self._view is view:
                raise
            return read(self._view)

    def _look(self, about: About) -> RemoteView:
        m3, manifest = self._m3, about.manifest
        shape = ItemShape(
            manifest.codec,
            manifest.record_bytes,
            manifest.config.reference_length,
            len(m3.token_vectors) if m3 is not None else 1 << 31,
        )
        codec = None if m3 is None else self._codec(about, m3)

        def decoder() -> Codec:
            if codec is None:
                raise ConfigError(f"to read memories a model is needed: open the bank with Bank.open({self.path!r}, m3)")
            return codec

        return RemoteView(
            about,
            connection=self._connection,
            kept=Kept(f"{self.path}\0{about.version}", about.version, shape, self.tiers, self._disk),
            shape=shape,
            reader=MemoryReader(manifest, decoder, self.tiers, about.version, self.path),
            gap=2.0 if m3 is None else float(m3.config.score_gap),
            tiers=self.tiers,
            guesses=self._guesses,
        )

    def _codec(self, about: About, m3: MemoryWriter) -> Codec:
        """The bank's codec, of a codebook that is on disk here, or comes with memory3, or else is the server's. Asked for
        early, so that it is here without a network.
        """
        manifest = about.manifest
        if manifest.codec == "raw":
            return RawCodec(manifest.shape)
        own = cached_codebook(manifest.codec, manifest.fingerprint)
        if own is not None and own.fingerprint == manifest.code_book:
            return received_codec(own.data, manifest, self.path, m3.token_vectors)
        name = f"{self.path}\0codebook\0{manifest.code_book}"
        data = self._disk.get(name)
        if data is not None:
            try:
                return received_codec(data, manifest, self.path, m3.token_vectors)
            except BankCorrupt:
                self._disk.discard(name)
        data = self._connection.ask("/codec", params={"version": about.version}, most=_MOST_CODEBOOK).body
        codec = received_codec(data, manifest, self.path, m3.token_vectors)
        self._disk.put({name: data})
        return codec


def _ask_about(connection: Connection, disk: DiskCache) -> tuple[About, bool]:
    """What the server says of its bank, or where it does not answer, what it said last; and whether it is the latter."""
    try:
        return _ask_server(connection, disk), False
    except BankUnreachable as error:
        data = disk.get(f"{connection.url}\0about")
        try:
            if data is not None:
                return About.of(_object(data)), True
        except (ValueError, BankCorrupt):
            disk.discard(f"{connection.url}\0about")
        raise BankUnreachable(f"{error}. Nothing of this bank is cached on this machine") from error


def _ask_server(connection: Connection, disk: DiskCache) -> About:
    body = connection.ask(most=4 << 20).body
    try:
        about = About.of(_object(body))
    except ValueError as error:
        raise BankCorrupt(f"{connection.url}: the server's answer is not that of a bank ({str(error)[:200]!r})") from error
    disk.put({f"{connection.url}\0about": body}, replace=True)
    return about


def _object(data: bytes) -> dict[str, Any]:
    found = parse_json(data)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found
