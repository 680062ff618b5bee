"""The front: how well a memory answers, against the bytes it takes on disk.

Every point is a selector, a budget, and optionally a codec and memory layers: ``reconstruction/adaptive:1440``,
``attention/uniform:8/raw/first_half``. The knowledge base is encoded once (`research.benchmarks.dense`) and every point
is cut from that. Lines beside them: no memory, the same references as text, all their key-values, and the oracle, which
keeps what the question itself attends to.

The data folder is that of `memory3.evaluation.qa`. Questions are drawn by ``seed``. Answer NLL is of all points; answers
are generated for the points named in ``answers`` (``all``: for every one), and for the lines. ``gold`` reads the one
reference that holds the answer, ``retrieved`` all that search finds, ``near`` those of them within ``gap`` of the best
one (`memory3.config.MemoryConfig.score_gap`), beside the text of all that search found. ``arrangement`` is how they lie,
``temperature`` what their logits are divided by. Of the lines, closed book and text are always there; ``lines`` may name
``all`` (all key-values) and, for ``near``, ``same`` (the text of the same references). ``dtype`` is the number format of
the weights. ``figure=FILE`` draws it all. With ``dense=DIR`` the encoded knowledge base and what was measured stay there,
and a run that was interrupted goes on.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from memory3.bank import Bank
from memory3.bank.codebooks import cached_codebook, keep_codebook
from memory3.benchmarks.measure import progress
from memory3.calibration.codec import wanted_references
from memory3.calibration.metrics import REFERENCES, error_metrics
from memory3.codec import CodedCodec, RawCodec, fit
from memory3.codec.registry import find
from memory3.config import MemoryConfig
from memory3.encode.selectors import SELECTORS, Selector, selector
from memory3.encode.selectors.blended import Blended
from memory3.encode.selectors.learned import Learned
from memory3.encode.selectors.reconstruction import Reconstruction
from memory3.errors import ConfigError, InputError
from memory3.evaluation.generation import generate_rows
from memory3.evaluation.intervals import aggregate_interval, interval
from memory3.evaluation.metrics import contains, exact_match, f1
from memory3.evaluation.task import data_records
from memory3.files import write_atomically
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_MODEL
from memory3.recall.retrieval import within
from memory3.text.readers import read_documents
from memory3.types import MemoryShape
from research.benchmarks.dense import MARK, DenseStore, Sparse
from research.benchmarks.front_figure import draw

__all__ = ["OPTIONS", "parse_point", "run", "summary"]

OPTIONS: dict[str, Any] = {
    "data": "",
    "split": "dev",
    "model": DEFAULT_MODEL,
    "dtype": "",
    "points": "reconstruction/adaptive:1440,reconstruction/adaptive:720,reconstruction/adaptive:360,attention/adaptive:720,"
    "random/adaptive:720,first/adaptive:720,attention/uniform:8/raw/first_half",
    "answers": "",
    "settings": "gold,retrieved",
    "lines": "all,same",
    "gap": MemoryConfig().score_gap,
    "arrangement": MemoryConfig().arrangement,
    "temperature": MemoryConfig().memory_temperature,
    "questions": 500,
    "k": 0,
    "max_new_tokens": 32,
    "batch": 20,
    "seed": 0,
    "dense": "",
    "items": "",
    "figure": "",
}

SETTINGS = ("gold", "retrieved", "near")
METRICS = ("nll", "contains", "exact", "f1")
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
    return MemoryConfig(codec="raw").replace(**dict(zip(_PARTS, parts, strict=False)))


class _Front:
    """What all arms share: the model, questions, and where memories come from."""

    def __init__(
        self,
        m3: Memory3,
        bank: Bank,
        store: DenseStore,
        selectors: Sequence[Selector],
        items: list[dict[str, Any]],
        options: Mapping[str, Any],
    ) -> None:
        self.m3, self.bank, self.store, self.selectors, self.items, self.options = m3, bank, store, selectors, items, options
        self.rows: list[dict[str, Any]] = []
        self._oracles: dict[str, dict[str, torch.Tensor]] = {}
        self.folder = store.folder.parent / "arms"
        self.folder.mkdir(exist_ok=True)
        asked = [[item["id"], item["gold"], item["retrieved"], item["near"]] for item in items]
        self.mark = [m3.fingerprint, options["max_new_tokens"], asked, m3.config.arrangement]

    def arm(self, name: str, mode: str, source: Any, key: str | None, generate: bool) -> dict[str, list[float]]:
        """Figures of every question: NLL, and of generated answers whether they contain an answer, equal one, and F1. An
        arm that was measured before is read.
        """
        codec = source.codec if isinstance(source, Sparse) else None
        book = codec.codebook.fingerprint if codec else ""
        mark = [*self.mark, self.m3.config.memory_temperature] if mode == "memory" else self.mark
        kept = self.folder / f"{xxhash.xxh3_64_hexdigest(json.dumps([name, generate, book, mark]).encode())}.json"
        if kept.exists():
            rows = json.loads(kept.read_text(encoding="utf-8"))
        else:
            rows = self._rows(name, mode, source, key, generate)
            write_atomically(kept, json.dumps(rows, ensure_ascii=False))
        self.rows += [{"arm": name, **row} for row in rows]
        return {metric: [row[metric] for row in rows] for metric in METRICS if metric in rows[0]}

    def _rows(self, name: str, mode: str, source: Any, key: str | None, generate: bool) -> list[dict[str, Any]]:
        m3, new, size = self.m3, self.options["max_new_tokens"], self.options["batch"]
        wanted = [m3.prompts.ids(item["answers"][0]) for item in self.items]
        prompts = [
            m3.prompts.row(m3.prompts.ids(item["question"]), mode, item[key] if key else [], source, after=max(new, len(w)))
            for item, w in zip(self.items, wanted, strict=True)
        ]
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n].tokens))  # those of like length together
        rows: list[dict[str, Any]] = [{} for _ in order]
        for start in progress(range(0, len(order), size), name):
            some = order[start : start + size]
            mine, answers = [prompts[n] for n in some], [wanted[n] for n in some]
            reads = source if mode == "memory" else None
            if not generate:
                for n, (found,) in zip(some, m3.scorer.score(mine, [[a] for a in answers], reads), strict=True):
                    rows[n] = {"id": self.items[n]["id"], "nll": found.nll}
                continue
            for n, made in zip(some, generate_rows(m3, reads, mine, max_new_tokens=new, wanted=answers), strict=True):
                said, right, likely = made.text, self.items[n]["answers"], made.wanted
                assert likely is not None
                rows[n] = {
                    "id": self.items[n]["id"],
                    "text": said,
                    "nll": likely.nll,
                    "contains": contains(said, right),
                    "exact": exact_match(said, right),
                    "f1": f1(said, right),
                }
        return rows

    def oracle(self, config: MemoryConfig, key: str) -> tuple[Sparse, str]:
        """Memories that keep what the question attends to, and the key of their names: each belongs to one question."""
        mine = f"{key}, oracle"
        if key not in self._oracles:
            self._oracles[key] = self._asked(key, mine)
        return Sparse(self.store, config, oracle=self._oracles[key]), mine

    def _asked(self, key: str, mine: str) -> dict[str, torch.Tensor]:
        """What each question attends to in each of its references, ``[L, H, S]`` by a name that has both, which ``mine``
        of the question lists.
        """
        m3, scores = self.m3, {}
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
        return scores

    def codec(self, config: MemoryConfig, shape: MemoryShape) -> CodedCodec:
        """With the codebook that `memory3 write` would use; fitted to the knowledge base, as it would, where there is
        none yet, but to references that no question reads, where there are enough.
        """
        written = Memory3(self.m3.model, self.m3.tokenizer, config, name=self.m3.name)
        book = cached_codebook(config.codec, written.fingerprint)
        if book is None:
            plain = Sparse(self.store, config)
            asked = {name for item in self.items for name in (*item["gold"], *item["retrieved"])}
            drawn = [f"{entry.id}#{n}" for entry in self.bank.documents() for n in range(entry.references)]
            random.Random(0).shuffle(drawn)
            drawn = sorted(drawn, key=asked.__contains__)[: wanted_references(config.codec, shape)]
            self.store.fill(self.bank.references(drawn), self.selectors, "encoding what codecs are fitted to")
            memories = (plain.cut(name) for name in progress(drawn, f"fitting {config.codec}"))
            metrics = (
                error_metrics(written, self.bank.references(drawn[:REFERENCES])) if find(config.codec).uses_metric else None
            )
            book = fit(
                config.codec,
                memories,
                shape,
                fingerprint=written.fingerprint,
                positions=config.reference_length,
                angles=self.m3.angles,
                metrics=metrics,
                token_vectors=written.token_vectors if find(config.codec).predicts else None,
            )
            keep_codebook(book)
        return CodedCodec(book).with_vectors(written.token_vectors)


def _listed(points: str) -> list[str]:
    """Points between commas; names of codecs have commas of their own."""
    return [point for point in re.split(r",(?=[a-z]+/|all$|same$)", points) if point]


def read_items(bank: Bank, options: Mapping[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Questions whose answer stands in a reference of their document, with ids ``gold`` (that one), ``retrieved`` and
    ``near``; and the share that retrieval finds.

    Of ``options``: data, split, questions, k, gap, seed.
    """
    questions, _ = data_records(Path(options["data"]), options["split"])
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
        item["near"] = [hit.reference_id for hit in within(hits, options["gap"])]
    return items, float(np.mean([item["gold"][0] in item["retrieved"] for item in items]))


