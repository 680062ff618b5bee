"""Small training data, and settings of runs on them that take seconds."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from memory3.config import MemoryConfig
from memory3.training.settings import Mixture, Settings

TEXTS = [
    "The river rises in the mountains and reaches the sea near the old town after many miles.",
    "The bridge was built in 1874 by the engineer of the county, who had studied in the capital.",
    "Memories are keys and values; the reader reads them while the answer is being written.",
]
CONFIG = MemoryConfig(
    budget="adaptive:29",  # type: ignore[arg-type]
    reference_length=23,
    dtype="float32",
    references_per_chunk=3,
)


def write_records(path: Path, records: list[Any]) -> str:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_data(folder: Path) -> str:
    """Questions on passages, texts, and a prompt."""
    rng, records = random.Random(3), []
    things = ["river", "bridge", "town", "county", "reader", "engineer", "sea", "answer", "capital", "mountain"]
    for n in range(17):
        thing, year = rng.choice(things), rng.randrange(1000, 2000)
        passage = f"The {thing} number {n} was built in {year}. It stands near the {rng.choice(things)}."
        records.append({"passage": passage, "question": f"When was {thing} {n} built?", "answer": str(year)})
        records.append({"text": f"{passage} Many people came to see the {thing} in the years that followed, and wrote of it."})
    for n, thing in enumerate(things[:7]):
        records.append({"prompt": f"Say the name of the {thing}.", "answer": f"the {thing}"})
        pair = {"chosen": f"It was built in {1000 + n}.", "rejected": "Nobody wrote it down, so nobody knows."}
        records.append({"instruction": f"When was the {thing} built?", "input": "", **pair})
    return write_records(folder / "data.jsonl", records)


def run_settings(model_path: str, data: str, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "model": model_path,
        "data": [data],
        "memory": CONFIG.to_dict(),
        "steps": 6,
        "passes": 2,
        "questions": 3,
        "texts": 2,
        "text_length": 40,
        "rate": 1e-2,
        "warmup": 1,
        "rank": 3,
        "alpha": 5,
        "dtype": "float32",
        "save_every": 3,
        "eval_every": 3,
        "eval_groups": 1,
        "mixture": Mixture().shares(),
    }
    return Settings.from_dict(given | changes)
