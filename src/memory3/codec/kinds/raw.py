"""``raw``: keys and values as they are (`memory3.codec.raw`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from memory3.codec.base import NUMBER_BYTES, CodecCost, MemoryCodec, RecordSizes
from memory3.codec.registry import register
from memory3.errors import ConfigError

__all__ = ["Raw"]


@register
@dataclass(frozen=True)
class Raw(MemoryCodec):
    """Keys and values as they are; nothing is fitted."""

    name: ClassVar[str] = "raw"
    form: ClassVar[str] = "raw"
    help: ClassVar[str] = "numbers as they are"
    is_fitted: ClassVar[bool] = False
    text: str = "raw"

    @classmethod
    def parse(cls, options: str) -> Raw:
        """The codec. It has no options.

        Raises:
            ConfigError: ``options`` are not empty.
        """
        if options:
            raise ConfigError(f"codec {f'raw:{options}'!r} is unknown: raw has no options")
        return cls()

    def cost(self, sizes: RecordSizes) -> CodecCost:
        """Bytes of a record: counts and places of two bytes each, the numbers, and a byte for each bias. Writing and reading
        take no arithmetic.
        """
        numbers, biases = 2 * sizes.pairs * sizes.head_dim, sizes.pairs * sizes.biases
        return CodecCost(2 * (sizes.heads + sizes.pairs) + numbers * NUMBER_BYTES[sizes.dtype] + biases, 0, 0)
