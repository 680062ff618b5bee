"""The front: how well a memory answers, against the bytes it takes on disk.

Every point is a selector, a budget, and optionally a codec and memory layers: ``reconstruction/adaptive:1440``, ``attention/uniform:8/raw/first_half``. The knowledge
base is encoded once (`memory3.benchmarks.dense`) and every point is cut from that. Lines beside them: no memory, the same references as text, all their
key-values, and the oracle, which keeps what the question itself attends to.

The data folder is that of `memory3.evaluation.qa`. Questions are drawn by ``seed``. Answer NLL is of all points; answers are generated for the
points named in ``answers``, and for the lines. ``gold`` reads the one reference that holds the answer, ``retrieved`` what search finds.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memory3.bank import Bank
from memory3.benchmarks.dense import MARK, DenseStore, Sparse
from memory3.benchmarks.measure import progress
from memory3.calibration.codec import wanted_references
from memory3.codec import CodedCodec, RawCodec, fit
from memory3.config import MemoryConfig
from memory3.errors import ConfigError, InputError
from memory3.evaluation.intervals import interval
from memory3.evaluation.metrics import contains, exact_match, f1
from memory3.evaluation.task import read_records
from memory3.generate import Memory3
from memory3.maths.selectors import SELECTORS, selector
from memory3.model.load import DEFAULT_MODEL
from memory3.text.readers import read_documents
from memory3.values import MemoryShape

__all__ = ["OPTIONS", "parse_point", "run", "summary"]

OPTIONS: dict[str, Any] = {
    "data": "",
    "split": "dev",
    "model": DEFAULT_MODEL,
    "points": "reconstruction/adaptive:1440,reconstruction/adaptive:720,reconstruction/adaptive:360,attention/adaptive:720,"
    "random/adaptive:720,first/adaptive:720,attention/uniform:8/raw/first_half",
    "answers": "",
    "settings": "gold,retrieved",
    "questions": 500,
    "k": 0,
    "max_new_tokens": 32,
    "batch": 20,
    "seed": 0,
    "dense": "",
    "items": "",
}

#: A point's selector that needs the question.
ORACLE = "oracle"
#: What a point says, in order; what is left out is the default's.
_PARTS = ("selector", "budget", "codec", "layers")


def parse_point(text: str) -> MemoryConfig:
    """``SELECTOR/BUDGET[/CODEC[/LAYERS]]`` as settings. ConfigError: it does not read so."""
    parts = text.split("/")
    # a budget may be a fraction, adaptive:1/8
    if len(parts) > 2 and parts[2].isdigit():
        parts[1:3] = [f"{parts[1]}/{parts[2]}"]
    if not 2 <= len(parts) <= len(_PARTS):
        raise ConfigError(f"point {text!r}: write SELECTOR/BUDGET, SELECTOR/BUDGET/CODEC or SELECTOR/BUDGET/CODEC/LAYERS")
    return MemoryConfig().replace(**dict(zip(_PARTS, parts, strict=False)))


class _Front:
    """What all arms share: the model, questions, and where memories come from."""

    def __init__(
        self, m3: Memory3, bank: Bank, store: DenseStore, items: list[dict[str, Any]], options: Mapping[str, Any]
    ) -> None:
        self.m3, self.bank, self.store, self.items, self.options = m3, bank, store, items, options
        self.rows: list[dict[str, Any]] = []

    def arm(self, name: str, mode: str, source: Any, key: str | None, generate: bool) -> dict[str, list[float]]:
        """Figures of every question: NLL, and of generated answers whether they contain an answer, equal one, and F1."""
        figures: dict[str, list[float]] = {"nll": []}
        for start in progress(range(0, len(self.items), self.options["batch"]), name):
            group = self.items[start : start + self.options["batch"]]
            questions, named = [item["question"] for item in group], [item[key] for item in group] if key else None
            likely = self.m3.log_likelihood(
                questions, [item["answers"][0] for item in group], source, mode=mode, references=named
            )
            figures["nll"] += [-total / tokens for total, tokens in likely]
            if not generate:
                continue
            new = self.options["max_new_tokens"]
            said = [a.text for a in self.m3.generate(questions, source, mode=mode, references=named, max_new_tokens=new)]
            for item, text in zip(group, said, strict=True):
                answers = item["answers"]
                exact = exact_match(text, answers)
                for metric, value in (("contains", contains(text, answers)), ("exact", exact), ("f1", f1(text, answers))):
                    figures.setdefault(metric, []).append(value)
                self.rows.append({"arm": name, "id": item["id"], "text": text})
        return figures

    def oracle(self, config: MemoryConfig, key: str) -> tuple[Sparse, str]:
        """Memories that keep what the question attends to, and the key of their names: each belongs to one question."""
        m3, scores, mine = self.m3, {}, f"{key}, oracle"
        for item in self.items:
            item[mine] = [f"{name}{MARK}{item['id']}" for name in item[key]]
        asked = sorted(((i, n) for i in self.items for n in range(len(i[key]))), key=lambda pair: len(pair[0]["question"]))
        for start in progress(range(0, len(asked), m3.batch_size), f"oracle, {key}"):
            part = asked[start : start + m3.batch_size]
            references = [self.bank.references([item[key][n]])[0] for item, n in part]
            questions = [m3.question_tokens(item["question"]) for item, _ in part]
            dense = m3.encoder.dense(references, [selector("reconstruction")], asked=questions)
            for row, (item, n), length in zip(dense.scores[0], part, dense.lengths.tolist(), strict=True):
                scores[item[mine][n]] = row[:, :, :length].cpu()
        return Sparse(self.store, config, oracle=scores), mine

    def codec(self, config: MemoryConfig, shape: MemoryShape) -> CodedCodec:
        """Fitted to memories of references drawn from the whole knowledge base, as `memory3 write --codec` does."""
        plain, names = Sparse(self.store, config.replace(codec="raw")), self.store.names
        drawn = random.Random(0).sample(names, min(len(names), wanted_references(config.codec, shape)))
        memories = (plain.cut(name) for name in progress(drawn, f"fitting {config.codec}"))
        positions = config.reference_length
        return CodedCodec(fit(config.codec, memories, shape, fingerprint="", positions=positions, angles=self.m3.angles))


def read_items(bank: Bank, options: Mapping[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Questions whose answer stands in a reference of their document, with ids ``gold`` (that one) and ``retrieved``; and the share that retrieval finds.

    Of ``options``: data, split, questions, k, seed.
    """
    questions, _ = read_records(Path(options["data"]), options["split"])
    random.Random(options["seed"]).shuffle(questions)
    sizes = {entry.id: entry.references for entry in bank.documents()}
    items: list[dict[str, Any]] = []
    for question in questions:
        mine = [f"{doc}#{n}" for doc in question["references"] for n in range(sizes.get(doc, 0))]
        gold = [r.id for r in bank.references(mine) if any(a in r.text for a in question["answers"])]
        if gold:
            items.append({**question, "gold": gold[:1]})
        if len(items) == options["questions"]:
            break
    found = bank.search([item["question"] for item in items], options["k"])
    for item, hits in zip(items, found, strict=True):
        item["retrieved"] = [hit.reference_id for hit in hits]
    return items, float(np.mean([item["gold"][0] in item["retrieved"] for item in items]))


