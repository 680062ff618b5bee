"""What share of answers stays when some references have memories: the most useful, random ones, the longest, the shortest.

    python -m research.quality.usefulness --data DIR --split test --out FILE.json

The pool: references of ``--asked`` documents with questions, of ``--unasked`` documents that none of them is about, and
``--boilerplate`` footers, notices and facts that any model knows. Half of the questions are a usage log, by what search finds
for each (as `memory3 ask` reads: five references, gap 0.1). The other half is asked. A question reads the memory of the
reference that holds its answer if that is kept, otherwise nothing. So each is answered twice, and every choice of references
follows from that:

    share of answers = sum of correct (memory where kept, else nothing) / sum of correct (memory)
    share of gain    = sum of gain where kept / sum of gain,    gain = NLL nothing - NLL memory, nats a token

Intervals are 95%, of documents drawn anew. ``FILE.gains`` and ``FILE.answers`` keep what is measured.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory3.bank.embedder import Embedder
from memory3.evaluation.intervals import aggregate_interval
from memory3.evaluation.task import data_records
from memory3.files import write_atomically
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_ADAPTED, DEFAULT_EMBEDDER
from memory3.planner.usage import DocumentUsage
from memory3.recall.held import Held
from memory3.types import Document, Memory, Reference
from memory3.usefulness import QUESTIONS, Gain, Gains, most_useful, usage_of
from research.quality.ways import NEW, figures, say

#: Random orders whose mean is the control.
_ORDERS = 20
_SHARES = (0.25, 0.5, 0.75)
_KNOWN = (
    "The capital of France is the city of Paris, and the capital of Italy is the city of Rome.",
    "There are seven days in a week, and the first day of the week is often said to be Monday.",
    "Water is made of two parts of hydrogen and one of oxygen, and it boils at a temperature of 100 degrees.",
    "The Earth goes around the Sun once in a year, and the Moon goes around the Earth once in a month.",
)
_EMPTY = ("", "See also", "Contents", "References", "Main article", "[edit]", "Page 4", "Back to top")
_FOOTERS = (
    "This page was last edited on {day} {month} {year}, at {hour}:{minute} by the user {name}.",
    "Text is available under the licence of the site {name}, version {hour}.{day}; additional terms may apply.",
    "Copyright (c) {year} by the {name} Group. All rights reserved. Please read our terms before you use this site.",
    "We use cookies to improve your experience. Read the policy of {month} {year} or write to the {name} Office.",
)
_NAMES = ("Harlow", "Benton", "Quill", "Marsden", "Tovey", "Ashby", "Corran", "Delling")
_MONTHS = ("January", "March", "May", "July", "September", "November")


def boilerplate(number: int, seed: int) -> list[Document]:
    """Footers, near-empties and facts that any model knows, in turn."""
    rng, found = random.Random(seed), []
    for n in range(number):
        kind = n % 4
        text = _KNOWN[n // 4 % len(_KNOWN)] if kind == 0 else _EMPTY[1 + n // 4 % (len(_EMPTY) - 1)]
        if kind > 1:
            text = rng.choice(_FOOTERS).format(
                day=rng.randint(1, 28),
                month=rng.choice(_MONTHS),
                year=rng.randint(2001, 2024),
                hour=rng.randint(10, 23),
                minute=rng.randint(10, 59),
                name=rng.choice(_NAMES),
            )
        found.append(Document(f"boilerplate-{n}", text))
    return found


class Pool:
    """References, the questions of the log, and those that are asked."""

    def __init__(self, m3: Memory3, given: argparse.Namespace) -> None:
        folder, rng = Path(given.data), random.Random(given.seed)
        texts = {str(record["id"]): record["text"] for record in data_records(folder, "kb")[0]}
        by_document: dict[str, list[dict[str, Any]]] = {}
        for record in data_records(folder, given.split)[0]:
            if len(record["references"]) == 1 and str(record["references"][0]) in texts:
                by_document.setdefault(str(record["references"][0]), []).append(record)
        names = sorted(name for name, some in by_document.items() if len(some) >= 2)
        rng.shuffle(names)
        asked = names[: given.asked]
        others = sorted(set(texts) - set(asked))
        rng.shuffle(others)
        documents = [Document(name, texts[name]) for name in [*asked, *others[: given.unasked]]]
        documents += boilerplate(given.boilerplate, given.seed)
        self.references = [reference for document in documents for reference in m3.split(document)]
        self.log: list[str] = []
        self.items: list[dict[str, Any]] = []
        for name in asked:
            records = by_document[name]
            rng.shuffle(records)
            mine = [reference for reference in self.references if reference.document_id == name]
            for n, record in enumerate(records[: given.questions]):
                answers = [answer for answer in record["answers"] if answer.strip()]
                holds = next((r for r in mine if any(answer in r.text for answer in answers)), None)
                if n % 2 == 0:
                    self.log.append(record["question"])
                elif holds is not None:
                    self.items.append({"question": record["question"], "answers": answers, "reference": holds})

    def usage(self, m3: Memory3) -> dict[str, float]:
        """Of every reference, by what search finds for the questions of the log."""
        embedder = Embedder.load(DEFAULT_EMBEDDER)
        vectors = embedder.encode([reference.text for reference in self.references])
        recalls: Counter[str] = Counter()
        for scores in embedder.encode(self.log) @ vectors.T:
            top = np.argsort(-scores)[: m3.config.references_per_chunk]
            recalls.update(self.references[n].id for n in top if scores[n] >= scores[top[0]] - m3.config.score_gap)
        return usage_of([DocumentUsage(id_, count) for id_, count in sorted(recalls.items())], self.references)[0]


def answered(m3: Memory3, pool: Pool, mode: str, given: argparse.Namespace) -> dict[str, list[Any]]:
    """Figures of every question that is asked, from the memory of its reference or from nothing."""
    kept = Path(f"{given.out}.answers")
    mark = {**_mark(given), "mode": mode}
    for line in kept.read_text().splitlines() if kept.exists() else ():
        row = json.loads(line)
        if row["mark"] == mark:
            return dict(row["figures"])
    say(f"answering {len(pool.items)} questions from {mode}")
    references = {item["reference"].id: item["reference"] for item in pool.items}
    memories: dict[str, Memory] = {}
    if mode == "memory":
        some = sorted(references.values(), key=lambda reference: len(reference.token_ids))
        for start in range(0, len(some), given.batch):
            part = some[start : start + given.batch]
            memories |= dict(zip((reference.id for reference in part), m3.encode(part), strict=True))
    source = Held(memories, references)
    wanted = [m3.prompts.ids(item["answers"][0]) for item in pool.items]
    after = max(NEW, *map(len, wanted))
    rows = [
        m3.prompts.row(
            m3.prompts.ids(item["question"]), mode, [item["reference"].id] if mode == "memory" else [], source, after=after
        )
        for item in pool.items
    ]
    found = figures(m3, rows, pool.items, wanted, source if mode == "memory" else None, given.batch, True)
    with kept.open("a") as file:
        file.write(json.dumps({"mark": mark, "figures": found}) + "\n")
    return found


def _mark(given: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(given).items() if key not in ("out", "batch")}


def orders(
    references: Sequence[Reference], gains: Mapping[str, Gain], usage: Mapping[str, float]
) -> dict[str, list[list[str]]]:
    """Ids by each rule, first those that are kept first; several lists of a rule are averaged."""
    ids = [reference.id for reference in references]
    length = {reference.id: float(len(reference.token_ids)) for reference in references}
    shuffled = [random.Random(seed).sample(sorted(ids), len(ids)) for seed in range(_ORDERS)]
    one = {id_: Gain(1.0, 1) for id_ in ids}
    return {
        "generated questions": [most_useful(gains, {}, len(ids))],
        "usage log x gain": [most_useful(gains, usage, len(ids))],
        "usage log alone": [most_useful(one, usage, len(ids))],
        "random": shuffled,
        "longest": [most_useful(one, length, len(ids))],
        "shortest": [most_useful(one, length, len(ids))[::-1]],
    }


def report(pool: Pool, ranked: Mapping[str, list[list[str]]], memory: Any, nothing: Any) -> dict[str, Any]:
    """Shares that stay, by rule and by how many memories are kept, each beside random."""
    names = [item["reference"].id for item in pool.items]
    correct, closed = np.asarray(memory["contains"]), np.asarray(nothing["contains"])
    gain = np.asarray(nothing["nll"]) - np.asarray(memory["nll"])
    documents = [item["reference"].document_id for item in pool.items]
    groups = [[n for n, name in enumerate(documents) if name == each] for each in sorted(set(documents))]

    def share(kept: np.ndarray, what: str, drawn: Sequence[Sequence[int]]) -> float:
        n = np.asarray([k for group in drawn for k in group])
        if what == "answers":
            return float((kept * correct + (1 - kept) * closed)[n].sum() / correct[n].sum())
        return float((kept * gain)[n].sum() / gain[n].sum()) if what == "gain" else float(kept[n].mean())

    found: dict[str, Any] = {}
    for part in _SHARES:
        number = round(part * len(pool.references))
        chance = _kept(ranked["random"], names, number)
        for rule, lists in ranked.items():
            kept = _kept(lists, names, number)
            row: dict[str, Any] = {"kept": number}
            for what in ("answers", "gain", "questions"):
                mine, theirs = partial(share, kept, what), partial(share, chance, what)
                row[what] = {
                    "share": mine(groups),
                    "interval": aggregate_interval(groups, mine),
                    "minus random": aggregate_interval(groups, partial(_less, mine, theirs)),
                }
            found[f"{part:.0%} {rule}"] = row
    return found


def _less(mine: Callable[[Any], float], theirs: Callable[[Any], float], drawn: Sequence[Sequence[int]]) -> float:
    return mine(drawn) - theirs(drawn)


def _kept(lists: Sequence[Sequence[str]], names: Sequence[str], number: int) -> np.ndarray:
    """Of every question, in what part of the orders its reference is kept."""
    return np.mean([[name in chosen for name in names] for chosen in (set(each[:number]) for each in lists)], axis=0)


@torch.no_grad()
def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_ADAPTED)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--data", required=True, help="folder of kb, dev and test")
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--asked", type=int, default=60, help="documents with questions")
    parser.add_argument("--questions", type=int, default=4, help="of a document at most, half of them for the log")
    parser.add_argument("--unasked", type=int, default=60)
    parser.add_argument("--boilerplate", type=int, default=40)
    parser.add_argument("--generated", type=int, default=QUESTIONS, help="cloze questions of a reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    m3 = Memory3.from_pretrained(given.model, dtype=given.dtype or None, batch_size=given.batch)
    pool = Pool(m3, given)
    say(f"{len(pool.references)} references, {len(pool.log)} questions in the log, {len(pool.items)} asked")
    nothing, memory = answered(m3, pool, "none", given), answered(m3, pool, "memory", given)
    gains = Gains(m3, Path(f"{given.out}.gains"), questions=given.generated, seed=given.seed).of(
        pool.references, lambda done, total: say(f"gains {done} of {total}")
    )
    usage = pool.usage(m3)
    asked = {item["reference"].document_id for item in pool.items}
    kinds: dict[str, list[float]] = {"asked": [], "unasked": [], "boilerplate": []}
    for reference in pool.references:
        kind = "boilerplate" if reference.document_id.startswith("boilerplate-") else "unasked"
        kinds["asked" if reference.document_id in asked else kind].append(gains[reference.id].nats)
    result: dict[str, Any] = {
        "settings": _mark(given),
        "references": {kind: len(values) for kind, values in kinds.items()},
        "gain of generated questions": {kind: float(np.mean(values)) for kind, values in kinds.items()},
        "without a question": sum(not gain.questions for gain in gains.values()),
        "log": len(pool.log),
        "asked": len(pool.items),
        "correct": {"memory": float(np.mean(memory["contains"])), "nothing": float(np.mean(nothing["contains"]))},
        "nll": {"memory": float(np.mean(memory["nll"])), "nothing": float(np.mean(nothing["nll"]))},
        "shares": report(pool, orders(pool.references, gains, usage), memory, nothing),
    }
    write_atomically(Path(given.out), json.dumps(result, indent=1) + "\n")
    for name, row in result["shares"].items():
        cells = [
            "{} {:.2f} [{:.2f}, {:.2f}] ({:+.2f}..{:+.2f})".format(
                w, row[w]["share"], *row[w]["interval"], *row[w]["minus random"]
            )
            for w in ("answers", "gain", "questions")
        ]
        print(f"{name}: " + "; ".join(cells))


if __name__ == "__main__":
    main()
