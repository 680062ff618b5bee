"""What a codec is: how settings name it, what it costs, and what it does. Knows no bank and no model.

A codec has two halves. `MemoryCodec` is what settings say, such as ``"product:RQ14x8"``, with its options read: it knows
sizes, costs and its line of help, and imports no torch, so that a plan is made in a moment. `Codec` is the same for memories
of one shape, fitted where it must be: it writes and reads records.

Most codecs code vector by vector. Of those only a `VectorCodec` is written, and `VectorPair` makes a `MemoryCodec` of two, for
keys and for values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from memory3.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

    import torch

    from memory3.codec.vectors import Sample, VectorCoder
    from memory3.types import Memory, MemoryShape

__all__ = [
    "NUMBER_BYTES",
    "Codec",
    "CodecCost",
    "MemoryCodec",
    "Record",
    "RecordSizes",
    "VectorCodec",
    "VectorCost",
    "VectorPair",
    "coded_record_bytes",
]

Record = bytes | bytearray | memoryview

#: Bytes of a number, by `memory3.config.MemoryConfig.dtype`.
NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: A vocabulary up to this size has tokens of two bytes, a larger one of four.
_SHORT_VOCABULARY = 1 << 16
#: References of at most so many tokens have places of one byte.
_SHORT_REFERENCE = 256


@dataclass(frozen=True)
class RecordSizes:
    """What the size of a record follows from, whatever the codec.

    Attributes:
        heads: L*H, memory layers times KV heads.
        pairs: P, key-value pairs of a reference at most.
        head_dim: d, numbers of a key or value.
        positions: S, tokens of a reference at most.
        dtype: number format of keys and values, of `NUMBER_BYTES`.
        vocabulary: V, tokens that the model knows.
        biases: whether pairs have biases (`memory3.types.Memory.biases`).
    """

    heads: int
    pairs: int
    head_dim: int
    positions: int
    dtype: str = "float16"
    vocabulary: int = 0
    biases: bool = False


class VectorCost(NamedTuple):
    """What one vector costs: its bytes, and FLOPs (a multiply-add is two) to encode and to decode it."""

    bytes: int
    encode_flops: int
    decode_flops: int


class CodecCost(NamedTuple):
    """What a codec costs: bytes of a record, and FLOPs to encode and to decode one pair of key and value."""

    record_bytes: int
    encode_flops: int
    decode_flops: int


class MemoryCodec(ABC):
    """A codec as settings name it, its options read. Imports torch no sooner than it must.

    Attributes:
        name: what it is called.
        stored_name: what files call it, where that is another name; settings may say either.
        form: how it is written with options, such as ``"transform:BITS"``.
        help: one sentence on what it does, without its name.
        text: name and options in the spelling of files; equal texts are equal codecs.
        is_fitted: does it need a codebook?
        uses_metric: is it fitted to what errors cost the model, see `memory3.codec.vectors.Sample`?
        predicts: does it need the model's token vectors, and a memory's tokens?
    """

    name: ClassVar[str]
    stored_name: ClassVar[str] = ""
    form: ClassVar[str]
    help: ClassVar[str]
    is_fitted: ClassVar[bool] = True
    predicts: ClassVar[bool] = False
    text: str

    @property
    def uses_metric(self) -> bool:
        """Whether it is fitted to what errors cost the model (`memory3.codec.vectors.Sample.metric`). By default not."""
        return False

    @classmethod
    @abstractmethod
    def parse(cls, options: str) -> MemoryCodec:
        """The codec with ``options``, which stand behind the name and a colon, empty where nothing does.

        Raises:
            ConfigError: it has no such options.
        """

    @abstractmethod
    def cost(self, sizes: RecordSizes) -> CodecCost | None:
        """What records of these sizes cost. None: that is not known."""

    def __str__(self) -> str:
        """As people are shown it."""
        return self.text


@dataclass(frozen=True)
class VectorCodec(ABC):
    """A codec of single vectors, for keys, values or both, its options read. Imports torch no sooner than it must.

    Attributes:
        name, form, help: see `MemoryCodec`.
        uses_metric: is it fitted to `memory3.codec.vectors.Sample.metric`?
    """

    name: ClassVar[str]
    form: ClassVar[str]
    help: ClassVar[str]
    uses_metric: ClassVar[bool] = False

    @classmethod
    def parse(cls, options: str) -> Self:
        """The codec with ``options``, which stand behind the name and a colon, empty where nothing does. By default there are
        none.

        Raises:
            ConfigError: it has no such options.
        """
        if options:
            raise ConfigError(f"codec {f'{cls.name}:{options}'!r} is unknown: {cls.name} has no options, write {cls.form}")
        return cls()

    @abstractmethod
    def cost(self, head_dim: int) -> VectorCost | None:
        """What a vector of ``head_dim`` numbers costs. None: that is not known."""

    @abstractmethod
    def appetite(self, head_dim: int) -> tuple[int, int]:
        """Vectors that it must be fitted on at least, and those that make it good. ConfigError: it does not fit the head
        dimension.
        """

    def shapes(self, heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of one side of its codebook, all float32; -1 is any size. By default there are none.

        Args:
            heads: L*H.
            head_dim: d.

        Raises:
            ConfigError: it does not fit the head dimension.
        """
        return {}

    def fit(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Those tensors, fitted to the sample. By default there are none."""
        return {}

    @abstractmethod
    def coder(self, head_dim: int, tensors: Mapping[str, torch.Tensor]) -> VectorCoder:
        """What encodes and decodes vectors of ``head_dim`` numbers, made of those ``tensors``."""


@dataclass(frozen=True)
class VectorPair(MemoryCodec):
    """Records of coded vectors: keys by one codec, values by the same or another.

    Attributes:
        text: see `MemoryCodec`.
        keys, values: what codes them.
    """

    text: str
    keys: VectorCodec
    values: VectorCodec

    @classmethod
    def parse(cls, options: str) -> VectorPair:
        """Not by name: `memory3.codec.registry.find` makes pairs of two vector codecs."""
        raise ConfigError(f"codec {options!r} names no vector codec")

    @property
    def sides(self) -> dict[str, VectorCodec]:
        """Both codecs by the names that codebooks give them."""
        return {"keys": self.keys, "values": self.values}

    @property
    def uses_metric(self) -> bool:
        """Whether keys or values are fitted to what errors cost the model."""
        return self.keys.uses_metric or self.values.uses_metric

    def cost(self, sizes: RecordSizes) -> CodecCost | None:
        """See `MemoryCodec.cost`: both vectors of every pair, and what `memory3.codec.layout` keeps beside them."""
        keys, values = (side.cost(sizes.head_dim) for side in (self.keys, self.values))
        if keys is None or values is None:
            return None
        record = coded_record_bytes(sizes, keys.bytes, values.bytes, predicts=self.predicts)
        return CodecCost(record, keys.encode_flops + values.encode_flops, keys.decode_flops + values.decode_flops)


def coded_record_bytes(sizes: RecordSizes, key_bytes: int, value_bytes: int, *, predicts: bool) -> int:
    """Bytes of a coded record (`memory3.codec.layout`).

    Args:
        sizes: of the memory.
        key_bytes, value_bytes: of a coded vector.
        predicts: does the record keep the reference's tokens?
    """
    token_bytes = (2 if sizes.vocabulary <= _SHORT_VOCABULARY else 4) if predicts else 0
    place_bytes = 1 if sizes.positions <= _SHORT_REFERENCE else 2
    return 2 * sizes.heads + sizes.pairs * (place_bytes + key_bytes + value_bytes) + token_bytes * sizes.positions


class Codec(ABC):
    """Writes memories of one shape as bytes, and reads them.

    Attributes:
        name: as `MemoryCodec.text` says it.
        shape: of every memory.
        record_size: bytes of every record.
        needs_vectors: must it be given the model's token vectors (`with_vectors`) before it encodes or decodes?
    """

    name: str
    shape: MemoryShape
    record_size: int
    needs_vectors: bool = False

    def with_vectors(self, vectors: torch.Tensor | None) -> Codec:
        """This codec with the model's token vectors ``[V, e]``, if it needs them; all else is shared.

        Raises:
            CodecError: it was fitted to token vectors of another width.
        """
        return self

    def encode(self, memory: Memory) -> bytes:
        """``memory`` as `record_size` bytes.

        Raises:
            InputError: the memory does not fit the shape.
        """
        (record,) = self.encode_many([memory])
        return record

    @abstractmethod
    def encode_many(self, memories: Sequence[Memory], *, device: torch.device | str | None = None) -> list[bytes]:
        """Memories as `record_size` bytes each, in order.

        Args:
            memories: several, which may take less time together than one by one.
            device: where codes are computed; None: where the first memory lies.

        Raises:
            InputError: a memory does not fit the shape.
        """

    @abstractmethod
    def check(self, record: Record) -> None:
        """Raise CodecError unless ``record`` can be decoded."""

    @abstractmethod
    def decode(self, records: Sequence[Record], *, device: torch.device | str = "cpu") -> list[Memory]:
        """The memories in ``records``.

        Args:
            records: of `record_size` bytes each.
            device: where their keys and values are wanted.

        Returns:
            Memories in the order of their records, keys and values ``[p, d]`` in the shape's dtype on ``device``.

        Raises:
            CodecError: a record has a wrong length, or counts more than it can hold.
        """
