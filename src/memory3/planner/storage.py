"""How large memories are: the paper's three figures, and what a bank of this library takes on disk and in RAM.

    dense        L x H x 2 x lref x dh numbers     every head of every layer, all tokens
    sparse       Lmem x Hkv x 2 x lmem x dh        memory layers, KV heads, the kept tokens
    quantised    Lmem x Hkv x 2 x lmem vectors     each a code of 14 bytes

Knows shapes and settings; opens no bank. `docs/bank-format.md` has the record that `library_bytes` counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memory3.config import MemoryConfig, codec_sides, default_codec, foretells
from memory3.errors import ConfigError
from memory3.models.sizes import ModelSizes
from memory3.planner.cost import PAPER, Setting

__all__ = [
    "BYTES_PER_TOKEN",
    "CODECS",
    "ReferenceBytes",
    "VectorCodec",
    "codecs_of",
    "library_bytes",
    "paper_bytes",
    "reference_count",
]

_NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

#: Columns of a row other than texts, embedding and memory, as docs/bank-format.md lists them: ordinals, offsets, hash and checksums in bytes,
#: a short id, source and metadata. An estimate.
_ROW_BYTES = 160
#: Of a token in a record whose codec foretells; twice that with a vocabulary above 65,536.
_TOKEN_BYTES = 2
#: Bytes of UTF-8 per token of English with a vocabulary of about 50,000. An estimate; ``--path`` measures it.
BYTES_PER_TOKEN = 4.5


@dataclass(frozen=True)
class VectorCodec:
    """How the vectors of a memory are stored.

    Attributes:
        vector_bytes: of one key or value, where that does not depend on its dimension.
        number_bits: of each of its numbers, where it does; None: as the settings' dtype has it.
        position_bytes: of the place of a pair in its reference, where references have at most 256 tokens; beyond, 2.
        encode_flops: of a vector of ``dh`` numbers, as (a, b) in ``a dh^2 + b dh``.
        decode_flops: the same for decoding.
    """

    vector_bytes: int | None = None
    number_bits: int | None = None
    position_bytes: int = 1
    encode_flops: tuple[int, int] = (0, 0)
    decode_flops: tuple[int, int] = (0, 0)

    def bytes(self, head_dim: int, dtype: str) -> int:
        """Of one stored vector."""
        if self.vector_bytes is not None:
            return self.vector_bytes
        return head_dim * _NUMBER_BYTES[dtype] if self.number_bits is None else -(-head_dim * self.number_bits // 8)

    def position(self, reference_length: int) -> int:
        """Bytes of the place of one pair."""
        return self.position_bytes if reference_length <= 256 else 2

    def encoding(self, head_dim: int) -> int:
        """FLOPs to encode one vector."""
        return self.encode_flops[0] * head_dim**2 + self.encode_flops[1] * head_dim

    def decoding(self, head_dim: int) -> int:
        """FLOPs to decode one vector."""
        return self.decode_flops[0] * head_dim**2 + self.decode_flops[1] * head_dim


#: The codecs of `memory3.codec`. ``product``: the paper's composite quantiser OPQ-Residual2x14-PQ8x10, 108 bits. Encoding turns the vector by a full
#: rotation and compares each half with 2^14 coarse centroids and each eighth of what is left with 2^10; decoding adds the rows of its ten numbers, which
#: are kept turned back, and its head's, and multiplies by the head's widths. ``transform``: 128 bits; a matrix each way, a mean, and for writing 256 states of a trellis for each number.
CODECS: Mapping[str, VectorCodec] = {
    "raw": VectorCodec(position_bytes=2),
    "int8": VectorCodec(number_bits=8, encode_flops=(0, 2), decode_flops=(0, 2)),
    "int4": VectorCodec(number_bits=4, encode_flops=(0, 2), decode_flops=(0, 2)),
    "product": VectorCodec(14, encode_flops=(2, 2 * (2**14 + 2**10)), decode_flops=(0, 12)),
    "transform": VectorCodec(16, encode_flops=(2, 2 + 4 * 256), decode_flops=(2, 2)),
}


def codecs_of(name: str, head_dim: int) -> tuple[VectorCodec, VectorCodec]:
    """Of keys and of values; ``"auto"`` as if it had been fitted. Of the quantisers that ``product:FACTORY`` names, costs are not known."""
    name = default_codec(head_dim) if name == "auto" else name
    keys, values = (_codec(side) for side in codec_sides(name).values())
    return (_foretold(keys), _foretold(values)) if foretells(name) else (keys, values)


def _foretold(codec: VectorCodec) -> VectorCodec:
    """With a product of `memory3.codec.prediction.RANK` numbers and as many as a head has (64 both, or about) for every vector more."""
    (encode, more), (decode, further) = codec.encode_flops, codec.decode_flops
    return replace(codec, encode_flops=(encode + 2, more + 1), decode_flops=(decode + 2, further + 1))


def _codec(side: str) -> VectorCodec:
    name, _, setting = side.partition(":")
    if name == "transform" and setting.isdigit():
        return replace(CODECS[name], vector_bytes=int(setting) // 8)
    if side not in CODECS:
        raise ConfigError(f"codec {side!r} is unknown to the planner: use one of {', '.join(CODECS)}, foretold")
    return CODECS[side]


def paper_bytes(shape: ModelSizes, setting: Setting = PAPER) -> dict[str, int]:
    """Bytes per reference of the paper's three formats: ``dense``, ``sparse`` (bf16 both), ``quantised`` (14 bytes a vector).

    At 1.12e8 references of its model: 7.17 PiB, 45.9 TiB, 4.02 TiB (sections 3.3 and 3.5; PAPER.md section 3).
    """
    sparse_vectors = setting.layers(shape) * shape.kv_heads * 2 * setting.kept
    return {
        "dense": shape.layers * shape.heads * 2 * setting.reference * shape.head_dim * 2,
        "sparse": sparse_vectors * shape.head_dim * 2,
        "quantised": sparse_vectors * 14,
    }


@dataclass(frozen=True)
class ReferenceBytes:
    """Where the bytes of one reference in a bank go.

    Attributes:
        record: the memory, of constant size.
        text: the text as UTF-8 and its token ids.
        embedding: float32.
        other: the row's other columns.
    """

    record: int
    text: float
    embedding: int
    other: int = _ROW_BYTES

    @property
    def disk(self) -> float:
        """All of it."""
        return self.record + self.text + self.embedding + self.other

    @property
    def cold(self) -> float:
        """The same without a memory: what text (RAG) takes."""
        return self.disk - self.record


def library_bytes(
    shape: ModelSizes,
    config: MemoryConfig,
    *,
    dimension: int = 384,
    tokens: float = 0.0,
    text_bytes: float = 0.0,
) -> ReferenceBytes:
    """Bytes of one reference in a bank of this library (docs/bank-format.md).

    Args:
        shape: of the model.
        config: how memories are written and stored; its codec is one of `CODECS`.
        dimension: numbers of an embedding.
        tokens: of a reference on average; 0: a full one.
        text_bytes: of its text; 0: `BYTES_PER_TOKEN` for each token.
    """
    tokens = tokens or config.reference_length
    heads = len(shape.memory_layers(config)) * shape.kv_heads
    pairs = config.budget.pairs(heads, config.reference_length)
    codecs = codecs_of(config.codec, shape.head_dim)
    pair = codecs[0].position(config.reference_length) + sum(codec.bytes(shape.head_dim, config.dtype) for codec in codecs)
    token = _TOKEN_BYTES * (1 if shape.vocabulary <= 2**16 else 2)
    tokens_kept = token * config.reference_length if foretells(config.codec) else 0
    return ReferenceBytes(
        record=2 * heads + pairs * pair + tokens_kept,
        text=(text_bytes or tokens * BYTES_PER_TOKEN) + 4 * tokens,
        embedding=4 * dimension,
    )


def reference_count(value: float | str) -> int:
    """A number of references, also as ``"1.12e8"``.

    Raises:
        ConfigError: it is no whole number from 1 to 1e15.
    """
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 1 <= number <= 1e15 or number != int(number):
        raise ConfigError(f"{value} references cannot be planned for: give a whole number from 1, such as 1e6")
    return int(number)
