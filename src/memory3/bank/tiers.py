"""`Tiers`: one cache over a bank: the device that reads, RAM, this machine's disk. Behind them lies the bank itself.

A memory is looked for from the first tier to the last, and counts as found in one of them alone:

    device   decoded, where the device is not the CPU
    RAM      decoded where the CPU reads it, else packed; packed also what was fetched ahead; texts
    disk     packed, with texts and what searches found; only for banks that do not lie on this disk
    bank     the rest, lazy references that are encoded for it included

Keys in RAM and on the device have the version of the bank in them: what replaces a memory is never taken for it. Each tier
is bounded in bytes; what was used least recently goes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from memory3.bank.cache import CacheStatistics, MemoryCache
from memory3.bank.disk import DiskCache
from memory3.bank.protocol import MemoryWriter
from memory3.bank.record import MemoryRecord
from memory3.types import Memory, Reference

__all__ = ["TierBytes", "TierStatistics", "Tiers", "sum_of"]

_PACKED, _TEXT = "packed", "text"
#: About, of a reference in RAM: its text, and its tokens as Python's numbers.
_TEXT_BYTES = 4096


@dataclass(frozen=True)
class TierBytes:
    """Bounds in bytes; 0 switches a tier off.

    Attributes:
        device: of the device that reads. What the CPU reads lies in RAM.
        ram: of the host.
        disk: of this machine's disk, for banks that lie elsewhere. It is 0 where the bank lies on this disk.
    """

    device: int = 1 << 30
    ram: int = 1 << 30
    disk: int = 4 << 30

    @classmethod
    def of(cls, m3: MemoryWriter | None, device: int | None, ram: int, disk: int) -> TierBytes:
        """Bounds for a model.

        Args:
            m3: that reads.
            device: None: the default where the model is not on the CPU, and else 0.
            ram, disk: as they are.
        """
        on_cpu = m3 is None or m3.token_vectors.device.type == "cpu"
        return cls((0 if on_cpu else cls.device) if device is None else device, ram, disk)


@dataclass(frozen=True)
class TierStatistics:
    """What each tier holds, and what was found in it since the bank was opened.

    Attributes:
        device, ram, disk: see `Tiers`. What the disk holds is counted over all processes and banks that share it.
        bank: memories that none of them had: read from the bank, or encoded.
        ahead: memories that were fetched before anybody asked for them.
    """

    device: CacheStatistics = field(default_factory=CacheStatistics)
    ram: CacheStatistics = field(default_factory=CacheStatistics)
    disk: CacheStatistics = field(default_factory=CacheStatistics)
    bank: int = 0
    ahead: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Counts and bounds by tier, in plain values for JSON."""
        return dataclasses.asdict(self)


