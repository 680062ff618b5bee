"""Passages with questions, and a tiny model, for tests of selectors that are fitted."""

from __future__ import annotations

from tiny import tiny_chat_tokenizer, tiny_model

from memory3.calibration.selector import Passage
from memory3.config import MemoryConfig
from memory3.llm import Memory3

PASSAGES = [
    Passage("The bridge was built in 1874 by the engineer of the county.", [("Who built the bridge?", "the engineer")]),
    Passage(
        "The river rises in the mountains. It reaches the sea near the old town.",
        [("Where?", "sea"), ("What rises?", "river")],
    ),
    Passage("Memories are keys and values.", [("What are they?", "nothing of the passage")]),
]


def memory3(family: str = "llama", **settings) -> Memory3:
    return Memory3(
        tiny_model(family), tiny_chat_tokenizer(), MemoryConfig(**{"reference_length": 37, **settings}), name="tiny"
    )
