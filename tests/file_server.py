"""A server with a tiny model that keeps files, as a process to be killed. It prints its address.

python tests/file_server.py FOLDER SECONDS    SECONDS: that encoding a reference takes more
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import served
from tiny import tiny_chat_tokenizer, tiny_model

from memory3 import Memory3, MemoryConfig
from memory3.serving.data_folder import StorageLimits
from memory3.types import Memory, Reference

__all__ = ["SlowModel", "slow_model"]


class SlowModel(Memory3):
    """Takes its time to encode."""

    seconds = 0.0

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        time.sleep(self.seconds * len(references))
        return super().encode(references)


def slow_model(seconds: float = 0.0) -> SlowModel:
    config = MemoryConfig(reference_length=16, chunk_length=16, references_per_chunk=2, score_gap=2.0)
    m3 = SlowModel(tiny_model(), tiny_chat_tokenizer(), config, name="tiny")
    m3.seconds = seconds
    return m3


if __name__ == "__main__":
    folder, seconds = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    with served.server(Path(folder), m3=slow_model(float(seconds)), banks={}, files=StorageLimits(), drain=2) as running:
        print(running.address, flush=True)
        threading.Event().wait(600)
