"""The composite quantiser of the paper (section 3.3): vectors of 2 d bytes in 14. Encoded by FAISS, decoded by gathers. Knows no bank and no model.

Keys and values have a quantiser each, over all heads: what heads differ by, their place and widths, is taken off before (`memory3.codec.centring`). The paper's head
dimension is 80: 160 bytes in 14, 11.4 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memory3.codec.base import Codec, Record
from memory3.codec.books import CodeBook
from memory3.codec.centring import Centring
from memory3.codec.layout import Layout
from memory3.codec.quantiser import Quantiser, default_factory
from memory3.codec.rows import Rows
from memory3.values import Memory

__all__ = ["ProductCodec", "factories_of"]


def factories_of(codec: str, head_dim: int) -> dict[str, str]:
    """FAISS strings of ``keys`` and ``values`` in ``"product"``, ``"product:FACTORY"`` or ``"product:KEYS+VALUES"``.

    One that does not fit the head dimension raises ConfigError.
    """
    keys, _, values = (codec.partition(":")[2] or default_factory(head_dim)).partition("+")
    factories = {"keys": keys, "values": values or keys}
    for factory in factories.values():
        Quantiser.shapes(factory, head_dim)
    return factories


class ProductCodec(Codec):
    """Codes of FAISS, one after the other; by default 14 bytes a vector."""

    def __init__(self, book: CodeBook) -> None:
        self.name = book.codec
        self.shape = book.shape
        factories = factories_of(book.codec, book.shape.head_dim)
        self._centrings = [Centring.of(book.side(name)) for name in factories]
        self._quantisers = [Quantiser.of(text, book.shape.head_dim, book.side(name)) for name, text in factories.items()]
        self._layout = Layout(self.shape, book.positions, *(quantiser.code_size for quantiser in self._quantisers))
        self.record_size = self._layout.size
        self._rows: dict[torch.device, list[Rows]] = {}

    def encode(self, memory: Memory) -> bytes:
        """See `Codec.encode`."""
        heads, positions = self._layout.places(memory)
        parts = zip((memory.keys, memory.values), self._centrings, self._quantisers, strict=True)
        codes = [quantiser.encode(centring.centred(x, heads, positions).numpy()) for x, centring, quantiser in parts]
        return self._layout.pack(memory, *codes)

    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """See `Codec.decode`. Only codes go to the device."""
        if not records:
            return []
        coded = self._layout.unpack(records)
        heads, positions = coded.places(device)
        codes = (torch.from_numpy(each).to(device) for each in (coded.keys, coded.values))
        parts = zip(codes, self._tables(torch.device(device)), strict=True)
        sizes, dtype = coded.sizes, self.shape.torch_dtype
        return coded.memories(*(rows.decode(each, heads, positions, sizes, dtype) for each, rows in parts))

    def _tables(self, device: torch.device) -> list[Rows]:
        """The tables of keys and of values, on ``device`` from their first use on."""
        if device not in self._rows:
            parts = zip(self._quantisers, self._centrings, strict=True)
            self._rows[device] = [Rows(q.rows(), q.starts, centring, device) for q, centring in parts]
        return self._rows[device]
