"""Encodes shards of a plan in a folder, in a process of its own: ``shard_process.py FOLDER NUMBER...``"""

from __future__ import annotations

import sys
from pathlib import Path

from bank_writer import HashingEmbedder
from tiny import tiny_model, tiny_tokenizer

from memory3.bank import Shard, WritePlan, encode_shard
from memory3.config import MemoryConfig
from memory3.llm import Memory3


def tiny_memory3(**settings) -> Memory3:
    """Encodes one reference at a time, so that its bytes do not depend on which others are padded beside it."""
    config = MemoryConfig(**{"reference_length": 23, "budget": "uniform:3", **settings})
    return Memory3(tiny_model("llama"), tiny_tokenizer(), config, name="tiny", batch_size=1)


def encode(folder: Path, numbers: list[str]) -> None:
    m3, book = tiny_memory3(), WritePlan.load(folder).code_book
    for number in numbers:
        shard = Shard.load(folder / f"shard-{int(number):06}.json")
        encode_shard(m3, shard, embedder=HashingEmbedder(), code_book=book).save(folder / f"encoded-{number}.arrow")


if __name__ == "__main__":
    encode(Path(sys.argv[1]), sys.argv[2:])
