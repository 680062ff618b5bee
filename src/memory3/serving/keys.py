"""`Keys`: who may ask, and which banks each sees. A file of one key a line, with names of banks behind it or none:

# everything
sk-3f1b...
# two banks
sk-90aa...  docs manuals
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from memory3.errors import ConfigError

__all__ = ["Keys", "Tenant"]

#: Bytes of a file of keys at most.
MOST_BYTES = 1 << 20
#: Characters of a key.
SHORTEST, LONGEST = 16, 512


@dataclass(frozen=True)
class Tenant:
    """Who asks.

    Attributes:
        name: the same for one key at all times, and tells nothing of it; "" where no keys are asked for.
        banks: names of the banks that it sees; None: all.
    """

    name: str = ""
    banks: frozenset[str] | None = None

    def sees(self, bank: str, owner: str | None = None) -> bool:
        """Whether it may know that a bank exists.

        Args:
            bank: its name.
            owner: name of the tenant that made it; None: nobody did, it was there from the start.
        """
        if owner is not None:
            return owner == self.name
        return self.banks is None or bank in self.banks


@dataclass(frozen=True)
class Keys:
    """All keys of a server. Without any, everybody is let in and sees everything.

    Attributes:
        tenants: by the SHA-256 of their key.
    """

    tenants: dict[bytes, Tenant] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Keys:
        """Keys of a file.

        Raises:
            ConfigError: it cannot be read, is too large, or a line of it is no key; keys themselves are never told.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"the file of keys {path} cannot be read: {error.strerror}") from error
        if len(data) > MOST_BYTES:
            raise ConfigError(f"the file of keys {path} has more than {MOST_BYTES:,} bytes")
        try:
            lines = data.decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ConfigError(f"the file of keys {path} is not UTF-8 text") from None
        return cls.of(lines, str(path))

    @classmethod
    def of(cls, lines: Iterable[str], where: str = "keys") -> Keys:
        """Keys of lines.

        Args:
            lines: as the file has them.
            where: they come from, for messages.

        Raises:
            ConfigError: a line is no key, a key stands there twice, or there is none.
        """
        tenants: dict[bytes, Tenant] = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].replace(",", " ").split()
            if not words:
                continue
            key, banks = words[0], words[1:]
            if not SHORTEST <= len(key) <= LONGEST or not re.fullmatch(r"[\x21-\x7e]+", key):
                raise ConfigError(
                    f"{where}, line {number}: a key has {SHORTEST} to {LONGEST} printable ASCII characters and no space"
                )
            digest = hashlib.sha256(key.encode()).digest()
            if digest in tenants:
                raise ConfigError(f"{where}, line {number}: this key stands there twice")
            tenants[digest] = Tenant(f"key-{digest.hex()[:12]}", frozenset(banks) if banks else None)
        if not tenants:
            raise ConfigError(f"{where} has no key: write one a line, or leave it out to let everybody in")
        return cls(tenants)

    @property
    def names(self) -> frozenset[str]:
        """Names of all tenants."""
        return frozenset(tenant.name for tenant in self.tenants.values()) or frozenset((Tenant().name,))

    def check_banks(self, names: Iterable[str]) -> None:
        """Raise ConfigError where a key is bound to a bank that is not among ``names``: it may be misspelt."""
        known = set(names)
        for tenant in self.tenants.values():
            missing = sorted((tenant.banks or frozenset()) - known)
            if missing:
                raise ConfigError(
                    f"a key is bound to the bank {missing[0]!r}, which is not served: "
                    f"there {'are' if len(known) != 1 else 'is'} {', '.join(sorted(known)) or 'none'}"
                )

    def tenant(self, given: str | None) -> Tenant | None:
        """Who has this key; None: nobody. Takes as long whoever it is, and for a key that is nearly right.

        Args:
            given: the key; None: none was given.
        """
        if not self.tenants:
            return Tenant()
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, tenant in self.tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found
