"""`About`: what a server says of its bank, and which version of it that is true of."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory3.bank.format.manifest import BankManifest
from memory3.codec.raw import record_size
from memory3.types import whole

__all__ = ["PROTOCOL", "About"]

#: Of requests and answers; another number means other ones.
PROTOCOL = 1
_MOST = 1 << 53


@dataclass(frozen=True)
class About:
    """What is said of a bank.

    Attributes:
        manifest: of the bank, with its counts.
        version: see `memory3.bank.format.versions.version_text`.
    """

    manifest: BankManifest
    version: str

    @property
    def tag(self) -> str:
        """The entity tag of all that a server says of this version: fingerprint and version."""
        return f'"{self.manifest.fingerprint}.{self.version}"'

    def fields(self) -> dict[str, Any]:
        """What is sent: protocol, version, counts and the manifest, in JSON's kinds."""
        manifest = self.manifest
        return {
            "protocol": PROTOCOL,
            "version": self.version,
            "references": manifest.references,
            "documents": manifest.documents,
            "manifest": json.loads(manifest.to_json()),
        }

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> About:
        """What a server has said.

        Args:
            fields: from anywhere.

        Raises:
            ValueError: it cannot be that of a bank.
            BankCorrupt, BankVersion: its manifest cannot be read.
        """
        if fields.get("protocol") != PROTOCOL:
            raise ValueError(f"it speaks another protocol ({fields.get('protocol')!r:.40}) than this memory3 ({PROTOCOL})")
        version = fields.get("version")
        if not isinstance(version, str) or not re.fullmatch("[0-9a-f]{32}", version):
            raise ValueError("it names no version")
        manifest = BankManifest.from_json(json.dumps(fields.get("manifest")))
        if manifest.record_bytes > record_size(manifest.shape):
            raise ValueError(f"its memories take {manifest.record_bytes:,} bytes, more than uncompressed ones")
        references, documents = (whole(name, fields.get(name), 0, _MOST) for name in ("references", "documents"))
        return cls(dataclasses.replace(manifest, references=references, documents=documents), version)
