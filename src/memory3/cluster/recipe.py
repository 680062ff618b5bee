"""`Recipe`: what a worker has to load to encode as the process that plans does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from memory3.bank import MemoryWriter, TextEmbedder
from memory3.bank.embedder import Embedder
from memory3.config import MemoryConfig
from memory3.errors import InputError

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A model by name, and how it is run. Whether it is the bank's is checked with every shard, by fingerprint.

    Attributes:
        model: catalogue name, hub id or folder, with its adapter behind a ``+``. Every machine must have it under this name.
        config: settings, as JSON.
        device: of the model; None: the default.
        batch_size: references of a forward pass.
    """

    model: str
    config: str
    device: str | None = None
    batch_size: int = 16

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`. InputError: it is none."""
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"this is no recipe of a worker ({error!s:.200})") from None

    def load(self) -> tuple[MemoryWriter, Callable[[str], TextEmbedder]]:
        """The model, and a loader of embedders by name, which loads each once."""
        from memory3.llm import Memory3

        m3 = Memory3.from_pretrained(
            self.model, config=MemoryConfig.from_json(self.config), device=self.device, batch_size=self.batch_size
        )
        return m3, lru_cache(maxsize=2)(Embedder.load)
