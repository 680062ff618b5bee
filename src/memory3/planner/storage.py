"""How large memories are: the paper's three figures, and what a bank of this library takes on disk and in RAM.

    dense        L x H x 2 x lref x dh numbers     every head of every layer, all tokens
    sparse       Lmem x Hkv x 2 x lmem x dh        memory layers, KV heads, the kept tokens
    quantised    Lmem x Hkv x 2 x lmem vectors     each a code of 14 bytes

Knows shapes and settings; opens no bank. `docs/bank-format.md` has the record that `library_bytes` counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from memory3.codec.base import NUMBER_BYTES, CodecCost, RecordSizes
from memory3.codec.registry import codecs, default_codec, find
from memory3.config import MemoryConfig
from memory3.errors import ConfigError
from memory3.models.sizes import ModelSizes
from memory3.planner.cost import PAPER, Setting

__all__ = ["BYTES_PER_TOKEN", "ReferenceBytes", "codec_cost", "library_bytes", "paper_bytes", "reference_count"]

#: Columns of a row other than texts, embedding and memory, as docs/bank-format.md lists them: ordinals, offsets, hash and
#: checksums in bytes, a short id, source and metadata. An estimate.
_ROW_BYTES = 160
#: Bytes of UTF-8 per token of English with a vocabulary of about 50,000. An estimate; ``--path`` measures it.
BYTES_PER_TOKEN = 4.5


def codec_cost(shape: ModelSizes, config: MemoryConfig) -> CodecCost:
    """What the settings' codec says that it costs; ``"auto"`` as if it had been fitted.

    Args:
        shape: of the model.
        config: how memories are written and stored.

    Raises:
        ConfigError: the codec is unknown, or does not know its costs, as quantisers that ``product:FACTORY`` names.
    """
    codec = find(default_codec(shape.head_dim) if config.codec == "auto" else config.codec)
    heads = len(shape.memory_layers(config)) * shape.kv_heads
    pairs = config.budget.pairs(heads, config.reference_length)
    sizes = RecordSizes(heads, pairs, shape.head_dim, config.reference_length, config.dtype, shape.vocabulary, config.biases)
    cost = codec.cost(sizes)
    if cost is None:
        raise ConfigError(f"codec {str(codec)!r} is unknown to the planner: use one of {', '.join(codecs())}")
    return cost


def paper_bytes(shape: ModelSizes, setting: Setting = PAPER) -> dict[str, int]:
    """Bytes per reference of the paper's three formats: ``dense``, ``sparse`` (bf16 both), ``quantised`` (14 bytes a vector).

    At 1.12e8 references of its model: 7.17 PiB, 45.9 TiB, 4.02 TiB (arXiv 2407.01178, sections 3.3 and 3.5).

    Args:
        shape: sizes of the model.
        setting: lengths of references, chunks and memories; by default the paper's.
    """
    number = NUMBER_BYTES["bfloat16"]
    sparse_vectors = setting.layers(shape) * shape.kv_heads * 2 * setting.kept
    return {
        "dense": shape.layers * shape.heads * 2 * setting.reference * shape.head_dim * number,
        "sparse": sparse_vectors * shape.head_dim * number,
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
    def text_only(self) -> float:
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
        config: how memories are written and stored.
        dimension: numbers of an embedding.
        tokens: of a reference on average; 0: a full one.
        text_bytes: of its text; 0: `BYTES_PER_TOKEN` for each token.
    """
    tokens = tokens or config.reference_length
    return ReferenceBytes(
        record=codec_cost(shape, config).record_bytes,
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
