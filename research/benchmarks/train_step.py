"""A step of continual training against a step of warm-up on the same sequences: forward, backward, AdamW.

The paper has slightly over twice (arXiv 2407.01178, section 5).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memory3.bank import Bank
from memory3.benchmarks.measure import alternate, python_documents, ratio
from memory3.config import MemoryConfig
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL
from memory3.models.scratch import from_scratch
from memory3.training.collate import GroupBatch, MemoryCollator
from memory3.training.groups import without_memories
from memory3.training.live import group_loss
from memory3.training.records import Records
from memory3.training.sampling import GroupMaker, documents_of
from memory3.training.settings import Mixture, Settings

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "shape": "memory3-27m",
    "tokenizer": DEFAULT_MODEL,
    "preset": "paper",
    "sequence_length": 2048,
    "sequences": 1,
    "references": 600,
    "dtype": "float32",
    "device": "cpu",
    "repeats": 3,
}


def run(
    shape: str,
    tokenizer: str,
    preset: str,
    sequence_length: int,
    sequences: int,
    references: int,
    dtype: str,
    device: str,
    repeats: int,
) -> dict[str, Any]:
    """Seconds of a step of each kind, on a model from scratch with the preset's layers, budget and selector. Chunks
    retrieve among ``references``.
    """
    config = MemoryConfig.preset(preset)
    settings = Settings(
        memory=config, sequence_length=sequence_length, eval_every=0, mixture=Mixture.of({"chunks": 1}), dtype=dtype
    )
    model, tokens = from_scratch(shape, tokenizer)
    m3 = Memory3(model.to(device), tokens, config, name=shape)
    documents = python_documents(m3, references)
    with tempfile.TemporaryDirectory(prefix="memory3-bench-") as folder:
        records = Records(texts=[document.text for document in documents])
        with Bank.open(Path(folder) / "bank", m3) as bank:
            bank.write(documents_of(records), cold=True)
            # The last sequence is shorter than the others, and one of them at most.
            drawn = GroupMaker(m3, bank, records, replace(settings, groups=sequences + 1)).groups(1)
            groups = sorted(drawn, key=lambda group: -len(group.rows[0].tokens))[:sequences]
    collate = MemoryCollator(m3.prompts.pad_id)
    reading = collate(groups).to(m3.model.device)
    plain = collate([without_memories(group) for group in groups]).to(m3.model.device)
    optimiser = torch.optim.AdamW(m3.model.parameters(), lr=0.0)  # weights stay, so that steps stay alike
    narrow = torch.bfloat16 if dtype == "bfloat16" else None

    def step(batch: GroupBatch) -> Callable[[], float]:
        def arm() -> float:
            started = time.perf_counter()
            loss: Any = group_loss(m3, m3.model, batch, narrow)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            if m3.model.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        return arm

    seconds = alternate({"continual": step(reading), "warmup": step(plain)}, repeats)
    return {
        "seconds_per_step": ratio(seconds, "continual", "warmup"),
        "tokens": int(reading.mask.sum()),
        "references": len(reading.references),
        "reference_tokens": sum(len(reference.token_ids) for reference in reading.references),
    }
