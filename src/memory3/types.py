"""The values that flow through memory3, from text to answer. Plain data: no model code, no disk.

    Document -> Reference -> Memory -> MemoryBatch -> Citation

Symbols: L memory layers, H KV heads, d head dimension, P pairs kept per reference, N prompt chunks.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = [
    "Citation",
    "Document",
    "LayerMemory",
    "Memory",
    "MemoryBatch",
    "MemoryShape",
    "Provenance",
    "Reference",
    "plain",
    "whole",
]

#: Sizes that no model's memories exceed, so that a file cannot ask for all the memory there is.
_MOST = {"layers": 4096, "kv_heads": 4096, "head_dim": 65536, "pairs": 1 << 28, "numbers": 1 << 24}


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number of a file that may say anything.

    Args:
        name: of the value, for the message.
        value: as it was read.
        least, most: bounds, both allowed.

    Raises:
        ValueError: it is none, or lies beyond the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        shown = "it" if isinstance(value, int) and value.bit_length() > 256 else f"{value!r:.40}"
        raise ValueError(f"{name}: {shown} is no whole number from {least:,} to {most:,}")
    return value


def plain(value: Any) -> Any:
    """Text and numbers as Python's own: of a subclass, such as numpy's float64, the text or number it is."""
    if isinstance(value, bool):
        return value
    return next((kind.__new__(kind, base(value)) for kind, base in _PLAIN if isinstance(value, kind)), value)


_PLAIN: tuple[tuple[type, Any], ...] = ((str, str.__str__), (int, int.__int__), (float, float.__float__))


@dataclass(frozen=True)
class Document:
    """A text to remember.

    Attributes:
        id: stable name; writing another text under the same id replaces the first.
        text: the text, any length.
        source: where it came from (path, URL, ``"stdin"``), shown in citations.
        metadata: flat JSON values (text, number, bool) to filter on at recall.
        origin: absolute path of the file it was read from, which tells one ``docs/a.md`` from another; "" where there is none.
    """

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    origin: str = field(default="", compare=False)

    @property
    def content_hash(self) -> str:
        """Hex digest over everything a memory or its citation depends on: text, source and metadata."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.text, self.source, repr(sorted((plain(key), plain(value)) for key, value in self.metadata.items()))):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Reference:
    """At most ``reference_length`` tokens of a document: the unit of memory.

    Attributes:
        id: ``"<document id>#<ordinal>"``.
        document_id: the document it was cut from.
        ordinal: place among the document's references, from 0.
        start, end: character offsets into the document's text; ``text == document.text[start:end]``.
        text: the characters. Joined in order, the references of a document give its text back.
        token_ids: the model's tokens of ``read_text``, no special tokens added.
        source: as the document's.
        metadata: as the document's.
        header: where ``text`` goes on with a table, the table's header row (and the rule below it), which stands earlier in
            the document. Not kept apart in a bank: there it is in ``token_ids`` alone.
    """

    id: str
    document_id: str
    ordinal: int
    start: int
    end: int
    text: str
    token_ids: tuple[int, ...]
    source: str = ""
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    header: str = ""

    @property
    def read_text(self) -> str:
        """What the model reads and the embedder embeds: ``header + text``."""
        return self.header + self.text


