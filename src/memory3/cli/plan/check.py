"""``memory3 plan --check``: the planner's predictions against this machine, with the real model and a real bank."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.text import Text

from memory3.cli.loading import load_model
from memory3.cli.output import err
from memory3.cli.plan.capacity import chosen_machine
from memory3.cli.plan.views import PlanSubject, View, columns, digits
from memory3.codec import registry
from memory3.config import MemoryConfig
from memory3.planner.capacity import CorpusSize, plan

__all__ = ["check"]

#: Predictions are to be within this part of what is measured.
CLOSE = 0.25
#: References of the bank that is written, repeats, and tokens that are decoded: no more than a chunk, so that none of them
#: recalls.
_REFERENCES, _REPEATS, _TOKENS = 96, 9, 60


def check(asked: PlanSubject, written: MemoryConfig) -> View:
    """Measure what was predicted.

    That is references written per second, bytes on disk, a recall, and tokens per second with memory and without.

    ``written``: the settings before a codec was planned for them. Where that is ``"auto"`` the prediction is made for the
    codec that a bank gets here: the plan's own, once it is fitted.
    """
    from memory3.bank import Bank
    from memory3.bank.codebooks import new_codec
    from memory3.benchmarks.measure import Distinct, bank_references, python_documents

    m3 = load_model(asked.name, written)
    config = asked.config.replace(codec=new_codec(m3, None)[0].name)
    note = (
        ""
        if config.codec == asked.config.codec
        else f", codec {registry.shown(config.codec)}: {registry.shown(asked.config.codec)} is not fitted to this model"
    )
    documents = python_documents(m3, _REFERENCES)
    references = [r for document in documents for r in m3.split(document)]
    tokens = sum(len(r.token_ids) for r in references) / len(references)
    length = sum(len(r.text.encode()) for r in references) / len(references)
    machine = chosen_machine(asked, None, True, None, tokens)
    made = plan(CorpusSize(len(references), tokens, length), asked.shape, config, machine, embedder=asked.embedder)
    measured: dict[str, float] = {}
    with (
        err.status("writing and reading a bank"),
        tempfile.TemporaryDirectory(prefix="memory3-check-") as folder,
        Bank.open(Path(folder) / "bank", m3, embedder=asked.embedder, cache_bytes=0) as bank,
    ):
        bank.embedder.encode(["warm up"])
        m3.encode(references[: m3.batch_size])
        report = bank.write(documents)
        measured["references/s"] = report.references / report.seconds
        bank.compact()
        measured["bytes a reference"] = bank.pin().snapshot.bytes / len(bank)
        source, chunk = Distinct(bank), asked.config.chunk_length
        text = [m3.tokenizer.decode(list(r.token_ids)[:chunk]) for r in bank_references(bank)]
        k = asked.config.references_per_chunk
        measured["recall, s"] = statistics.median(_recall(m3, source, text[n], k) for n in range(_REPEATS))
        plain, reading = [], []
        for _ in range(_REPEATS // 2):
            plain.append(_decode(m3, None))
            reading.append(_decode(m3, source))
    # While a chunk is decoded nothing is recalled; then it is, once.
    step = 1 / statistics.median(reading) + measured["recall, s"] / asked.config.chunk_length
    measured["tokens/s"], measured["tokens/s with memory"] = statistics.median(plain), 1 / step
    measured["of them lost"] = 1 - measured["tokens/s with memory"] / measured["tokens/s"]
    predicted = {
        "references/s": made.references_per_second,
        "bytes a reference": made.disk / made.references,
        "recall, s": made.recall.seconds,
        "tokens/s": made.plain_tokens_per_second,
        "tokens/s with memory": made.tokens_per_second,
        "of them lost": made.lost,
    }
    described = columns("", "predicted", "measured", "ratio", "")
    value: dict[str, Any] = {}
    for name, figure in measured.items():
        ratio = predicted[name] / figure if figure else math.inf
        close = 1 / (1 + CLOSE) <= ratio <= 1 + CLOSE
        value[name] = {"predicted": predicted[name], "measured": figure, "ratio": ratio, "close": close}
        described.add_row(name, digits(predicted[name]), digits(figure), digits(ratio), "" if close else "not within 25%")
    return "check", value, [Text(f"\n{len(references)} references of {tokens:.0f} tokens on average{note}", "bold"), described]


def _recall(m3: Any, source: Any, query: str, k: int) -> float:
    """Seconds to find and read what a chunk reads, as tensors."""
    started = time.perf_counter()
    found = [hit.reference_id for hit in source.search([query], k)[0]]
    memories = dict(zip(found, source.memories(found, use_cache=False), strict=True))
    m3.encoder.lay_out([found], memories, [0], [0])
    return time.perf_counter() - started


def _decode(m3: Any, source: Any) -> float:
    """Tokens per second after the first."""
    options = {"mode": "none"} if source is None else {}
    answer = m3.generate(
        "Tell me about the Python language.", source, max_new_tokens=_TOKENS, min_new_tokens=_TOKENS, **options
    )
    return float(answer.timings.tokens_per_second)