def summary(figures: Mapping[str, Sequence[float]], beside: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Means with 95% bootstrap intervals; differences from the arms beside it, question by question, and the gain where
    text is among them.
    """
    said: dict[str, Any] = {}
    for metric, values in figures.items():
        said[metric] = {"mean": float(np.mean(values)), "interval": interval(values)}
        for name, other in beside.items():
            if metric in other:
                difference = [a - b for a, b in zip(values, other[metric], strict=True)]
                said[metric][f"minus_{name}"] = {"mean": float(np.mean(difference)), "interval": interval(difference)}
        if all(metric in beside.get(name, ()) for name in ("text", "none")):
            triples = list(zip(values, beside["text"][metric], beside["none"][metric], strict=True))
            gain = _gain(triples)
            known = not np.isnan(gain)
            said[metric] |= {
                "gain": gain if known else None,
                "gain_interval": aggregate_interval(triples, _gain) if known else None,
            }
    return said


def _gain(triples: Sequence[tuple[float, float, float]]) -> float:
    """Memory minus closed book over text minus closed book; not a number where text brings nothing."""
    memory, text, none = np.mean(np.asarray(triples, dtype=float), axis=0)
    return float((memory - none) / (text - none)) if text != none else float("nan")


def run(**options: Any) -> dict[str, Any]:
    """Every arm's bytes and figures; ``items=FILE`` keeps every answer."""
    kb = next(iter(sorted(Path(options["data"]).glob("kb.jsonl*"))), None) if options["data"] else None
    if kb is None:
        raise InputError(f"data={options['data']!r} is not a folder with kb.jsonl: pass data=FOLDER")
    points = {text: parse_point(text) for text in _listed(options["points"])}
    generated = list(points) if options["answers"] == "all" else _listed(options["answers"])
    settings = options["settings"].split(",")
    wrong = [name for name in settings if name not in SETTINGS] + [name for name in generated if name not in points]
    if wrong:
        raise InputError(f"{wrong[0]!r}: settings are {', '.join(SETTINGS)}, answers are some of the points")
    config = MemoryConfig.preset("full").replace(arrangement=options["arrangement"], memory_temperature=options["temperature"])
    m3 = Memory3.from_pretrained(options["model"], config=config, dtype=options["dtype"] or None, batch_size=8)
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
            if Blended.name in selectors:  # made of two
                selectors = selectors - {Blended.name} | {Learned.name, Reconstruction.name}
            weights = m3.learned.by_layer if m3.learned else None
            scored = [selector(name, weights) for name in sorted(selectors)]
            store.fill(bank.references(list(wanted)), scored)
            front = _Front(m3, bank, store, scored, items, options)
            none = front.arm("closed book", "none", None, None, bool(generated))
            results["closed book"] = summary(none, {})
            for key in settings:
                results[key] = _setting(front, key, points, generated, none)
    if options["figure"]:
        draw(results, options["figure"])
    if options["items"]:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in front.rows)
        Path(options["items"]).write_text("".join(lines), encoding="utf-8")
    return results


def _setting(
    front: _Front, key: str, points: Mapping[str, MemoryConfig], generated: Sequence[str], none: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """All arms of one setting."""
    read = "retrieved" if key == "near" else key  # text in the prompt is all that was found: plain RAG
    text = front.arm(f"text, {read}", "text", front.bank, read, bool(generated))
    beside = {"text": text, "none": none}
    said = {"text": summary(text, {"none": none})}
    lines = _listed(front.options["lines"])
    if "same" in lines and read != key:
        said["text of the same"] = summary(front.arm(f"text, {key}", "text", front.bank, key, bool(generated)), beside)
    if "all" in lines:
        full = Sparse(front.store, MemoryConfig.preset("full"))
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
        point = {"selector": config.selector, "budget": str(config.budget), "codec": config.codec, "layers": config.layers}
        said[name] = {"point": point, "bytes": size, "pairs": source.shape.pairs, **summary(figures, beside)}
    return said