@dataclass(frozen=True)
class MemoryShape:
    """What all memories of a bank have in common; from it follows the size of a record.

    Attributes:
        layers: indices of the L memory layers in the model, ascending.
        kv_heads: H.
        head_dim: d.
        pairs: P, pairs of key and value per reference.
        dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``.
        biases: whether pairs have biases (`Memory.biases`).
    """

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    pairs: int
    dtype: str = "float16"
    biases: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as files keep them. Without biases nothing is said of them, as before there were any."""
        fields = {**dataclasses.asdict(self), "layers": list(self.layers)}
        return fields if self.biases else {name: value for name, value in fields.items() if name != "biases"}

    @classmethod
    def from_dict(cls, data: Any) -> MemoryShape:
        """Of fields from a file, which may say anything. Raises ValueError unless they are of kinds and sizes that can be."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or set(data) | {"biases"} != names:
            raise ValueError("a shape has layers, kv_heads, head_dim, pairs and dtype")
        biases = data.get("biases", False)
        if not isinstance(biases, bool):
            raise ValueError("biases of a shape are there or not")
        layers = data["layers"]
        if not isinstance(layers, list) or not 0 < len(layers) <= _MOST["layers"]:
            raise ValueError(f"a shape has 1 to {_MOST['layers']:,} layers in a list")
        found = [whole("a layer", layer, 0, _MOST["layers"]) for layer in layers]
        if found != sorted(set(found)):
            raise ValueError("layers must ascend")
        sizes = {name: whole(name, data[name], 1, _MOST[name]) for name in ("kv_heads", "head_dim", "pairs")}
        if len(found) * sizes["kv_heads"] * sizes["head_dim"] > _MOST["numbers"]:
            raise ValueError(f"a token has more than {_MOST['numbers']:,} numbers")
        if data["dtype"] not in ("float16", "bfloat16", "float32"):
            raise ValueError(f"dtype {data['dtype']!r:.40} is unknown")
        return cls(layers=tuple(found), dtype=data["dtype"], biases=biases, **sizes)

    @property
    def heads(self) -> int:
        """L x H."""
        return len(self.layers) * self.kv_heads

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch says it."""
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[self.dtype]


@dataclass(frozen=True)
class Provenance:
    """Which stretch of which document a memory covers, and how it was made.

    Attributes:
        document_id: the document.
        start, end: character offsets of the stretch in the document's text.
        reference_ids: the references it stands for.
        budget: which part of their pairs was kept, as `Budget` is written.
        selector: what chose those pairs.
        fingerprint: of the model and the settings that made it; "" where it was made without asking for it.
    """

    document_id: str
    start: int
    end: int
    reference_ids: tuple[str, ...]
    budget: str
    selector: str
    fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class Memory:
    """The explicit memory of one reference: ragged, each layer and KV head keeps its own number of tokens, possibly none.

    Pairs lie in order of layer, head, position.

    Attributes:
        counts: uint16 ``[L, H]``, tokens kept per head. Their sum is at most P (less when the reference is short).
        positions: uint16 ``[p]``, p = counts.sum(): place of each kept token in its reference, from 0.
        keys: ``[p, d]`` on the device it was decoded on, by default the CPU, in the shape's dtype, after RoPE at position
            ``len(prefix) + position``.
        values: ``[p, d]``, same dtype.
        tokens: unsigned ``[S]``, the reference's tokens, at least up to the last that is kept; None where they are not
            known. Codecs may predict from them.
        biases: float32 ``[p]`` beside the keys, what is added to the logit of every query with each pair: the logarithm of
            how many pairs it stands for (`memory3.encode.mass`); None: of one each.
        stored_bytes: size of the record it was read from; 0 where it was not read from a bank.
        provenance: what it covers and how it was made; None where nobody said. Not stored: a bank derives it from row and
            manifest.
    """

    counts: np.ndarray
    positions: np.ndarray
    keys: torch.Tensor
    values: torch.Tensor
    tokens: np.ndarray | None = None
    biases: torch.Tensor | None = None
    stored_bytes: int = 0
    provenance: Provenance | None = None

    @property
    def bytes_read(self) -> int:
        """What reading it cost: its record's bytes, or where it has none those it takes in RAM."""
        return self.stored_bytes or self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes held in RAM."""
        tensors = self.keys.nbytes + self.values.nbytes + (0 if self.biases is None else self.biases.nbytes)
        return int(tensors + self.counts.nbytes + self.positions.nbytes)


@dataclass
class LayerMemory:
    """What the chunks of a forward pass read in one layer.

    Attributes:
        keys: ``[N, H, M, d]``, after RoPE, in the model's dtype; heads padded to the longest, M.
        values: ``[N, H, M, d]``.
        bias: ``[N, H, 1, M]`` additive, very negative for padding and for pairs `Memory.biases`, or 0; None where nothing
            is padded and no pair has one.
        owner: int64 ``[N, H, M]``: index into the chunk's reference list, -1 for the prefix and for padding.
        widths: H numbers, M_h: beyond it head h is padding in all chunks.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None
    owner: torch.Tensor
    widths: tuple[int, ...]


@dataclass
class MemoryBatch:
    """All that a forward pass over B rows reads: N chunks, each with its own references.

    Attributes:
        layers: by layer index of the model; layers that read nothing are absent.
        references: N lists of reference ids, most similar first.
    """

    layers: dict[int, LayerMemory]
    references: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Citation:
    """A reference an answer was read from.

    Attributes:
        reference_id, document_id, source: where it is.
        start, end: character offsets in the document.
        text: the reference's text.
        share: part of the attention that the answer paid to all references which went to this one, 0 to 1, over memory
            layers, heads and answer tokens. In text mode, where attention is not observed, the retrieval score's share.
        score: cosine of the retrieval that brought it, -1 to 1.
        metadata: as the document's.
    """

    reference_id: str
    document_id: str
    source: str
    start: int
    end: int
    text: str
    share: float
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
