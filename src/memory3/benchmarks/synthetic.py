"""Stand-ins for model and embedder: rows of a real bank's size and form, made as fast as noise can be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from xxhash import xxh3_64_intdigest

from memory3.bank import EncodedShard, Shard
from memory3.bank.format.rows import row_batch, row_schema
from memory3.cluster.spool import Spool
from memory3.codec.raw import encode_record
from memory3.config import MemoryConfig
from memory3.types import Document, Memory, MemoryShape, Reference

__all__ = ["TOPICS", "NoiseEmbedder", "NoiseWriter", "leave_noise", "noise_documents", "noise_text", "question"]

_TEXT_BYTES, _TOKENS = 576, 128
#: Topics of texts, and the part of a vector that is its topic's.
TOPICS, _OF_TOPIC = 4096, 0.63
_ABOUT = " about document "


def noise_documents(first: int, last: int) -> Iterator[Document]:
    """A reference each, of 576 letters.

    Args:
        first, last: numbers of the documents.
    """
    for number in range(first, last):
        yield Document(f"d{number}", noise_text(number), f"noise/{number}")


def noise_text(number: int) -> str:
    """The text of a document."""
    return np.random.default_rng(number).bytes(_TEXT_BYTES // 2).hex()


class NoiseWriter:
    """A `memory3.bank.MemoryWriter` that cuts documents into references of 128 tokens, one each. It encodes nothing."""

    def __init__(self, pairs: int) -> None:
        """``pairs``: of a memory; 186 make 48 KB."""
        self.name, self.fingerprint, self.batch_size = "noise", f"{pairs:016x}", 16
        self.config = MemoryConfig(codec="raw")
        self.shape = MemoryShape(layers=tuple(range(30)), kv_heads=3, head_dim=64, pairs=pairs)
        self.token_vectors = torch.zeros(_TOKENS, 1)

    def split(self, document: Document) -> Iterator[Reference]:
        """One reference."""
        tokens = tuple(range(_TOKENS))
        yield Reference(f"{document.id}#0", document.id, 0, 0, len(document.text), document.text, tokens, document.source)

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        """Not here: `leave_noise` does it."""
        raise NotImplementedError


class NoiseEmbedder:
    """Unit vectors drawn by a hash of the text, about one of `TOPICS` centres each, as texts have topics: two of one topic
    have a cosine of about 0.4, others of about 0.

    A question, as `question` makes it, is a text's vector with as much noise again: a cosine of about 0.7.
    """

    def __init__(self, dimension: int) -> None:
        self.name, self.dimension = "noise", dimension
        self._centres: dict[int, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[n, dimension]``."""
        out = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(out, texts, strict=True):
            asked, _, number = text.partition(_ABOUT)
            row[:] = self._vector(noise_text(int(number))) + self._drawn(asked) if number else self._vector(text)
        return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True))

    def _vector(self, text: str) -> np.ndarray:
        topic = xxh3_64_intdigest(text.encode()) % TOPICS
        if topic not in self._centres:
            self._centres[topic] = self._drawn(f"topic {topic}")
        return np.asarray(_OF_TOPIC * self._centres[topic] + (1 - _OF_TOPIC**2) ** 0.5 * self._drawn(text))

    def _drawn(self, text: str) -> np.ndarray:
        """Of a length of about 1."""
        drawn = np.random.default_rng(xxh3_64_intdigest(text.encode())).standard_normal(self.dimension, dtype=np.float32)
        return np.asarray(drawn / self.dimension**0.5)


def question(asked: str, number: int) -> str:
    """A question about a document of `noise_documents`, for `NoiseEmbedder`.

    Args:
        asked: another one makes another question.
        number: of the document.
    """
    return f"{asked}{_ABOUT}{number}"


def leave_noise(shard: str, folder: str) -> None:
    """Encode a shard with noise, and leave it in a spool.

    Args:
        shard: as JSON.
        folder: of the spool.
    """
    planned = Shard.from_json(shard)
    manifest = planned.manifest
    rows, shape = planned.new, manifest.shape
    random = np.random.default_rng(int(planned.plan[:15], 16))
    each, more = divmod(shape.pairs, shape.heads)
    counts = np.where(np.arange(shape.heads) < more, each + 1, each).astype(np.uint16)
    counts = counts.reshape(len(shape.layers), shape.kv_heads)
    blank = torch.zeros(shape.pairs, shape.head_dim, dtype=shape.torch_dtype)
    positions = np.zeros(shape.pairs, np.uint16)
    model = encode_record(Memory(counts=counts, positions=positions, keys=blank, values=blank), shape)
    numbers = 2 * shape.pairs * shape.head_dim
    head = model[: len(model) - 2 * numbers]
    noise = random.integers(0, 0x3C00, (len(rows), numbers), np.uint16)  # float16 below 1
    records = [head + part.tobytes() for part in noise]
    embeddings = NoiseEmbedder(manifest.dimension).encode([row.reference.text for row in rows])
    schema = row_schema(manifest, planned.table_id)
    Spool(Path(folder)).keep(EncodedShard(planned.plan, planned.number, row_batch(rows, embeddings, records, schema)))