class Tiers:
    """Safe to share between threads.

    Attributes:
        device, ram, disk: the tiers.
    """

    def __init__(self, bounds: TierBytes, disk: DiskCache | None = None) -> None:
        """
        Args:
            bounds: of device and RAM.
            disk: that tier, where the bank lies elsewhere.
        """
        self.device = MemoryCache(bounds.device)
        self.ram = MemoryCache(bounds.ram)
        self.disk = disk
        self._lock = Lock()
        self._disk_hits = self._disk_misses = self._bank = self._ahead = 0

    def find(self, version: Hashable, reference_id: str, place: str) -> Memory | MemoryRecord | None:
        """A memory in RAM or on the device that reads it: decoded, or packed, to be decoded there.

        Args:
            version: of the bank.
            reference_id: which.
            place: the device, as torch names it.
        """
        decoded, packed = (version, reference_id, place), (version, reference_id, _PACKED)
        if place == "cpu":
            found: Memory | MemoryRecord | None = self.ram.get(decoded, packed)
            return found
        found = self.device.get(decoded)
        return self.ram.get(packed) if found is None else found

    def find_packed(self, version: Hashable, reference_id: str) -> MemoryRecord | None:
        """A packed memory in RAM.

        Args:
            version, reference_id: as of `find`.
        """
        found: MemoryRecord | None = self.ram.get((version, reference_id, _PACKED))
        return found

    def has(self, version: Hashable, reference_id: str) -> bool:
        """Whether a memory is in RAM; nothing is counted.

        Args:
            version, reference_id: as of `find`.
        """
        return self.ram.peek((version, reference_id, "cpu"), (version, reference_id, _PACKED)) is not None

    def keep(self, version: Hashable, reference_id: str, place: str, memory: Memory, nbytes: int) -> None:
        """Keep a decoded memory where it lies. In RAM it takes the place of the packed one.

        Args:
            version, reference_id, place: as of `find`.
            memory: decoded.
            nbytes: it holds.
        """
        tier = self.ram if place == "cpu" else self.device
        tier.put((version, reference_id, place), memory, nbytes)
        if place == "cpu" and nbytes <= tier.capacity:
            tier.discard([(version, reference_id, _PACKED)])

    def keep_packed(self, version: Hashable, record: MemoryRecord) -> None:
        """Keep a packed memory in RAM.

        Args:
            version: of the bank.
            record: the memory.
        """
        self.ram.put((version, record.reference_id, _PACKED), record, len(record.data) + _TEXT_BYTES)

    def text(self, version: Hashable, reference_id: str) -> Reference | None:
        """A reference in RAM. Texts are counted neither as found nor as missed.

        Args:
            version, reference_id: as of `find`.
        """
        found: Reference | None = self.ram.peek((version, reference_id, _TEXT))
        return found

    def keep_text(self, version: Hashable, reference: Reference) -> None:
        """Keep a reference in RAM.

        Args:
            version: of the bank.
            reference: with its text.
        """
        self.ram.put((version, reference.id, _TEXT), reference, _TEXT_BYTES)

    def drop(self, version: Hashable, reference_ids: Iterable[str]) -> None:
        """Forget references in RAM: what is kept of them is not what it should be.

        Args:
            version: of the bank.
            reference_ids: which.
        """
        forms = ("cpu", _PACKED, _TEXT)
        self.ram.discard((version, id_, form) for id_ in reference_ids for form in forms)

    def count(self, *, disk_hits: int = 0, disk_misses: int = 0, bank: int = 0, ahead: int = 0) -> None:
        """Count what happened below RAM; see `TierStatistics`.

        Args:
            disk_hits, disk_misses: memories that were looked for on disk.
            bank: that came from the bank.
            ahead: that were fetched before anybody asked.
        """
        with self._lock:
            self._disk_hits += disk_hits
            self._disk_misses += disk_misses
            self._bank += bank
            self._ahead += ahead

    def clear(self) -> None:
        """Forget what is in RAM and on the device. What is on disk is for other processes, too, and stays."""
        self.device.clear()
        self.ram.clear()

    def statistics(self) -> TierStatistics:
        """Counts so far."""
        held = CacheStatistics() if self.disk is None else self.disk.statistics()
        with self._lock:
            disk = dataclasses.replace(held, hits=self._disk_hits, misses=self._disk_misses)
            bank, ahead = self._bank, self._ahead
        return TierStatistics(self.device.statistics(), self.ram.statistics(), disk, bank, ahead)


def sum_of(tiers: Iterable[Tiers]) -> TierStatistics:
    """Of several banks. A disk that they share holds its bytes once."""
    each = list(tiers)
    told = [one.statistics() for one in each]
    folders = {str(one.disk.folder): (one.disk, said.disk) for one, said in zip(each, told, strict=True) if one.disk}
    held = [said for _, said in folders.values()]
    disk = _added([said.disk for said in told])
    return TierStatistics(
        _added([said.device for said in told]),
        _added([said.ram for said in told]),
        dataclasses.replace(
            disk,
            entries=sum(said.entries for said in held),
            bytes=sum(said.bytes for said in held),
            capacity=sum(said.capacity for said in held),
        ),
        sum(said.bank for said in told),
        sum(said.ahead for said in told),
    )


def _added(some: Iterable[CacheStatistics]) -> CacheStatistics:
    rows = [dataclasses.astuple(one) for one in some]
    return CacheStatistics(*(sum(column) for column in zip(*rows, strict=True))) if rows else CacheStatistics()
