"""Answers to questions over a knowledge base: memory against text, no memory and random memories, from one bank.

The data folder holds ``kb.jsonl[.gz]`` (id, text) and ``<split>.jsonl[.gz]`` (question, answers[], references[] as ids of the knowledge base). Two settings: the one
reference that holds the answer ("gold"), and what retrieval finds ("retrieved"). Random memories: as many references of other documents, drawn once per
question. Per arm: share of generated answers that contain an answer, token F1, and mean negative log-likelihood per token of the first
reference answer, each with its 95% bootstrap interval; and the paired difference from text.
"""

from __future__ import annotations

import collections
import gzip
import json
import random
import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memory3.bank import Bank
from memory3.benchmarks.measure import interval, progress
from memory3.config import MemoryConfig
from memory3.errors import InputError
from memory3.generate import Memory3
from memory3.model.load import DEFAULT_MODEL
from memory3.text.readers import read_documents

__all__ = ["OPTIONS", "contains", "f1", "normalise", "read_items", "run"]

OPTIONS: dict[str, Any] = {
    "data": "",
    "split": "dev",
    "model": DEFAULT_MODEL,
    "presets": "full,default,paper",
    "settings": "gold,retrieved,random",
    "questions": 200,
    "k": 5,
    "max_new_tokens": 32,
    "batch": 10,
    "seed": 0,
    "items": "",
}

#: Which text arm each setting is compared with.
_AGAINST = {"gold": "gold", "retrieved": "retrieved", "random": "retrieved"}


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and doubled spaces: SQuAD's rule."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def contains(text: str, answers: Sequence[str]) -> float:
    """1.0 when one of the answers stands in the text as whole words."""
    words = f" {normalise(text)} "
    return float(any(normalise(a) and f" {normalise(a)} " in words for a in answers))


def f1(text: str, answers: Sequence[str]) -> float:
    """Best token F1 over the answers."""
    best, said = 0.0, normalise(text).split()
    for answer in answers:
        wanted = normalise(answer).split()
        common = sum((collections.Counter(said) & collections.Counter(wanted)).values())
        if common:
            best = max(best, 2 * common / (len(said) + len(wanted)))
    return best


def _read(folder: Path, name: str) -> list[dict[str, Any]]:
    for path in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"):
        if path.exists():
            data = path.read_bytes()
            return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]
    raise InputError(f"{folder} has no {name}.jsonl or {name}.jsonl.gz: pass data=FOLDER with kb and {name}")


def _score(
    m3: Memory3, bank: Bank, items: list[dict[str, Any]], mode: str, key: str, options: dict[str, Any]
) -> list[dict[str, Any]]:
    batch, out = options["batch"], []
    for start in progress(range(0, len(items), batch), f"{mode} {key}"):
        group = items[start : start + batch]
        named = [item[key] for item in group] if mode != "none" else None
        answers = m3.generate(
            [item["question"] for item in group], bank, mode=mode, references=named, max_new_tokens=options["max_new_tokens"]
        )
        likely = m3.log_likelihood(
            [item["question"] for item in group], [item["answers"][0] for item in group], bank, mode=mode, references=named
        )
        for item, answer, (total, tokens) in zip(group, answers, likely, strict=True):
            out.append(
                {
                    "id": item["id"],
                    "text": answer.text,
                    "contains": contains(answer.text, item["answers"]),
                    "f1": f1(answer.text, item["answers"]),
                    "nll": -total / tokens,
                }
            )
    return out


def _summary(rows: list[dict[str, Any]], text: list[dict[str, Any]] | None) -> dict[str, Any]:
    summary: dict[str, Any] = {"count": len(rows)}
    for metric in ("contains", "f1", "nll"):
        values = [row[metric] for row in rows]
        summary[metric] = {"mean": float(np.mean(values)), "interval": interval(values)}
        if text is not None:
            difference = [a[metric] - b[metric] for a, b in zip(rows, text, strict=True)]
            summary[metric]["minus_text"] = {"mean": float(np.mean(difference)), "interval": interval(difference)}
    return summary


def run(**options: Any) -> dict[str, Any]:
    """Every arm's summary; with ``items=FILE`` every answer as JSON lines."""
    folder = Path(options["data"])
    kb = next(iter(sorted(folder.glob("kb.jsonl*"))), None)
    if not options["data"] or kb is None:
        raise InputError(f"data={options['data']!r} is not a folder with kb.jsonl: pass data=FOLDER")
    unknown = set(options["settings"].split(",")) - set(_AGAINST)
    if unknown:
        raise InputError(f"settings={options['settings']!r}: use some of {','.join(_AGAINST)}")
    loaded = Memory3.from_pretrained(options["model"])
    results: dict[str, Any] = {}
    every: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="memory3-bench-") as temporary:
        for name in options["presets"].split(","):
            m3 = Memory3(loaded.model, loaded.tokenizer, MemoryConfig.preset(name), name=loaded.name)
            # Cold: texts and embeddings now, memories when first read.
            bank = Bank.open(Path(temporary) / name, m3)
            bank.write(read_documents(kb), cold=True)
            wanted = options["settings"].split(",")
            if not results:
                items, recall = read_items(bank, options)
                results["questions"], results["retrieval_recall"] = len(items), recall
                texts: dict[str, list[dict[str, Any]]] = {
                    key: _score(m3, bank, items, "text", key, options)
                    for key in ("gold", "retrieved")
                    if key in {_AGAINST[setting] for setting in wanted}
                }
                none = _score(m3, bank, items, "none", "gold", options)
                results["none"] = _summary(none, None)
                every += [{"arm": "none", **row} for row in none]
                for key, rows in texts.items():
                    results[f"text, {key}"] = _summary(rows, None)
                    every += [{"arm": f"text, {key}", **row} for row in rows]
            for key in wanted:
                rows = _score(m3, bank, items, "memory", key, options)
                results[f"memory {name}, {key}"] = _summary(rows, texts[_AGAINST[key]])
                every += [{"arm": f"memory {name}, {key}", **row} for row in rows]
            results[f"pairs per reference, {name}"] = m3.shape.pairs
            bank.close()
    if options["items"]:
        Path(options["items"]).write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in every), encoding="utf-8"
        )
    return results


def read_items(bank: Bank, options: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Questions whose answer stands in one reference of their document, with gold, retrieved and random reference ids; and retrieval's recall.

    Of ``options``: data, split, questions, k, seed.
    """
    questions = _read(Path(options["data"]), options["split"])
    rng = random.Random(options["seed"])
    rng.shuffle(questions)
    sizes = {entry.id: entry.references for entry in bank.documents()}
    names = sorted(f"{doc}#{n}" for doc, size in sizes.items() for n in range(size))
    items: list[dict[str, Any]] = []
    for question in questions:
        mine = [f"{doc}#{n}" for doc in question["references"] for n in range(sizes.get(doc, 0))]
        gold = [r.id for r in bank.references(mine) if any(a in r.text for a in question["answers"])]
        if gold:
            others = [n for n in rng.sample(names, options["k"] + len(mine)) if n not in mine][: options["k"]]
            items.append({**question, "gold": gold[:1], "random": others})
        if len(items) == options["questions"]:
            break
    found = bank.search([item["question"] for item in items], options["k"])
    for item, hits in zip(items, found, strict=True):
        item["retrieved"] = [hit.reference_id for hit in hits]
    return items, float(np.mean([item["gold"][0] in item["retrieved"] for item in items]))
