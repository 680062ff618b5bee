"""What memories are worth: how likely the answers of a user's own questions are from memory under several budgets, from text
of the same references, and from nothing. On the way, what packing costs, and how long writing takes.

A reference is encoded once, and its scores are spent under every budget. Every question reads the one reference that holds
its answer, so that what differs is the reading alone, and search has no part in it. Text, and what a bank would keep, are read
once more with another reference beside: memories of references never saw each other, and a model may be confused by several.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from memory3.checking.questions import Item
from memory3.codec import Codec, RawCodec
from memory3.codec.registry import shown
from memory3.config import Budget
from memory3.evaluation.batching import Batcher
from memory3.evaluation.intervals import aggregate_interval, interval
from memory3.llm import Memory3
from memory3.recall.held import Held
from memory3.types import Memory, Reference

__all__ = [
    "ALL",
    "NONE",
    "PACKED",
    "PACKED_TWO",
    "TEXT",
    "TEXT_TWO",
    "Arm",
    "Outcome",
    "arms_of",
    "kept_share",
    "measure",
    "summed_up",
]

NONE, TEXT, ALL, PACKED = "nothing", "text", "all pairs", "packed"
TEXT_TWO, PACKED_TWO = "text of two", "packed, of two"
#: Budgets that are tried, smallest first.
_FRACTIONS = ("1/8", "1/4", "1/2")


@dataclass(frozen=True)
class Arm:
    """A way to answer.

    Attributes:
        name: of it.
        budget: of the memories it reads; None where it reads none.
        packed: whether they were packed and decoded again.
        two: whether another reference stands beside the one that holds the answer.
        configured: whether it is the budget of the settings, before packing.
    """

    name: str
    budget: Budget | None = None
    packed: bool = False
    two: bool = False
    configured: bool = False


@dataclass
class Outcome:
    """Figures by arm, in the order of the items.

    Attributes:
        nll: negative log-likelihood of the answer, nats a token.
        right: whether the model itself would have written the answer, token by token.
        encoding, packing: seconds a reference, of every batch.
        records: of the configured budget, by reference id, packed.
    """

    nll: dict[str, list[float]]
    right: dict[str, list[float]]
    encoding: list[float]
    packing: list[float]
    records: dict[str, bytes]


def arms_of(m3: Memory3) -> list[Arm]:
    """Nothing, text, the fractions that are tried, the configured budget where it is none of them, all pairs, the configured
    budget packed, and text and that of two references. Budgets ascend.

    Args:
        m3: whose settings say the configured budget.
    """
    heads, length = m3.shape.heads, m3.config.reference_length
    budgets = {name: Budget.parse(f"adaptive:{name}") for name in _FRACTIONS} | {ALL: Budget("all")}
    own = m3.config.budget

    def kept(budget: Budget) -> tuple[int | None, int]:
        return budget.tokens_per_head(length), budget.pairs(heads, length)

    if kept(own) not in map(kept, budgets.values()):
        budgets[str(own)] = own
    ordered = sorted(budgets.items(), key=lambda each: each[1].pairs(heads, length))
    return [
        Arm(NONE),
        Arm(TEXT),
        *(Arm(name, budget, configured=kept(budget) == kept(own)) for name, budget in ordered),
        Arm(PACKED, own, packed=True),
        Arm(TEXT_TWO, two=True),
        Arm(PACKED_TWO, own, packed=True, two=True),
    ]


@torch.no_grad()
def measure(
    m3: Memory3, items: Sequence[Item], arms: Sequence[Arm], codec: Codec, tell: Callable[[int, int], None]
) -> Outcome:
    """Score every item's answer in every arm.

    Args:
        m3: who answers.
        items: each of a reference of its own.
        arms: the ways.
        codec: packs memories of the configured budget.
        tell: told how many batches of items and arms are done, of how many.
    """
    found = Outcome({arm.name: [0.0] * len(items) for arm in arms}, {arm.name: [0.0] * len(items) for arm in arms}, [], [], {})
    done = 0

    def work(batch: Sequence[int]) -> None:
        nonlocal done
        mine = [items[n] for n in batch]
        # Beside each stands the next one's; one alone has none in its batch.
        beside = [*batch[1:], batch[0] if len(batch) > 1 else (batch[0] + 1) % len(items)]
        others = [items[n].reference for n in beside]
        references = {reference.id: reference for reference in [*(item.reference for item in mine), *others]}
        made = _written(m3, references, arms, codec, found)
        for arm in arms:
            reads = [
                [item.reference.id, other.id] if arm.two else [item.reference.id]
                for item, other in zip(mine, others, strict=True)
            ]
            scores = _scored(m3, mine, reads, arm, Held(made.get(arm.name, {}), references))
            for n, (nll, right) in zip(batch, scores, strict=True):
                found.nll[arm.name][n], found.right[arm.name][n] = nll, right
            done += len(batch)
            tell(min(done, len(items) * len(arms)), len(items) * len(arms))

    batcher = Batcher(m3.batch_size)
    for _ in batcher.run(range(len(items)), work, lambda n: len(items[n].reference.token_ids)):
        pass
    return found


def _written(
    m3: Memory3, references: Mapping[str, Reference], arms: Sequence[Arm], codec: Codec, found: Outcome
) -> dict[str, dict[str, Memory]]:
    """Memories by arm and id; seconds and records are noted."""
    raw = [arm for arm in arms if arm.budget is not None and not arm.packed]
    ids, number = list(references), len(references)
    started = time.perf_counter()
    encoded = m3.encoder.encode_at(list(references.values()), [arm.budget for arm in raw if arm.budget])
    found.encoding.append((time.perf_counter() - started) / number)
    made = {arm.name: dict(zip(ids, memories, strict=True)) for arm, memories in zip(raw, encoded, strict=True)}
    own = next(arm.name for arm in raw if arm.configured)
    started = time.perf_counter()
    records = codec.encode_many(list(made[own].values()), device=m3.model.device)
    found.packing.append((time.perf_counter() - started) / number)
    found.records |= dict(zip(ids, records, strict=True))
    decoded = codec.decode([bytearray(record) for record in records], device=m3.model.device)
    return made | {arm.name: dict(zip(ids, decoded, strict=True)) for arm in arms if arm.packed}


def _scored(
    m3: Memory3, items: Sequence[Item], reads: Sequence[Sequence[str]], arm: Arm, source: Any
) -> list[tuple[float, float]]:
    """NLL of each item's answer, and whether it is what the model would have written."""
    mode = "memory" if arm.budget is not None else "none" if arm.name == NONE else "text"
    answers = [m3.prompts.ids(item.answer) for item in items]
    after = max(map(len, answers))
    rows = [
        m3.prompts.row(m3.prompts.ids(item.question), mode, [] if mode == "none" else names, source, after=after)
        for item, names in zip(items, reads, strict=True)
    ]
    scores = m3.scorer.score(rows, [[answer] for answer in answers], source if mode == "memory" else None)
    return [(score.nll, float(score.greedy)) for (score,) in scores]


