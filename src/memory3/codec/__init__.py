"""Codecs: a memory as bytes and back. Knows no bank and no model.

``raw`` keeps numbers as they are. The others were fitted to memories and need their code book: ``int8``, ``int4``, ``product``.
"""

from __future__ import annotations

from memory3.codec.base import Codec
from memory3.codec.books import CodeBook
from memory3.codec.fit import fit
from memory3.codec.product import ProductCodec, factories_of
from memory3.codec.quantiser import Quantiser
from memory3.codec.raw import RawCodec
from memory3.codec.scalar import BITS, ScalarCodec

__all__ = ["CodeBook", "Codec", "RawCodec", "coded", "fit"]


def coded(book: CodeBook) -> Codec:
    """The codec of a code book. BankCorrupt if the book lacks something it needs."""
    heads, width = book.shape.heads, book.shape.head_dim
    factories = {"keys": "", "values": ""} if book.codec in BITS else factories_of(book.codec, width)
    for side, factory in factories.items():
        of_codec: dict[str, tuple[int, ...]] = Quantiser.shapes(factory, width) if factory else {"step": ()}
        shapes = {"mean": (heads, width), "scale": (heads, width), "angles": (-1,), **of_codec}
        book.require({f"{side}.{name}": shape for name, shape in shapes.items()})
    return ScalarCodec(book) if book.codec in BITS else ProductCodec(book)
