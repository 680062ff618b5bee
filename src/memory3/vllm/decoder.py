"""`Decoder`: packed records become memories, in the scheduler to see whether they do, in a worker to be read.

The scheduler decodes a record before it plans with it. So what cannot be decoded, or was computed for another model, fails
the request that asked for it and no other: an error in a worker would end vLLM's engine. A worker in the scheduler's process
finds the memory decoded; one elsewhere decodes the same bytes with the same codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from xxhash import xxh3_128_hexdigest

from memory3.bank.codebooks import received_codec
from memory3.bank.format.manifest import BankManifest
from memory3.bank.reader import MemoryReader
from memory3.bank.record import MemoryRecord
from memory3.bank.tiers import TierBytes, Tiers
from memory3.codec import Codec, CodedCodec, RawCodec
from memory3.errors import ConfigError
from memory3.types import Memory
from memory3.vllm.card import Card
from memory3.vllm.step import Form, Name, Packed

__all__ = ["Decoder"]

#: Bytes of memories that were decoded lately.
_KEPT = 64 << 20


@dataclass(frozen=True)
class _Known:
    manifest: BankManifest
    codec: Codec


class Decoder:
    """Decodes what it has learned the form of. Safe to share between threads."""

    def __init__(self, card: Card, capacity: int = _KEPT) -> None:
        """
        Args:
            card: of the model that reads.
            capacity: bytes of memories decoded lately that are kept, in RAM and on a device each.
        """
        self._card = card
        self._tiers = Tiers(TierBytes(capacity, capacity, 0))
        self._forms: dict[str, _Known] = {}
        self._lock = Lock()

    def form_of(self, source: Any) -> Form:
        """How the records of a bank's version are packed; they can be decoded from now on.

        Args:
            source: a version of a bank, as its ``pin`` gives it.

        Raises:
            FingerprintMismatch: its memories are of another model, or of other settings.
            BankCorrupt: its codebook is lost or damaged.
        """
        manifest: BankManifest = source.manifest
        manifest.require(self._card)
        text = manifest.to_json()
        key = xxh3_128_hexdigest(text.encode())
        codec = source.codec
        with self._lock:
            self._forms.setdefault(key, _Known(manifest, codec))
        return Form(key, text, codec.codebook.data if isinstance(codec, CodedCodec) else b"")

    def learn(self, form: Form) -> None:
        """Make ready to decode records of a form.

        Raises:
            FingerprintMismatch, BankCorrupt: as `form_of`.
        """
        with self._lock:
            if form.key in self._forms:
                return
        manifest = BankManifest.from_json(form.manifest)
        manifest.require(self._card)
        if manifest.codec == "raw":
            codec: Codec = RawCodec(manifest.shape)
        else:
            codec = received_codec(form.codebook, manifest, "a bank", self._card.token_vectors)
        with self._lock:
            self._forms.setdefault(form.key, _Known(manifest, codec))

    def decode(self, packed: Sequence[Packed], device: torch.device | str = "cpu") -> dict[Name, Memory]:
        """Memories by name.

        Args:
            packed: what is wanted.
            device: where.

        Raises:
            BankCorrupt: a record cannot be decoded, or to numbers that are not finite.
            ConfigError: a record is not of the form that it is said to be of, or that form is not known here.
        """
        alike: dict[tuple[str, str, str], dict[str, MemoryRecord]] = {}
        for one in packed:
            bank, version, reference = one.name
            alike.setdefault((one.form, bank, version), {})[reference] = one.record
        found: dict[Name, Memory] = {}
        for (key, bank, version), records in alike.items():
            with self._lock:
                known = self._forms.get(key)
            if known is None:
                raise ConfigError(f"bank {bank!r}: how its memories are packed was not told")
            found |= self._decoded(known, key, (bank, version), records, device)
        return found

    def _decoded(
        self, known: _Known, key: str, of: tuple[str, str], records: dict[str, MemoryRecord], device: torch.device | str
    ) -> dict[Name, Memory]:
        codec = known.codec
        reader = MemoryReader(known.manifest, lambda: codec, self._tiers, (key, *of), of[0])
        memories = reader.memories(list(records), lambda ids: [records[id_] for id_ in ids], device=device)
        return {(*of, id_): memory for id_, memory in zip(records, memories, strict=True)}
