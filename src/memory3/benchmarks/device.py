"""A device that reads a bank over the network (the paper's end-side deployment): tokens per second against no memory.

The device has weights, codebook and an empty cache; a server in another process has the bank and its index. Between them is
a link of so many megabytes a second and so many milliseconds for a round trip (`memory3.benchmarks.link`). Every question
is new, and asked with an empty cache, so that whatever it reads crosses the link. Arms take turns; figures are medians over
the turns, and ratios are taken turn by turn. ``folder`` is the same bank on the device's own disk: what is lost there, no
network could give back.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.bank.remote import RemoteBank
from memory3.benchmarks.beside import beside
from memory3.benchmarks.measure import alternate, bank_references, python_documents
from memory3.config import MemoryConfig
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL
from memory3.recall.retrieval import EVERYTHING

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "preset": "default",
    "bank": "",
    "references": 400,
    "megabytes_per_second": "20,5,1",
    "delay_ms": 30.0,
    "tokens_in": 32,
    "tokens_out": 128,
    "repeats": 7,
}

#: The paper's device kept 27.6 of 44.36 tokens a second.
PAPER = 27.6 / 44.36


def run(
    model: str,
    preset: str,
    bank: str,
    references: int,
    megabytes_per_second: str,
    delay_ms: float,
    tokens_in: int,
    tokens_out: int,
    repeats: int,
) -> dict[str, Any]:
    """For each link: medians of tokens per second, seconds to the first token, bytes that crossed it, ratios to no memory.

    Args:
        model: name or path.
        preset: of the settings.
        bank: folder of a bank, which is read with its own model and settings; empty: one is made of Python's language
            reference, and removed.
        references: of the bank that is made.
        megabytes_per_second: of the links, between commas; a megabyte is 1,000,000 bytes.
        delay_ms: of a round trip.
        tokens_in: of a question.
        tokens_out: of an answer.
        repeats: turns measured.
    """
    config = MemoryConfig.preset(preset)
    if bank:
        manifest = Bank.describe(bank)
        model, config = manifest.model, manifest.config
    # As the paper reads: all that are found, not only those that are nearly as near as the first.
    m3 = Memory3.from_pretrained(model, config=config.replace(score_gap=EVERYTHING))
    rates = [float(rate) for rate in megabytes_per_second.split(",")]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory3-device-")))
        place = Path(bank) if bank else folder / "bank"
        with Bank.open(place, m3, create=not bank) as here:
            if not bank:
                here.write(python_documents(m3, references))
            questions, count, size = _questions(m3, here, tokens_in), len(here), here.manifest.record_bytes
        port = stack.enter_context(beside("memory3", "serve", "--bank", f"docs={place}", "--port", 0, "--json"))
        links = {
            f"{rate:g} MB/s": stack.enter_context(beside("memory3.benchmarks.link", port, rate * 1e6, delay_ms / 1e3))
            for rate in rates
        }
        turns: dict[str, list[dict[str, float]]] = {"none": [], "folder": [], **{name: [] for name in links}}
        caches = iter(range(1 << 30))

        def ask(name: str) -> float:
            question = questions[len(turns[name]) % len(questions)]
            if name == "none":
                turns[name].append(_timed(m3, question, None, tokens_out))
            elif name == "folder":
                with Bank.open(place, m3, cache_bytes=0) as local:
                    _ = local.embedder
                    turns[name].append(_timed(m3, question, local, tokens_out))
            else:
                url = f"http://127.0.0.1:{links[name]}/banks/docs"
                with RemoteBank.open(url, m3, folder=folder / str(next(caches))) as remote:
                    turns[name].append(_timed(m3, question, remote, tokens_out))
            return turns[name][-1]["end_to_end"]

        def arm(name: str) -> Callable[[], float]:
            return lambda: ask(name)

        alternate({name: arm(name) for name in turns}, repeats)
        measured = {name: kept[1:] for name, kept in turns.items()}  # the first warmed up
        return {
            "references": count,
            "record_bytes": size,
            "references_read_at_once": m3.config.references_per_chunk,
            "paper_ratio": PAPER,
            "arms": {name: _figures(each, measured["none"]) for name, each in measured.items()},
        }


def _questions(m3: Memory3, bank: Bank, tokens: int) -> list[str]:
    """Stretches of the bank's texts, each of another reference: what nobody has asked before."""
    texts = [reference.token_ids for reference in bank_references(bank)]
    step = 37  # neighbours are about the same things
    order = [texts[n * step % len(texts)] for n in range(len(texts))]
    return [m3.tokenizer.decode(ids[:tokens]) for ids in order if len(ids) >= tokens]


def _timed(m3: Memory3, question: str, bank: Any, tokens: int) -> dict[str, float]:
    before = getattr(bank, "received_bytes", 0)
    answer = m3.generate(
        question,
        bank,
        mode="none" if bank is None else "memory",
        max_new_tokens=tokens,
        min_new_tokens=tokens,
    )
    return {
        "decode": answer.timings.tokens_per_second,
        "end_to_end": tokens / answer.timings.total,
        "first_token": answer.timings.first_token,
        "received_bytes": float(getattr(bank, "received_bytes", 0) - before),
        "references": float(answer.usage.references),
    }


def _figures(turns: list[dict[str, float]], none: list[dict[str, float]]) -> dict[str, Any]:
    medians = {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}
    ratios = {
        f"{figure}_ratio": statistics.median(mine[figure] / base[figure] for mine, base in zip(turns, none, strict=True))
        for figure in ("decode", "end_to_end")
    }
    return {**medians, **ratios, "turns": turns}
