"""`MemoryReader`: packed records become memories on the device that reads them. Knows no disk.

Where records come from, a folder or another machine, is the caller's affair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import torch

from memory3.bank.codebooks import coding
from memory3.bank.format.manifest import BankManifest
from memory3.bank.lookup import refuse_damaged
from memory3.bank.record import MemoryRecord
from memory3.bank.tiers import Tiers
from memory3.codec import Codec
from memory3.codec.raw import record_size
from memory3.errors import ConfigError
from memory3.types import Memory, Provenance

__all__ = ["MemoryReader"]


class MemoryReader:
    """Decodes the records of one version of a bank, and keeps what it decoded lately. Safe to share between threads."""

    def __init__(self, manifest: BankManifest, codec: Callable[[], Codec], tiers: Tiers, version: Hashable, name: str) -> None:
        """
        Args:
            manifest: of the bank: what its records are, and how they were made.
            codec: gives the bank's codec; asked when the first record is decoded.
            tiers: shared by all readers of a bank. A memory is kept by version, reference and device.
            version: equal only where every record is equal.
            name: of the bank, for messages.
        """
        self._manifest = manifest
        self._codec = codec
        self._tiers = tiers
        self._version = version
        self._name = name

    @property
    def codec(self) -> Codec:
        """What reads the records.

        Raises:
            BankCorrupt: its codebook is lost or damaged.
        """
        return self._codec()

    def memories(
        self,
        reference_ids: Sequence[str],
        fetch: Callable[[list[str]], Sequence[MemoryRecord]],
        *,
        device: torch.device | str | None = None,
        use_cache: bool = True,
    ) -> list[Memory]:
        """Memories of references, in order.

        Args:
            reference_ids: which.
            fetch: gives the records of those that are neither on the device nor in RAM, in the order asked.
            device: where keys and values are to lie; default the CPU.
            use_cache: look there first, and keep there what is decoded; for a device also what is packed, in RAM.
        """
        place = str(torch.device(device or "cpu"))
        wanted = list(dict.fromkeys(reference_ids))
        kept = {id_: self._tiers.find(self._version, id_, place) for id_ in wanted} if use_cache else {}
        found = {id_: memory for id_, memory in kept.items() if isinstance(memory, Memory)}
        packed = {id_: record for id_, record in kept.items() if isinstance(record, MemoryRecord)}
        missing = [id_ for id_ in wanted if id_ not in found and id_ not in packed]
        if missing:
            fetched = dict(zip(missing, fetch(missing), strict=True))
            packed |= fetched
            for record in fetched.values() if use_cache and place != "cpu" else ():
                self._tiers.keep_packed(self._version, record)
        if packed:
            decoded = dict(zip(packed, self.decode(list(packed.values()), device=place), strict=True))
            found |= decoded
            size = record_size(self._manifest.shape)  # decoded, whatever the codec
            for id_, memory in decoded.items() if use_cache else ():
                self._tiers.keep(self._version, id_, place, memory, size)
        return [found[id_] for id_ in reference_ids]

    def records(
        self, reference_ids: Sequence[str], fetch: Callable[[list[str]], Sequence[MemoryRecord]]
    ) -> list[MemoryRecord]:
        """Packed memories of references, in order.

        Args:
            reference_ids: which.
            fetch: as of `memories`.
        """
        kept = {id_: self._tiers.find_packed(self._version, id_) for id_ in dict.fromkeys(reference_ids)}
        found = {id_: record for id_, record in kept.items() if record is not None}
        missing = [id_ for id_ in kept if id_ not in found]
        if missing:
            found.update(zip(missing, fetch(missing), strict=True))
        return [found[id_] for id_ in reference_ids]

    def decode(self, records: Sequence[MemoryRecord], *, device: torch.device | str | None = None) -> list[Memory]:
        """The memories in ``records``, in order, each owning its bytes, so that it can be kept or dropped alone.

        Args:
            records: packed memories of this bank.
            device: where keys and values are made; None: the CPU.

        Raises:
            BankCorrupt: a record cannot be decoded, or to numbers that are not finite: who makes a bank makes its
                checksums, too.
            ConfigError: a record is of another codec than this bank's.
        """
        manifest = self._manifest
        if other := next((record.codec for record in records if record.codec != manifest.codec), None):
            raise ConfigError(
                f"{self._name} keeps memories in codec {manifest.codec!r}, a record is in {other!r}: read it with its own bank"
            )
        with coding(f"`memory3 verify --bank {self._name}` lists all such rows; delete their documents and write them again"):
            memories = self._codec().decode([record.data for record in records], device=device or "cpu")
        if not _finite(memories):
            wrong = [record.reference_id for record, memory in zip(records, memories, strict=True) if not _finite([memory])]
            refuse_damaged(self._name, wrong)
        return [
            dataclasses.replace(memory, stored_bytes=record.stored_bytes, provenance=self._provenance(record))
            for record, memory in zip(records, memories, strict=True)
        ]

    def _provenance(self, record: MemoryRecord) -> Provenance:
        config = self._manifest.config
        return Provenance(
            document_id=record.document_id,
            start=record.start,
            end=record.end,
            reference_ids=(record.reference_id,),
            budget=str(config.budget),
            selector=config.selector,
            fingerprint=self._manifest.fingerprint,
        )


def _finite(memories: Sequence[Memory]) -> bool:
    """Whether all keys and values are finite: their least and greatest are, which is known in a tenth of the time, with one
    way from the device to the CPU.
    """
    tensors = [x for memory in memories for x in (memory.keys, memory.values) if x.numel()]
    ends = [end for x in tensors for end in torch.aminmax(x)]
    return not ends or bool(torch.stack(ends).isfinite().all())
