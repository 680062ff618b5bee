"""Memories written in bfloat16 and read in float32, beside memories written in float32: answer NLL, contains and F1 on dev
questions, and how long a batch of references takes.

    python -m research.quality.encode_dtype --data DIR --questions 100 --out FILE

Each question reads the one reference that holds its answer, from the packed record, as a bank does. Both arms have the same
weights, codec and selector; in the second a copy of the model rounded to bfloat16 encodes. Batches take turns, who goes first
alternates. Only dev is read. A line of JSON, with every question's figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from memory3.bank.codebooks import new_codec
from memory3.evaluation.intervals import interval
from memory3.evaluation.machine import machine
from memory3.evaluation.metrics import contains, f1
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_ADAPTED
from memory3.recall.held import Held
from memory3.types import Memory
from research.quality.ways import NEW, read_items, say

ARMS = ("float32", "bfloat16")
_BATCH = 16


def written(
    models: dict[str, Memory3], items: list[dict[str, Any]]
) -> tuple[dict[str, dict[str, Memory]], dict[str, list[float]]]:
    """Memories by arm and reference, packed and decoded; CPU seconds of each batch, without packing."""
    references = {item["reference"].id: item["reference"] for item in items}
    ordered = sorted(references.values(), key=lambda reference: len(reference.token_ids))
    codec = new_codec(models["float32"], None)[0].with_vectors(models["float32"].token_vectors)
    found: dict[str, dict[str, Memory]] = {arm: {} for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn, start in enumerate(range(0, len(ordered), _BATCH)):
        batch = ordered[start : start + _BATCH]
        for arm in ARMS if turn % 2 else reversed(ARMS):
            began = time.process_time()
            memories = models[arm].encode(batch)
            seconds[arm].append((time.process_time() - began) / len(batch))
            records = codec.encode_many(memories)
            decoded = codec.decode([bytearray(record) for record in records])
            found[arm] |= dict(zip((reference.id for reference in batch), decoded, strict=True))
    return found, seconds


@torch.no_grad()
def main() -> None:
    """Measure, and write a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_ADAPTED)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    models = {arm: Memory3.from_pretrained(asked.model, dtype=arm) for arm in ARMS}
    m3 = models["float32"]
    items = read_items(m3, asked.data, asked.questions, 0)
    say(f"{len(items)} questions")
    memories, seconds = written(models, items)
    say(str({arm: statistics.median(each) for arm, each in seconds.items()}))
    references = {item["reference"].id: item["reference"] for item in items}
    found: dict[str, dict[str, list[float]]] = {arm: {"nll": [], "contains": [], "f1": []} for arm in ARMS}
    for n, item in enumerate(items):
        own = item["reference"].id
        answer = m3.prompts.ids(item["answers"][0])
        row = m3.prompts.row(
            m3.prompts.ids(item["question"]), "memory", [own], Held(memories["float32"], references), after=NEW
        )
        for arm in ARMS:
            source: Any = Held(memories[arm], references)
            ((score,),) = m3.scorer.score([row], [[answer]], source)
            text = m3.generate(item["question"], source, references=[own], max_new_tokens=NEW, do_sample=False).text
            found[arm]["nll"].append(score.nll)
            found[arm]["contains"].append(contains(text, item["answers"]))
            found[arm]["f1"].append(f1(text, item["answers"]))
        if n % 10 == 9:
            say(
                f"{n + 1}: "
                + str({arm: {k: round(statistics.mean(v), 3) for k, v in each.items()} for arm, each in found.items()})
            )
    pairs = {
        name: [b - a for a, b in zip(found["float32"][name], found["bfloat16"][name], strict=True)]
        for name in found["float32"]
    }
    said = {
        "model": m3.name,
        "data": asked.data.name,
        "questions": len(items),
        "cpu_seconds_a_reference": {arm: statistics.median(each) for arm, each in seconds.items()},
        "ratio": statistics.median(a / b for a, b in zip(seconds["float32"], seconds["bfloat16"], strict=True)),
        "mean": {arm: {name: statistics.mean(values) for name, values in each.items()} for arm, each in found.items()},
        "bfloat16 minus float32": {name: [statistics.mean(each), *interval(each)] for name, each in pairs.items()},
        "machine": machine(),
        "each": found,
    }
    with asked.out.open("a") as file:
        file.write(json.dumps(said) + "\n")
    say(json.dumps({name: value for name, value in said.items() if name != "each"}, indent=1))


if __name__ == "__main__":
    main()
