"""Codecs that were fitted to memories: a coder of vectors for the keys, another for the values. Knows no bank and no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memory3.codec.base import Codec, Record
from memory3.codec.books import CodeBook
from memory3.codec.layout import Layout
from memory3.codec.product import ProductCoder
from memory3.codec.scalar import BITS, ScalarCoder
from memory3.codec.transform import TransformCoder
from memory3.codec.vectors import VectorCoder
from memory3.config import codec_sides
from memory3.values import Memory

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

    Attributes:
        book: what it was made of.
    """

    def __init__(self, book: CodeBook) -> None:
        self.name = book.codec
        self.shape = book.shape
        self.book = book
        heads, width = book.shape.heads, book.shape.head_dim
        self._coders: list[VectorCoder] = []
        for side, name in codec_sides(book.codec).items():
            book.require({f"{side}.{key}": shape for key, shape in coder(name).shapes(name, heads, width).items()})
            self._coders.append(coder(name)(name, width, book.side(side)))
        self._layout = Layout(self.shape, book.positions, *(each.width for each in self._coders))
        self.record_size = self._layout.size

    def encode(self, memory: Memory) -> bytes:
        """See `Codec.encode`."""
        places = self._layout.places(memory)
        codes = [each.encode(x, *places) for each, x in zip(self._coders, (memory.keys, memory.values), strict=True)]
        return self._layout.pack(memory, *codes)

    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """See `Codec.decode`. Only codes go to the device."""
        if not records:
            return []
        coded = self._layout.unpack(records)
        places, sizes, dtype = coded.places(device), coded.sizes, self.shape.torch_dtype
        codes = (torch.from_numpy(each).to(device) for each in (coded.keys, coded.values))
        return coded.memories(*(each.decode(x, *places, sizes, dtype) for each, x in zip(self._coders, codes, strict=True)))
