"""The speed table (paper, table 21): tokens per second with and without retrieval, all modes, with the time to the first
token and the peak of memory.

Two ways to read memories. Worst case, as the paper's: every recall gets references that none had before, from disk, with
no RAM cache. Warm: the same questions again, their memories in the RAM cache. Retrieval is inside every figure. Modes
take turns; figures are medians over the turns, and ratios are taken turn by turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from memory3.benchmarks.measure import Distinct, alternate, bank_references, forget_peak, peak_bytes, temporary_bank
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["OPTIONS", "run", "tables"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "preset": "default",
    "batches": "1,8",
    "tokens_in": 128,
    "tokens_out": 128,
    "repeats": 5,
}

#: By name: mode, and whether the worst case is measured.
ARMS = {
    "none": ("none", False),
    "memory, worst case": ("memory", True),
    "memory, warm": ("memory", False),
    "text (RAG)": ("text", True),
}


def run(model: str, preset: str, batches: str, tokens_in: int, tokens_out: int, repeats: int) -> dict[str, Any]:
    """For each batch size and arm: medians of tokens per second, seconds to the first token, peak bytes, ratios to ``none``.

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
    # Prompt chunks and decoded chunks, each with its references, all distinct within a run.
    needed = max(sizes) * m3.config.references_per_chunk * (-(-tokens_in // 64) + -(-tokens_out // 64))
    words = max(1, tokens_in - len(m3.frame.closed_book([0])) + 1)
    results: dict[str, Any] = {"references_read_at_once": m3.config.references_per_chunk, "batches": {}}
    with temporary_bank(m3, max(needed, 1), cache_bytes=1 << 30) as bank:
        text = [t for r in bank_references(bank) for t in r.token_ids]
        while len(text) < max(sizes) * words:
            text = text + text
        worst = Distinct(bank)
        for size in sizes:
            questions = [m3.tokenizer.decode(text[i * words : (i + 1) * words]) for i in range(size)]
            seen: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}

            def measure(name: str, questions: list[str] = questions, seen: dict[str, list[dict[str, float]]] = seen) -> float:
                mode, distinct = ARMS[name]
                source: Any = worst if distinct else bank
                forget_peak()
                answers = m3.generate(
                    questions,
                    source,
                    mode=mode,
                    k=m3.config.references_per_chunk,
                    max_new_tokens=tokens_out,
                    min_new_tokens=tokens_out,
                )
                timings = answers[0].timings
                made = {
                    "decode": timings.tokens_per_second,
                    "end_to_end": len(questions) * tokens_out / timings.total,
                    "first_token": timings.first_token,
                    "peak": float(peak_bytes()),
                }
                seen[name].append(made)
                return made["decode"]

            def arm(name: str, measure: Callable[[str], float] = measure) -> Callable[[], float]:
                return lambda: measure(name)

            alternate({name: arm(name) for name in ARMS}, repeats)
            turns = {name: kept[1:] for name, kept in seen.items()}  # the first warmed up
            results["batches"][str(size)] = {
                name: {
                    **{figure: statistics.median(turn[figure] for turn in turns[name]) for figure in turns[name][0]},
                    **{
                        f"{figure}_ratio": statistics.median(
                            mine[figure] / base[figure] for mine, base in zip(turns[name], turns["none"], strict=True)
                        )
                        for figure in ("decode", "end_to_end")
                    },
                    "turns": turns[name],
                }
                for name in ARMS
            }
        results["references"] = len(bank)
    return results


def tables(results: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The results as tables of text, as `memory3.evaluation.tables` shows them.

    Args:
        results: what `run` gave.
        options: what it was given.
    """
    shown = []
    for size, arms in results["batches"].items():
        rows = [
            [
                name,
                f"{found['decode']:.1f} ({found['decode_ratio']:.2f})",
                f"{found['end_to_end']:.1f} ({found['end_to_end_ratio']:.2f})",
                f"{found['first_token']:.3f}",
                f"{found['peak'] / 2**20:,.0f}" if found["peak"] else "–",
            ]
            for name, found in arms.items()
        ]
        columns = [
            "mode",
            "decoding, tokens/s (of none)",
            "end to end, tokens/s (of none)",
            "first token, s",
            "peak memory, MiB",
        ]
        shown.append({"caption": f"Batch of {size}.", "columns": columns, "rows": rows})
    k, (into, out) = results["references_read_at_once"], (options["tokens_in"], options["tokens_out"])
    notes = [
        f"{into} tokens in, {out} out, {k} references read every 64 tokens (as text: {k} in the prompt); medians of "
        f"{options['repeats']} alternating turns. "
        "Worst case: references that none had before, from disk, RAM cache off. Warm: the same questions again. "
        "Retrieval is counted. "
        "Peak memory is that of the whole process, model and bank in it."
    ]
    return {"notes": notes, "tables": shown}