def kept_share(triples: Sequence[tuple[float, float, float]]) -> float:
    """Share of what text gains over nothing that an arm gains as well: sum(nothing - arm) / sum(nothing - text).

    Args:
        triples: NLL from nothing, from text and in the arm, of every question.
    """
    nothing, text, arm = (sum(each) for each in zip(*triples, strict=True))
    return (nothing - arm) / (nothing - text) if nothing != text else float("nan")


def _figure(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "interval": interval(values)}


def summed_up(m3: Memory3, arms: Sequence[Arm], found: Outcome, codec: Codec, margin: float) -> dict[str, Any]:
    """Figures of every arm with 95% intervals, and the budget that they recommend: the smallest whose NLL lies above that of
    all pairs by no more than the margin, with the whole interval of the difference, question by question, as that of every
    larger budget does.

    Args:
        m3: whose memories they are.
        arms: that were measured.
        found: what was measured.
        codec: that packed.
        margin: share of what text gains over nothing.

    Returns:
        ``questions``, ``arms``, ``gain`` of text over nothing, ``margin`` and ``margin_nats``, ``recommended`` and
        ``configured`` (names of arms), ``second`` (what a second reference costs text, memory, and memory more than text),
        ``packing``, ``writing``.
    """
    heads, length = m3.shape.heads, m3.config.reference_length
    nothing, text, everything = (found.nll[name] for name in (NONE, TEXT, ALL))
    gain = _figure([a - b for a, b in zip(nothing, text, strict=True)])
    nats = margin * max(gain["mean"], 0.0)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        nll = found.nll[arm.name]
        row: dict[str, Any] = {"name": arm.name, "nll": _figure(nll), "right": _figure(found.right[arm.name])}
        if arm.name != NONE and gain["interval"][0] > 0:  # of no gain there is no share
            triples = list(zip(nothing, text, nll, strict=True))
            row["gain"] = {"share": kept_share(triples), "interval": aggregate_interval(triples, kept_share)}
        if arm.budget is not None and not arm.two:
            pairs = arm.budget.pairs(heads, length)
            row |= {"budget": str(arm.budget), "pairs": pairs, "bytes": _record_bytes(m3, arm, pairs, codec)}
            row["above_all"] = _figure([a - b for a, b in zip(nll, everything, strict=True)])
            row["within"] = row["above_all"]["interval"][1] <= nats
        rows.append(row)
    raw = [row for row in rows if "pairs" in row and row["name"] != PACKED]  # smallest first
    own = next(arm.name for arm in arms if arm.configured)
    best = ALL
    for row in reversed(raw):  # a smaller one that is within where a larger one is not was lucky
        if not row["within"]:
            break
        best = row["name"]
    packed, unpacked = found.nll[PACKED], found.nll[own]
    second = {
        "text": [a - b for a, b in zip(found.nll[TEXT_TWO], text, strict=True)],
        "memory": [a - b for a, b in zip(found.nll[PACKED_TWO], packed, strict=True)],
    }
    second["more"] = [a - b for a, b in zip(second["memory"], second["text"], strict=True)]
    return {
        "questions": len(nothing),
        "arms": rows,
        "gain": gain,
        "margin": margin,
        "margin_nats": nats,
        "recommended": best,
        "configured": own,
        "second": {name: _figure(values) for name, values in second.items()},
        "packing": {
            "codec": shown(codec.name),
            "bytes": codec.record_size,
            "raw_bytes": RawCodec(m3.shape).record_size,
            "costs": _figure([a - b for a, b in zip(packed, unpacked, strict=True)]),
        },
        "writing": {
            "encoding_seconds": statistics.median(found.encoding),
            "packing_seconds": statistics.median(found.packing),
        },
    }


def _record_bytes(m3: Memory3, arm: Arm, pairs: int, codec: Codec) -> int:
    return codec.record_size if arm.packed else RawCodec(replace(m3.shape, pairs=pairs)).record_size
