"""Answers to questions over a knowledge base in several presets, from one set of questions: `memory3.evaluation` with a
bank of each preset.

The data folder holds ``kb.jsonl[.gz]`` and ``<split>.jsonl[.gz]`` as `memory3.evaluation.qa` describes them. ``modes``
are those of ``memory3 eval``: ``gold`` and ``gold_text`` read the one reference that holds the answer, ``memory`` and
``text`` what retrieval finds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.benchmarks.measure import progress
from memory3.config import MemoryConfig
from memory3.evaluation.folder import ResultsFolder
from memory3.evaluation.modes import parse_modes
from memory3.evaluation.qa import QaTask
from memory3.evaluation.runner import EvaluationPlan, run_task
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL
from memory3.text.readers import read_documents

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "data": "",
    "split": "dev",
    "model": DEFAULT_MODEL,
    "presets": "full,default,paper",
    "modes": "none,gold_text,gold,text,memory,random",
    "questions": 200,
    "k": 5,
    "max_new_tokens": 32,
    "seed": 0,
    "out": "",
}


def run(
    data: str,
    split: str,
    model: str,
    presets: str,
    modes: str,
    questions: int,
    k: int,
    max_new_tokens: int,
    seed: int,
    out: str,
) -> dict[str, Any]:
    """Each preset's figures. With ``out=FOLDER`` every answer is kept there, and what is there is not measured again."""
    folder = Path(data or ".")
    task = QaTask.load(folder, split, knowledge="", max_new_tokens=max_new_tokens)
    plan = EvaluationPlan(parse_modes(modes.split(","), k), limit=questions, seed=seed, threshold=None)
    loaded = Memory3.from_pretrained(model)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="memory3-bench-") as temporary, ResultsFolder(out or temporary) as kept:
        for name in progress(presets.split(","), "presets"):
            m3 = Memory3(loaded.model, loaded.tokenizer, MemoryConfig.preset(name), name=loaded.name)
            with Bank.open(Path(temporary) / name, m3) as bank:
                bank.write(read_documents(*sorted(folder.glob("kb.jsonl*"))), cold=True)
                results[name] = {"pairs_per_reference": m3.shape.pairs, **run_task(task, m3, bank, plan, kept)}
    return results