def summary(figures: Mapping[str, Sequence[float]], beside: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Means with 95% bootstrap intervals; differences from the arms beside it, question by question."""
    said: dict[str, Any] = {}
    for metric, values in figures.items():
        said[metric] = {"mean": float(np.mean(values)), "interval": interval(values)}
        for name, other in beside.items():
            if metric in other:
                difference = [a - b for a, b in zip(values, other[metric], strict=True)]
                said[metric][f"minus_{name}"] = {"mean": float(np.mean(difference)), "interval": interval(difference)}
    return said


def run(**options: Any) -> dict[str, Any]:
    """Every arm's bytes and figures; ``items=FILE`` keeps every answer, ``dense=DIR`` the encoded knowledge base."""
    kb = next(iter(sorted(Path(options["data"]).glob("kb.jsonl*"))), None) if options["data"] else None
    if kb is None:
        raise InputError(f"data={options['data']!r} is not a folder with kb.jsonl: pass data=FOLDER")
    points = {text: parse_point(text) for text in options["points"].split(",")}
    generated = [text for text in options["answers"].split(",") if text]
    settings = options["settings"].split(",")
    wrong = [name for name in settings if name not in ("gold", "retrieved")] + [
        name for name in generated if name not in points
    ]
    if wrong:
        raise InputError(f"{wrong[0]!r}: settings are gold and retrieved, answers are some of the points")
    m3 = Memory3.from_pretrained(options["model"], config="full", batch_size=8)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="memory3-front-") as temporary:
        folder = Path(options["dense"] or temporary)
        with Bank.open(folder / "bank", m3) as bank:
            bank.write(read_documents(kb), cold=True)
            items, recall = read_items(bank, {**options, "k": options["k"] or m3.config.references_per_chunk})
            results |= {"questions": len(items), "retrieval_recall": recall}
            store = DenseStore(folder / "dense", m3, bank)
            wanted = dict.fromkeys(name for item in items for key in settings for name in item[key])
            selectors = {config.selector for config in points.values() if config.selector in SELECTORS} - {"random", "first"}
            store.fill(bank.references(list(wanted)), [selector(name) for name in sorted(selectors)])
            front = _Front(m3, bank, store, items, options)
            none = front.arm("closed book", "none", None, None, bool(generated))
            results["closed book"] = summary(none, {})
            for key in settings:
                results[key] = _setting(front, key, points, generated, none)
    if options["items"]:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in front.rows)
        Path(options["items"]).write_text("".join(lines), encoding="utf-8")
    return results


def _setting(
    front: _Front, key: str, points: Mapping[str, MemoryConfig], generated: Sequence[str], none: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """All arms of one setting."""
    full = Sparse(front.store, MemoryConfig.preset("full"))
    text = front.arm(f"text, {key}", "text", front.bank, key, bool(generated))
    beside = {"text": text, "none": none}
    said = {"text": summary(text, {"none": none})}
    figures = front.arm(f"all pairs, {key}", "memory", full, key, bool(generated))
    said["all pairs"] = {"bytes": RawCodec(full.shape).record_size, **summary(figures, beside)}
    for name, config in points.items():
        if config.selector == ORACLE:
            source, names = front.oracle(config, key)
        else:
            source, names = Sparse(front.store, config), key
        if config.codec != "raw":
            source.codec = front.codec(config, source.shape)
        figures = front.arm(f"{name}, {key}", "memory", source, names, name in generated)
        size = (source.codec or RawCodec(source.shape)).record_size
        said[name] = {"bytes": size, "pairs": source.shape.pairs, **summary(figures, beside)}
        for metric in figures:
            above, gain = (
                said[name][metric]["minus_none"]["mean"],
                said["text"].get(metric, {}).get("minus_none", {}).get("mean"),
            )
            said[name][metric]["gain"] = above / gain if gain else None
    return said
