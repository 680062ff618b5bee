"""Time to first token: memories against the same references as text in the prompt, from the same bank, retrieval included
in both.

Prompts are counted as a user sends them: ``tokens_in`` is the closed-book prompt, template included. Memory mode reads
the prefix as a memory and so encodes fewer tokens; text mode encodes all of it and the references.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from memory3.benchmarks.measure import alternate, bank_references, ratio, temporary_bank
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "preset": "default",
    "batches": "1,8",
    "tokens_in": "128,64",
    "references": 200,
    "repeats": 5,
}


def run(model: str, preset: str, batches: str, tokens_in: str, references: int, repeats: int) -> dict[str, Any]:
    """Seconds to the first token of both modes, and text divided by memory.

    Args:
        model: name or path.
        preset: of the settings.
        batches: batch sizes between commas.
        tokens_in: lengths of prompts between commas.
        references: in the bank.
        repeats: turns measured.
    """
    m3 = Memory3.from_pretrained(model, config=preset)
    results: dict[str, Any] = {}
    with temporary_bank(m3, references) as bank:
        text = [t for r in bank_references(bank) for t in r.token_ids]
        for length in (int(n) for n in tokens_in.split(",")):
            frame = len(m3.frame.closed_book([0])) - 1
            words = max(1, length - frame)
            for size in (int(b) for b in batches.split(",")):
                questions = [m3.tokenizer.decode(text[i * words : (i + 1) * words]) for i in range(size)]
                prompt: dict[str, int] = {}

                def first_token(mode: str, questions: list[str] = questions, prompt: dict[str, int] = prompt) -> float:
                    answers = m3.generate(questions, bank, mode=mode, k=m3.config.references_per_chunk, max_new_tokens=1)
                    prompt[mode] = answers[0].usage.prompt_tokens
                    return float(answers[0].timings.first_token)

                figures = alternate({mode: partial(first_token, mode) for mode in ("text", "memory", "none")}, repeats)
                results[f"{length} in, batch {size}"] = {
                    "seconds": ratio(figures, "text", "memory"),
                    "closed_book_seconds": sorted(figures["none"])[repeats // 2],
                    "prompt_tokens": prompt,
                }
    return results
