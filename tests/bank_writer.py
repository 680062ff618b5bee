"""Stand-ins for the model and the embedder: deterministic, instant, no language model. All sizes differ."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from xxhash import xxh3_64_intdigest

from memory3.bank import Bank
from memory3.codec.raw import encode_record
from memory3.config import MemoryConfig
from memory3.types import Document, Memory, MemoryShape, Reference

SHAPE = MemoryShape(layers=(1, 4, 6), kv_heads=2, head_dim=5, pairs=7)


class HashingWriter:
    """A `MemoryWriter` whose tokens are words and whose memories are drawn by a hash of the tokens. Counts what it is
    asked.
    """

    def __init__(
        self,
        shape: MemoryShape = SHAPE,
        *,
        name: str = "hashing",
        config: MemoryConfig | None = None,
        reference_length: int = 4,
        batch_size: int = 3,
        delay: float = 0.0,
    ) -> None:
        self.name = name
        self.config = config or MemoryConfig(reference_length=reference_length)
        self.shape = shape
        self.fingerprint = (
            f"{xxh3_64_intdigest(repr((name, self.config.replace(codec='raw').to_json(), shape)).encode()):016x}"
        )
        self.token_vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((1000, 7), dtype=np.float32))
        self.batch_size = batch_size
        self.delay = delay
        self.splits = self.encoded = 0
        self.batches: list[int] = []

    def split(self, document: Document) -> Iterator[Reference]:
        self.splits += 1
        length = self.config.reference_length
        words = [match.end() for match in re.finditer(r"\S+\s*", document.text)]
        starts = [0, *words[length - 1 : -1 : length]] if words else []
        for ordinal, start in enumerate(starts):
            end = starts[ordinal + 1] if ordinal + 1 < len(starts) else len(document.text)
            text = document.text[start:end]
            ids = tuple(xxh3_64_intdigest(word.encode()) % 1000 for word in text.split())
            yield Reference(
                f"{document.id}#{ordinal}", document.id, ordinal, start, end, text, ids, document.source, document.metadata
            )

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        time.sleep(self.delay * len(references))
        self.encoded += len(references)
        self.batches.append(len(references))
        return [self.memory(reference) for reference in references]

    def memory(self, reference: Reference) -> Memory:
        """The memory of a reference, by its text alone."""
        shape = self.shape
        rng = np.random.default_rng(xxh3_64_intdigest(reference.text.encode()))
        pairs = int(rng.integers(0, shape.pairs + 1))
        heads = rng.integers(0, shape.heads, pairs)
        counts = np.bincount(heads, minlength=shape.heads).astype(np.uint16)
        numbers = torch.from_numpy(rng.standard_normal((2, pairs, shape.head_dim), dtype=np.float32))
        positions = rng.integers(0, 128, pairs).astype(np.uint16)
        return Memory(
            counts=counts.reshape(len(shape.layers), shape.kv_heads),
            positions=positions,
            keys=numbers[0].to(shape.torch_dtype),
            values=numbers[1].to(shape.torch_dtype),
            tokens=rng.integers(0, len(self.token_vectors), 128).astype(np.uint32),
        )


class HashingEmbedder:
    """Sums one random vector per word: texts that share words are near."""

    def __init__(self, name: str = "hashing", dimension: int = 11) -> None:
        self.name = name
        self.dimension = dimension
        self.embedded = 0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += len(texts)
        out = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in [*text.lower().split(), ""]:
                seed = xxh3_64_intdigest(word.encode())
                row += np.random.default_rng(seed).standard_normal(self.dimension, dtype=np.float32)
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def same_memory(a: Memory, b: Memory) -> bool:
    """Bit for bit."""
    return (
        np.array_equal(a.counts, b.counts)
        and np.array_equal(a.positions, b.positions)
        and torch.equal(a.keys, b.keys)
        and torch.equal(a.values, b.values)
    )


def documents(count: int = 12, seed: int = 0) -> list[Document]:
    """Documents of 1 to 25 words, so of 1 to 7 references, with metadata to filter on."""
    rng = np.random.default_rng(seed)
    return [
        Document(
            id=f"doc{number}",
            text=" ".join(f"w{word}" for word in rng.integers(0, 200, rng.integers(1, 26))) + " \n",
            source=f"shelf/{number}.txt",
            metadata={"book": "abc"[number % 3], "year": 2000 + number % 5, "new": number % 2 == 0},
        )
        for number in range(count)
    ]


def open_bank(path: Path, m3: HashingWriter | None = None, **options: Any) -> Bank:
    """A bank with the stand-ins."""
    return Bank.open(path, m3 or HashingWriter(), **{"embedder": HashingEmbedder(), **options})


def contents(bank: Bank) -> dict[str, tuple[Reference, bytes]]:
    """Every reference of the bank and its memory's bytes, read anew from disk."""
    bank.refresh()
    ids = sorted(f"{entry.id}#{ordinal}" for entry in bank.documents() for ordinal in range(entry.references))
    records = (encode_record(memory, bank.manifest.shape) for memory in bank.memories(ids, use_cache=False))
    return dict(zip(ids, zip(bank.references(ids), records, strict=True), strict=True))


def expected(written: Iterable[Document], m3: HashingWriter | None = None) -> dict[str, tuple[Reference, bytes]]:
    """What `contents` must be after writing these documents."""
    m3 = m3 or HashingWriter()
    references = [reference for document in written for reference in m3.split(document)]
    return {reference.id: (reference, encode_record(m3.memory(reference), m3.shape)) for reference in references}
