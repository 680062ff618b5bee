"""`BankManifest`: what a bank says about itself. Kept as JSON in the Lance table's schema metadata, so it cannot part from the rows."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from memory3.bank.writer import MemoryWriter
from memory3.config import MemoryConfig
from memory3.errors import BankCorrupt, BankVersion, ConfigError, FingerprintMismatch
from memory3.values import MemoryShape

__all__ = ["FORMAT_VERSION", "METADATA_KEY", "BankManifest"]

FORMAT_VERSION = 1
METADATA_KEY = b"memory3"


@dataclass(frozen=True)
class BankManifest:
    """Which model and settings wrote a bank, and what its rows look like.

    Attributes:
        format_version: of the columns and the record layout; see docs/bank-format.md.
        model: id or path of the model.
        config: settings the memories were written with.
        shape: what all memories have in common.
        fingerprint: of the model and the settings.
        embedder: name of the sentence embedder.
        dimension: numbers per embedding.
        codec: how codes are stored; ``"raw"`` (`memory3.codec.raw`).
        references, documents: counts when the manifest was read (`Bank.describe`); not stored.
    """

    format_version: int
    model: str
    config: MemoryConfig
    shape: MemoryShape
    fingerprint: str
    embedder: str
    dimension: int
    codec: str = "raw"
    references: int = 0
    documents: int = 0

    @classmethod
    def of(cls, m3: MemoryWriter, embedder: str, dimension: int) -> BankManifest:
        """The manifest of a new bank."""
        return cls(FORMAT_VERSION, m3.name, m3.config, m3.shape, m3.fingerprint, embedder, dimension)

    def to_json(self) -> str:
        """One line of JSON; counts are left out, they belong to the rows."""
        data: dict[str, Any] = {
            "format_version": self.format_version,
            "model": self.model,
            "config": self.config.to_dict(),
            "shape": {**dataclasses.asdict(self.shape), "layers": list(self.shape.layers)},
            "fingerprint": self.fingerprint,
            "embedder": self.embedder,
            "dimension": self.dimension,
            "codec": self.codec,
        }
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> BankManifest:
        """Inverse of `to_json`. The version is looked at first: the rest of another version may read differently."""
        try:
            data = json.loads(text)
            version = int(data["format_version"])
        except (ValueError, KeyError, TypeError) as error:
            raise BankCorrupt(
                f"the bank's manifest cannot be read ({error!r}): restore it from a copy or write it anew"
            ) from error
        if version != FORMAT_VERSION:
            raise BankVersion(
                f"this bank has format version {version}, this memory3 reads version {FORMAT_VERSION}: "
                f"{'upgrade memory3' if version > FORMAT_VERSION else 'write the documents anew with `memory3 write`'}"
            )
        try:
            shape = MemoryShape(**{**data["shape"], "layers": tuple(data["shape"]["layers"])})
            manifest = cls(**{**data, "config": MemoryConfig.from_dict(data["config"]), "shape": shape})
        except (KeyError, TypeError, ConfigError) as error:
            raise BankCorrupt(
                f"the bank's manifest cannot be read ({error!r}): restore it from a copy or write it anew"
            ) from error
        if manifest.codec != "raw":
            raise BankVersion(f"this bank's codec {manifest.codec!r} is unknown to this memory3: upgrade memory3")
        return manifest

    def require(self, m3: MemoryWriter) -> None:
        """Raise FingerprintMismatch unless ``m3`` reads and writes these very memories; say what differs."""
        if self.fingerprint != m3.fingerprint or self.shape != m3.shape:
            raise FingerprintMismatch(self.fingerprint, m3.fingerprint, self._difference(m3))

    def require_embedder(self, name: str, dimension: int | None) -> None:
        """Raise ConfigError unless the embedder is this bank's; ``dimension`` None: not known yet."""
        if name != self.embedder or dimension not in (None, self.dimension):
            given = name if dimension is None else f"{name} ({dimension} numbers)"
            raise ConfigError(
                f"this bank's embeddings are by {self.embedder} ({self.dimension} numbers), not {given}: leave the embedder "
                "out, or rebuild the bank with the other one"
            )

    def _difference(self, m3: MemoryWriter) -> str:
        mine, theirs = self.config.to_dict(), m3.config.to_dict()
        pairs: list[tuple[str, Any, Any]] = [("model", self.model, m3.name)]
        pairs += [(name, mine[name], theirs[name]) for name in MemoryConfig.WRITING]
        pairs += [("shape", self.shape, m3.shape)]
        differing = [f"{name} is {old!r} in the bank and {new!r} now" for name, old, new in pairs if old != new]
        return "; ".join(differing) or "same names and settings, so the model's weights or tokenizer have changed"
