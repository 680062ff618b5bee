"""Codecs that were fitted to memories: a coder of vectors for the keys, another for the values. Knows no bank and no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from memory3.codec.base import Codec, Record
from memory3.codec.books import CodeBook, side_name
from memory3.codec.layout import Layout
from memory3.codec.product import ProductCoder
from memory3.codec.raw import checked_pairs
from memory3.codec.scalar import BITS, ScalarCoder
from memory3.codec.tiers import joined, split, tier_sizes
from memory3.codec.transform import TransformCoder
from memory3.codec.vectors import VectorCoder
from memory3.config import codec_sides, codec_tiers
from memory3.errors import BankCorrupt
from memory3.values import Memory, MemoryShape

__all__ = ["CodedCodec", "coder"]

_CODERS: dict[str, type[VectorCoder]] = {
    **dict.fromkeys(BITS, ScalarCoder),
    "product": ProductCoder,
    "transform": TransformCoder,
}


def coder(name: str) -> type[VectorCoder]:
    """The coder of this name."""
    return _CODERS[name.partition(":")[0]]


class CodedCodec(Codec):
    """A codec with a code book. BankCorrupt if the book lacks something it needs.

    A record holds the tiers of a memory (`memory3.codec.tiers`) one after the other, each as `memory3.codec.layout` says.

    Attributes:
        book: what it was made of.
    """

    def __init__(self, book: CodeBook) -> None:
        self.name = book.codec
        self.shape = book.shape
        self.book = book
        self._sizes = tier_sizes(book.codec, book.shape.pairs)
        self._tiers = [
            _Tier(book, number, name, replace(book.shape, pairs=size))
            for number, ((_, name), size) in enumerate(zip(codec_tiers(book.codec), self._sizes, strict=True))
        ]
        self.record_size = sum(tier.layout.size for tier in self._tiers)

    def encode(self, memory: Memory) -> bytes:
        """See `Codec.encode`. With several tiers, a memory must know its `importance`."""
        checked_pairs(memory, self.shape)
        return b"".join(tier.encode(part) for tier, part in zip(self._tiers, split(memory, self._sizes), strict=True))

    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """See `Codec.decode`. Only codes go to the device."""
        if not records:
            return []
        views = [memoryview(record).cast("B") for record in records]
        for view in views:
            if view.nbytes != self.record_size:
                raise BankCorrupt(
                    f"a record has {view.nbytes} bytes, this bank's have {self.record_size}: check it with `memory3 verify`"
                )
        decoded, start = [], 0
        for tier in self._tiers:
            decoded.append(tier.decode([view[start : start + tier.layout.size] for view in views], device))
            start += tier.layout.size
        return [joined(parts, self.shape) for parts in zip(*decoded, strict=True)]


class _Tier:
    """A coder of keys, another of values, and where their codes lie."""

    def __init__(self, book: CodeBook, number: int, name: str, shape: MemoryShape) -> None:
        self.dtype = shape.torch_dtype
        self.coders: list[VectorCoder] = []
        for side, kind in codec_sides(name).items():
            prefix = side_name(side, number)
            wanted = coder(kind).shapes(kind, shape.heads, shape.head_dim)
            book.require({f"{prefix}.{key}": size for key, size in wanted.items()})
            self.coders.append(coder(kind)(kind, shape.head_dim, book.side(prefix)))
        self.layout = Layout(shape, book.positions, *(each.width for each in self.coders))

    def encode(self, memory: Memory) -> bytes:
        places = self.layout.places(memory)
        codes = [each.encode(x, *places) for each, x in zip(self.coders, (memory.keys, memory.values), strict=True)]
        return self.layout.pack(memory, *codes)

    def decode(self, records: Sequence[Record], device: torch.device | str) -> list[Memory]:
        coded = self.layout.unpack(records)
        places, sizes = coded.places(device), coded.sizes
        codes = (torch.from_numpy(each).to(device) for each in (coded.keys, coded.values))
        vectors = (each.decode(x, *places, sizes, self.dtype) for each, x in zip(self.coders, codes, strict=True))
        return coded.memories(*vectors)
