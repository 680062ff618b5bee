"""Decoding with memory against decoding without (paper, table 21: 733 of 1131 tokens/s, 0.648).

Worst case as there: every recall gets references no one had before, from disk, RAM cache off. Retrieval (embedding,
search), reading and layout are inside the measured time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from memory3.benchmarks.measure import Distinct, alternate, bank_references, ratio, temporary_bank
from memory3.llm import Memory3, TokenClock
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "preset": "default",
    "batches": "1,8",
    "tokens_in": 128,
    "tokens_out": 128,
    "repeats": 5,
}


def run(model: str, preset: str, batches: str, tokens_in: int, tokens_out: int, repeats: int) -> dict[str, Any]:
    """Tokens per second after the first token, and end to end, for each batch size.

    Args:
        model: name or path.
        preset: of the settings.
        batches: batch sizes between commas.
        tokens_in: of a prompt.
        tokens_out: of an answer.
        repeats: turns measured.
    """
    m3 = Memory3.from_pretrained(model, config=preset)
    sizes = [int(b) for b in batches.split(",")]
    # Prompt chunks and decoded chunks, five references each, all distinct within a run.
    needed = max(sizes) * m3.config.references_per_chunk * (-(-tokens_in // 64) + -(-tokens_out // 64))
    results: dict[str, Any] = {}
    with temporary_bank(m3, needed) as bank:
        source = Distinct(bank)
        text = [t for r in bank_references(bank) for t in r.token_ids]
        for size in sizes:
            tokens = torch.tensor([text[i * tokens_in : (i + 1) * tokens_in] for i in range(size)], device=m3.model.device)
            ends: dict[str, list[float]] = {"memory": [], "plain": []}

            def measure(arm: str, tokens: torch.Tensor, size: int, ends: dict[str, list[float]]) -> float:
                watch = TokenClock()
                generate: Any = m3.model.generate
                call = {
                    "attention_mask": torch.ones_like(tokens),
                    "min_new_tokens": tokens_out,
                    "max_new_tokens": tokens_out,
                    "do_sample": False,
                    "stopping_criteria": [watch],
                    "pad_token_id": m3.prompts.pad_id,
                }
                started = time.perf_counter()
                with torch.inference_mode():
                    if arm == "memory":
                        with m3.recall(source, k=m3.config.references_per_chunk, use_cache=False):
                            generate(tokens, **call)
                    else:
                        generate(tokens, **call)
                ends[arm].append(size * tokens_out / (watch.times[-1] - started))
                return size * (tokens_out - 1) / (watch.times[-1] - watch.times[0])

            def arm(name: str, tokens: torch.Tensor = tokens, size: int = size, ends: Any = ends) -> Callable[[], float]:
                return lambda: measure(name, tokens, size, ends)

            before, at = source.seconds, time.perf_counter()
            figures = alternate({"memory": arm("memory"), "plain": arm("plain")}, repeats)
            results[f"batch {size}"] = {
                "decode_tokens_per_second": ratio(figures, "memory", "plain"),
                "end_to_end_tokens_per_second": ratio({name: values[1:] for name, values in ends.items()}, "memory", "plain"),
                "bank_share_of_wall_time": (source.seconds - before) / (time.perf_counter() - at),
            }
        results["references"] = len(bank)
    return results
