"""`BankManifest`: what a bank says about itself.

Kept as JSON in the Lance table's schema metadata, so it cannot part from the rows.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from memory3.bank.protocol import MemoryWriter
from memory3.codec import Codebook, Codec
from memory3.codec.raw import record_size
from memory3.codec.registry import find
from memory3.config import MemoryConfig
from memory3.errors import BankCorrupt, BankVersion, ConfigError, FingerprintMismatch
from memory3.files import parse_json
from memory3.types import MemoryShape, whole

__all__ = ["FORMAT_VERSION", "METADATA_KEY", "RAW_VERSION", "TABLE_ID_KEY", "BankManifest"]

FORMAT_VERSION = 2
#: Of banks whose codec is raw: they are as they were before there were others, so that older releases read them.
RAW_VERSION = 1
#: Of raw banks whose pairs have biases, which older releases would not read.
BIASED_VERSION = 3
METADATA_KEY = b"memory3"
#: Beside the manifest in the schema metadata: 32 hex digits that no two tables share. Tables of older releases have none.
TABLE_ID_KEY = b"memory3.table_id"
#: Of a manifest, and of a record: Arrow counts the latter's bytes in 32 bits.
_MOST_BYTES = 1 << 20
_MOST_RECORD_BYTES = (1 << 31) - 1
_MOST_DIMENSION = 1 << 16


@dataclass(frozen=True)
class BankManifest:
    """Which model and settings wrote a bank, and what its rows look like.

    Attributes:
        format_version: of the columns and the record layout; see docs/bank-format.md. 1 with the codec raw, 2 with others, 3
            raw with biases.
        model: id or path of the model.
        config: settings the memories were written with.
        shape: what all memories have in common.
        fingerprint: of the model and the settings.
        embedder: name of the sentence embedder.
        dimension: numbers per embedding.
        codec: how memories are kept, in the spelling of files (`memory3.codec.base.MemoryCodec.text`).
        code_book: fingerprint of the codebook, which lies in the bank's folder; "" for raw.
        record_bytes: of every memory.
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
    code_book: str = ""
    record_bytes: int = 0
    references: int = 0
    documents: int = 0

    @classmethod
    def of(
        cls, m3: MemoryWriter, embedder: str, dimension: int, codec: Codec | None = None, book: Codebook | None = None
    ) -> BankManifest:
        """The manifest of a new bank.

        Args:
            m3: whose memories the bank will hold.
            embedder: its name.
            dimension: numbers of an embedding.
            codec: None: raw, whatever the settings say.
            book: the codec's codebook; None where it has none.
        """
        name = codec.name if codec is not None else "raw"
        return cls(
            format_version=FORMAT_VERSION if name != "raw" else BIASED_VERSION if m3.shape.biases else RAW_VERSION,
            model=m3.name,
            config=m3.config.replace(codec=name),
            shape=m3.shape,
            fingerprint=m3.fingerprint,
            embedder=embedder,
            dimension=dimension,
            codec=name,
            code_book=book.fingerprint if book is not None else "",
            record_bytes=codec.record_size if codec is not None else record_size(m3.shape),
        )

    def to_json(self) -> str:
        """One line of JSON; counts are left out, they belong to the rows."""
        data: dict[str, Any] = {
            "format_version": self.format_version,
            "model": self.model,
            "config": {name: value for name, value in self.config.to_dict().items() if name != "codec"},
            "shape": self.shape.to_dict(),
            "fingerprint": self.fingerprint,
            "embedder": self.embedder,
            "dimension": self.dimension,
            "codec": self.codec,
        }
        if self.codec != "raw":
            data |= {"code_book": self.code_book, "record_bytes": self.record_bytes}
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> BankManifest:
        """Inverse of `to_json`. The version is looked at first: the rest of another version may read differently."""
        if len(text) > _MOST_BYTES:
            raise _unreadable(f"it has {len(text):,} bytes")
        try:
            data = parse_json(text)
            if not isinstance(data, dict):
                raise ValueError("it is no JSON object")
            version = whole("format_version", data["format_version"], 0, 1 << 31)
        except (ValueError, KeyError) as error:
            raise _unreadable(error) from error
        if version not in (RAW_VERSION, FORMAT_VERSION, BIASED_VERSION):
            raise BankVersion(
                f"this bank has format version {version}, this memory3 reads versions {RAW_VERSION} to {BIASED_VERSION}: "
                f"{'upgrade memory3' if version > BIASED_VERSION else 'write the documents anew with `memory3 write`'}"
            )
        try:
            return cls(**_checked(data))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise _unreadable(error) from error

    def require(self, m3: MemoryWriter) -> None:
        """Raise FingerprintMismatch unless ``m3`` reads and writes these very memories; say what differs."""
        if self.fingerprint != m3.fingerprint or self.shape != m3.shape:
            raise FingerprintMismatch(self.fingerprint, m3.fingerprint, self._difference(m3))

    def require_embedder(self, name: str, dimension: int | None) -> None:
        """Check that an embedder is this bank's.

        Args:
            name: of the embedder.
            dimension: numbers of its vectors; None: not known yet.

        Raises:
            ConfigError: it is another.
        """
        if name != self.embedder or dimension not in (None, self.dimension):
            given = name if dimension is None else f"{name} ({dimension} numbers)"
            raise ConfigError(
                f"this bank's embeddings are by {self.embedder} ({self.dimension} numbers), not {given}: leave the embedder "
                "out, or rebuild the bank with the other one"
            )

    def _difference(self, m3: MemoryWriter) -> str:
        mine, theirs = ({**config.LATER, **config.to_dict()} for config in (self.config, m3.config))
        pairs: list[tuple[str, Any, Any]] = [("model", self.model, m3.name)]
        pairs += [(name, mine[name], theirs[name]) for name in MemoryConfig.WRITING]
        pairs += [("shape", self.shape, m3.shape)]
        differing = [f"{name} is {old!r} in the bank and {new!r} now" for name, old, new in pairs if old != new]
        return "; ".join(differing) or "same names and settings, so the model's weights or tokenizer have changed"


