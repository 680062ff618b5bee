"""Codecs that were fitted to memories: a coder of vectors for the keys, another for the values. Knows no bank and no model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch

from memory3.codec.base import Codec, Record
from memory3.codec.codebook import CodeBook
from memory3.codec.layout import Layout
from memory3.codec.prediction import Foretelling, foretelling_shapes
from memory3.codec.product import ProductCoder
from memory3.codec.scalar import BITS, ScalarCoder
from memory3.codec.transform import TransformCoder
from memory3.codec.vectors import VectorCoder
from memory3.config import codec_sides, foretells
from memory3.errors import BankCorrupt, ConfigError
from memory3.types import Memory

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
        """A codec that foretells can only `check` until it has token vectors (`with_vectors`)."""
        try:
            self._build(book)
            self._try()
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise _misfit(book, error) from error

    def _build(self, book: CodeBook) -> None:
        self.name = book.codec
        self.shape = book.shape
        self.book = book
        heads, width = book.shape.heads, book.shape.head_dim
        self._coders: list[VectorCoder] = []
        for side, name in codec_sides(book.codec).items():
            book.require({f"{side}.{key}": shape for key, shape in coder(name).shapes(name, heads, width).items()})
            self._coders.append(coder(name)(name, width, book.side(side)))
        self._foretelling: Foretelling | None = None
        token_bytes = 0
        if foretells(book.codec):
            wanted = foretelling_shapes(heads, width).items()
            book.require({f"foretelling.{key}": shape for key, shape in wanted}, torch.float16)
            book.require({"foretelling.vocabulary": (1,)}, torch.int32)
            parts = book.side("foretelling")
            token_bytes = 2 if int(parts["vocabulary"]) <= 2**16 else 4
            # Widened once: every snapshot of a bank makes a foretelling of them.
            self._maps = parts["project"].float(), parts["out"].float(), book.tensors["keys.angles"]
            rank = parts["project"].shape[2]
            if parts["out"].shape[1] != rank or not 1 <= int(parts["vocabulary"]) < 2**31:
                raise ValueError(
                    f"project {tuple(parts['project'].shape)} and out {tuple(parts['out'].shape)} do not go together"
                )
        a, b = (each.width for each in self._coders)
        self._layout = Layout(self.shape, book.positions, a, b, token_bytes)
        self.record_size = self._layout.size

    def _try(self) -> None:
        """Decode what a record may hold at the extremes, so that a book which cannot be decoded with is refused here and not in the middle of an answer."""
        heads, positions = self.shape.heads, self.book.positions
        places = torch.arange(heads).repeat(2), torch.tensor([0, positions - 1]).repeat_interleave(heads)
        for side, each in zip(("keys", "values"), self._coders, strict=True):
            if 2 * len(self.book.tensors[f"{side}.angles"]) > self.shape.head_dim:
                raise ValueError(f"{side}.angles turns more numbers than a vector has")
            codes = (
                torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(heads)[:, None].expand(-1, each.width).contiguous()
            )
            (vectors,) = each.decode(codes, *places, [2 * heads], torch.float32)
            if tuple(vectors.shape) != (2 * heads, self.shape.head_dim) or not bool(vectors.isfinite().all()):
                raise ValueError(f"{side} decode to numbers that are not finite, or not to vectors")

    def with_vectors(self, vectors: torch.Tensor | None) -> CodedCodec:
        """This codec with the model's token vectors, if it needs them; all else is shared."""
        if vectors is None or not foretells(self.name) or self._foretelling is not None:
            return self
        wanted = self._maps[0].shape[1]
        if vectors.shape[1] != wanted:
            raise _misfit(self.book, f"it foretells from vectors of {wanted} numbers, the model's have {vectors.shape[1]}")
        other = copy(self)
        other._foretelling = Foretelling(*self._maps, vectors)
        return other

    def check(self, record: Record) -> None:
        """See `Codec.check`. Any code stands for a vector, so there is no more to see."""
        self._layout.unpack([record])

    def encode(self, memory: Memory) -> bytes:
        """See `Codec.encode`."""
        self._need_vectors()
        places = self._layout.places(memory)
        vectors = (memory.keys, memory.values) if self._foretelling is None else self._foretelling.rest(memory, *places)
        codes = [each.encode(x, *places) for each, x in zip(self._coders, vectors, strict=True)]
        return self._layout.pack(memory, *codes)

    def _need_vectors(self) -> None:
        if foretells(self.name) and self._foretelling is None:
            raise ConfigError(
                f"codec {self.name!r} foretells from the model's token vectors: open the bank with its model, Bank.open(path, m3)"
            )

    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """See `Codec.decode`. Only codes go to the device."""
        self._need_vectors()
        if not records:
            return []
        coded = self._layout.unpack(records)
        places, sizes, dtype = coded.places(device), coded.sizes, self.shape.torch_dtype
        codes = (torch.from_numpy(each).to(device) for each in (coded.keys, coded.values))
        if self._foretelling is None:
            return coded.memories(
                *(each.decode(x, *places, sizes, dtype) for each, x in zip(self._coders, codes, strict=True))
            )
        tokens = torch.from_numpy(coded.tokens.astype("int64")).to(device)
        if int(tokens.max()) >= self._foretelling.vocabulary:
            raise BankCorrupt(
                f"a record has a token beyond the {self._foretelling.vocabulary:,} of this bank's: check it with `memory3 verify`"
            )
        rows = torch.repeat_interleave(torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device))
        foretold = (x.split(sizes) for x in self._foretelling.foretold(tokens, rows, *places))
        rests = (each.decode(x, *places, sizes, torch.float32) for each, x in zip(self._coders, codes, strict=True))
        return coded.memories(
            *(
                [a.add_(b).to(dtype) for a, b in zip(rest, known, strict=True)]
                for rest, known in zip(rests, foretold, strict=True)
            )
        )


def _misfit(book: CodeBook, why: object) -> BankCorrupt:
    return BankCorrupt(
        f"the code book {book.fingerprint} of codec {book.codec!r:.60} cannot be decoded with ({str(why).splitlines()[0] if str(why) else 'no memory'}): "
        "make it anew with `memory3 calibrate` or `memory3 rebuild`"
    )
