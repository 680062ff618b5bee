"""Resident memory over many recalls: with a recall at every decoded token and a small RAM cache, it must not grow."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import torch

from memory3.benchmarks.measure import Distinct, bank_references, progress, temporary_bank
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {"model": DEFAULT_MODEL, "preset": "default", "recalls": 10_000, "references": 100, "samples": 20}


def _resident() -> int:
    """Bytes of this process in RAM (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(model: str, preset: str, recalls: int, references: int, samples: int) -> dict[str, Any]:
    """Resident MiB at even steps, and the growth per 1,000 recalls over the second half (least squares)."""
    loaded = Memory3.from_pretrained(model, config=preset)
    # Every decoded token is a chunk: a recall each.
    m3 = Memory3(loaded.model, loaded.tokenizer, loaded.config.replace(chunk_length=1), name=loaded.name)
    line: list[float] = []
    counts: list[int] = []
    with temporary_bank(m3, references) as bank:
        source = Distinct(bank)
        text = [t for r in bank_references(bank) for t in r.token_ids]
        done = 0
        generate: Any = m3.model.generate
        for step in progress(range(samples), f"{recalls} recalls"):
            while done < recalls * (step + 1) // samples:
                start = done % (len(text) - 16)
                tokens = torch.tensor([text[start : start + 1]])
                with torch.inference_mode(), m3.recall(source, k=m3.config.references_per_chunk, use_cache=False) as recall:
                    generate(
                        tokens, attention_mask=torch.ones_like(tokens), min_new_tokens=64, max_new_tokens=64, do_sample=False
                    )
                done += recall.statistics.recalls
            gc.collect()
            counts.append(done)
            line.append(_resident() / 2**20)
    half = len(line) // 2
    x = torch.tensor(counts[half:], dtype=torch.float64) / 1000
    y = torch.tensor(line[half:], dtype=torch.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return {
        "recalls": counts,
        "resident_mib": line,
        "growth_mib_per_1000_recalls": slope,
        "first_to_last_mib": line[-1] - line[0],
    }