def _checked(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a manifest's JSON, which may come from elsewhere: of the right kinds and sizes, and at one with each
    other.
    """
    shape = MemoryShape.from_dict(data["shape"])
    odd = [name for name in ("model", "fingerprint", "embedder", "codec") if not isinstance(data[name], str)]
    if odd or not isinstance(data.get("code_book", ""), str):
        raise ValueError(f"{(odd or ['code_book'])[0]} is no text")
    if not isinstance(data["config"], dict):
        raise ValueError("config is no JSON object")
    find(data["codec"])  # one that is known here
    raw = data["codec"] == "raw"
    if not re.fullmatch("" if raw else "[0-9a-f]{32}", data.get("code_book", "")):
        raise ValueError(f"code_book {data.get('code_book', '')[:40]!r} is no fingerprint")
    if {"references", "documents"} & set(data):
        raise ValueError("it gives counts")
    size = record_size(shape) if raw else whole("record_bytes", data["record_bytes"], 1, _MOST_RECORD_BYTES)
    if data.get("record_bytes", size) != size:
        raise ValueError(f"record_bytes is {data['record_bytes']!r:.40}, raw memories of this shape have {size:,}")
    return {
        **data,
        "config": MemoryConfig.from_dict({**data["config"], "codec": data["codec"]}),
        "shape": shape,
        "dimension": whole("dimension", data["dimension"], 1, _MOST_DIMENSION),
        "record_bytes": whole("record_bytes", size, 1, _MOST_RECORD_BYTES),
    }


def _unreadable(why: object) -> BankCorrupt:
    return BankCorrupt(f"the bank's manifest cannot be read ({str(why)[:300]!r}): restore it from a copy or write it anew")
