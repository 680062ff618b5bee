"""Ways to keep and to read what is kept, beside text and all pairs: contains, F1 and answer NLL on dev questions that read
the one reference that holds their answer.

    python -m research.quality.ways --model MODEL --data DIR --ways "max 1/8, max 1/8 bias" --out FILE

Ways are those of `research.quality.choosing`; ``none``, ``text`` and ``all`` are arms too. A line of JSON for each arm goes to
the file, with every question's figure and 95% bootstrap intervals (of the difference from ``text``, ``all`` and ``max`` too,
question by question). An arm that is there already is not measured again, and passages stay encoded in ``--cache``.
``--generate`` names the arms whose answers are generated (contains, F1); all have NLL. Only dev is read: it is for tuning.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from memory3.config import MemoryConfig
from memory3.evaluation.generation import generate_rows
from memory3.evaluation.intervals import interval
from memory3.evaluation.metrics import contains, f1
from memory3.evaluation.task import data_records
from memory3.llm import Memory3
from memory3.prompt import PromptRow
from memory3.types import Document, Memory, Reference
from research.quality.choosing import Way, memory
from research.quality.passages import Passages
from research.quality.questions import ASK, cloze, written

#: Tokens of a generated answer, as in `memory3.evaluation.qa`.
NEW = 32
#: Arms that others are set beside.
BESIDE = ("text", "all", "max 1/8", "max 1/4")


class _Source:
    """What scoring and recall need of a bank, of named memories and references."""

    live = True

    def __init__(self, memories: dict[str, Memory], references: dict[str, Reference]) -> None:
        self._memories, self._references = memories, references

    def memories(self, reference_ids: Sequence[str], **options: Any) -> list[Memory]:
        """Their memories, in order."""
        return [self._memories[name] for name in reference_ids]

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """The references of these ids, in order."""
        return [self._references[name] for name in reference_ids]

    def search(self, *args: Any, **options: Any) -> Any:
        """References are named, never looked up."""
        raise AssertionError("ways name their references")

    def count(self, where: Any = None) -> int:
        """How many there are."""
        return len(self._references)


def read_items(m3: Memory3, folder: Path, questions: int, seed: int) -> list[dict[str, Any]]:
    """The first questions of dev, shuffled, whose answer stands in a reference of their document: ``question``, ``answers``,
    and that ``reference``.
    """
    records, _ = data_records(folder, "dev")
    texts = {record["id"]: record["text"] for record in data_records(folder, "kb")[0]}
    random.Random(seed).shuffle(records)
    items: list[dict[str, Any]] = []
    for record in records:
        answers = [answer for answer in record["answers"] if answer.strip()]
        mine = [r for name in record["references"] if name in texts for r in m3.split(Document(name, texts[name]))]
        gold = [r for r in mine if any(answer in r.text for answer in answers)]
        if gold and answers:
            items.append({"question": record["question"], "answers": answers, "reference": gold[0]})
        if len(items) == questions:
            break
    return items


def output_maps(m3: Memory3) -> list[torch.Tensor]:
    """W_o of every layer, ``[A, d, hidden]``: what a query head's output becomes in the residual stream."""
    layers: Any = m3.geometry.base.layers
    heads, dim = m3.geometry.heads, m3.geometry.head_dim
    return [layer.self_attn.o_proj.weight.detach().T.reshape(heads, dim, -1) for layer in layers]


class Bench:
    """Arms of one model and one set."""

    def __init__(self, m3: Memory3, items: list[dict[str, Any]], cache: Path, batch: int, temperature: float) -> None:
        self.m3, self.items, self.batch, self.temperature = m3, items, batch, temperature
        self.passages = Passages(cache, m3)
        self.references = {item["reference"].id: item["reference"] for item in items}
        self.wanted = [m3.prompts.ids(item["answers"][0]) for item in items]
        self.outputs = output_maps(m3)

    def encode(self, kinds: set[str]) -> None:
        """Passages with the queries that ways look at; ``true`` ones belong to a question each."""
        frame = self.m3.prompts.frame
        for kind in sorted(kinds):
            started, watched = time.perf_counter(), None
            if kind in ("repeat", "asked", "cloze"):
                names, references, asked = list(self.references), list(self.references.values()), None
            if kind == "asked":
                made = written(self.m3, references, self.passages.folder / "asked.json", self.batch)
                cue = frame.after(self.m3.prompts.ids(ASK))
                asked = [[*cue, *made[name]] for name in names]
                watched = [list(range(len(cue), len(tokens))) for tokens in asked]
            elif kind == "cloze":
                asked, watched = cloze(self.m3, references)
            elif kind == "true":
                names = [self._own(n) for n in range(len(self.items))]
                references = [item["reference"] for item in self.items]
                asked = [
                    [*frame.after(self.m3.prompts.ids(item["question"])), *answer]
                    for item, answer in zip(self.items, self.wanted, strict=True)
                ]
            elif kind not in ("repeat", "asked", "cloze"):
                raise SystemExit(f"queries {kind!r} are unknown")
            new = self.passages.fill(kind, references, names, asked, self.batch, watched)
            say(f"  {kind}: {new} passages encoded in {time.perf_counter() - started:.0f} s")

    def _own(self, n: int) -> str:
        return f"{self.items[n]['reference'].id}, question {n}: {self.items[n]['question']}"

    def arm(self, name: str, generate: bool) -> dict[str, Any]:
        """Figures of every question, and how many pairs were kept on average."""
        way = None if name in ("none", "text") else Way.parse(name, self.temperature)
        mode = name if way is None else "memory"
        own = way is not None and "true" in way.reads
        memories, references, reads = {}, {}, []
        for n, item in enumerate(self.items):
            key = self._own(n) if own else item["reference"].id
            reads.append(key)
            references[key] = item["reference"]
            if way is not None and key not in memories:
                made = self.passages.load(key)
                if own:  # what is not of the question is found under the passage's name
                    made.queries.update(self.passages.load(item["reference"].id).queries)
                memories[key] = memory(made, way, self.outputs, self.m3.config.reference_length)
        source, after = _Source(memories, references), max(NEW, *map(len, self.wanted))
        prompts = self.m3.prompts
        rows = [
            prompts.row(prompts.ids(item["question"]), mode, [key] if way or mode == "text" else [], source, after=after)
            for item, key in zip(self.items, reads, strict=True)
        ]
        found = figures(self.m3, rows, self.items, self.wanted, source if mode == "memory" else None, self.batch, generate)
        pairs = float(np.mean([m.counts.sum() for m in memories.values()])) if memories else 0.0
        return {"figures": found, "pairs": pairs}


def figures(
    m3: Memory3,
    rows: Sequence[PromptRow],
    items: Sequence[dict[str, Any]],
    wanted: Sequence[list[int]],
    bank: Any,
    batch: int,
    generate: bool,
) -> dict[str, list[Any]]:
    """``nll`` of the first answer of every question, and where answers are generated ``contains``, ``f1`` and ``text``."""
    order = sorted(range(len(rows)), key=lambda n: (len(rows[n].tokens), len(rows[n].references)))
    found: dict[str, list[Any]] = {"nll": [0.0] * len(rows)}
    if generate:
        found |= {metric: [0.0] * len(rows) for metric in ("contains", "f1")} | {"text": [""] * len(rows)}
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        mine, answers = [rows[n] for n in some], [wanted[n] for n in some]
        if not generate:
            for n, (score,) in zip(some, m3.scorer.score(mine, [[a] for a in answers], bank), strict=True):
                found["nll"][n] = score.nll
            continue
        for n, said in zip(some, generate_rows(m3, bank, mine, max_new_tokens=NEW, wanted=answers), strict=True):
            assert said.wanted is not None
            found["nll"][n] = said.wanted.nll
            found["contains"][n] = contains(said.text, items[n]["answers"])
            found["f1"][n] = f1(said.text, items[n]["answers"])
            found["text"][n] = said.text
    return found


def summary(figures: dict[str, list[Any]], beside: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Means with intervals, and differences from other arms, question by question."""
    said: dict[str, Any] = {}
    for metric in ("nll", "contains", "f1"):
        if metric not in figures:
            continue
        values = figures[metric]
        said[metric] = {"mean": float(np.mean(values)), "interval": interval(values)}
        for name, other in beside.items():
            if metric in other:
                apart = [a - b for a, b in zip(values, other[metric], strict=True)]
                said[metric][f"minus {name}"] = {"mean": float(np.mean(apart)), "interval": interval(apart)}
    return said


def say(text: str) -> None:
    """On standard error, at once."""
    print(text, file=sys.stderr, flush=True)


@torch.no_grad()
def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--label", default="", help="what the model is called in the file; default: its name")
    parser.add_argument("--data", required=True, help="folders of sets, with a comma between")
    parser.add_argument("--ways", required=True, help="arms, with a comma between")
    parser.add_argument("--generate", default="", help="those of them whose answers are generated, or all")
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--temperature", type=float, default=1.0, help="of memories, where a way names none")
    parser.add_argument("--fitted", default="", help="file of research.quality.calibrating, for ways fit-NAME")
    parser.add_argument("--out", required=True)
    parser.add_argument("--cache", default=str(Path.home() / ".cache/memory3-measure/ways"))
    given = parser.parse_args()
    out = Path(given.out)
    arms = [arm.strip() for arm in given.ways.split(",") if arm.strip()]
    generated = arms if given.generate == "all" else [arm.strip() for arm in given.generate.split(",") if arm.strip()]
    label = given.label or Path(given.model).name
    config = MemoryConfig.preset("full")
    m3 = Memory3.from_pretrained(given.model, config=config, dtype=given.dtype or None, batch_size=given.batch)
    for folder in map(Path, given.data.split(",")):
        kept = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        mark = {"model": label, "set": folder.name, "questions": given.questions, "seed": given.seed, "T": given.temperature}
        done = {row["arm"]: row for row in kept if all(row[key] == value for key, value in mark.items())}
        todo = [a for a in arms if a not in done or (a in generated and "contains" not in done[a]["figures"])]
        if not todo:
            say(f"{label}, {folder.name}: all arms are there")
            continue
        items = read_items(m3, folder, given.questions, given.seed)
        say(f"{label}, {folder.name}: {len(items)} questions, {len(todo)} arms")
        bench = Bench(m3, items, Path(given.cache) / label / folder.name, given.batch, given.temperature)
        if given.fitted:
            bench.passages.fitted = safetensors.torch.load_file(given.fitted)
        bench.encode({"repeat"} | {k for a in todo if a not in ("none", "text") for k in Way.parse(a).reads})
        started = time.perf_counter()
        for number, arm in enumerate(todo, 1):
            row = {**mark, "arm": arm, **bench.arm(arm, arm in generated)}
            beside = {name: done[name]["figures"] for name in BESIDE if name in done and name != arm}
            row = {**row, **summary(row["figures"], beside)}
            done[arm] = row
            with out.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            each = (time.perf_counter() - started) / number
            shown = " ".join(f"{m} {row[m]['mean']:.3f}" for m in ("nll", "contains", "f1") if m in row)
            against = row["nll"].get("minus max 1/8", row["nll"].get("minus text"))
            if against:
                shown += " ({:+.3f} [{:+.3f}, {:+.3f}])".format(against["mean"], *against["interval"])
            left = each * (len(todo) - number) / 60
            say(f"  {number}/{len(todo)} {arm}: {shown}; {row['pairs']:.0f} pairs; {each:.0f} s an arm, {left:.1f} min left")


if __name__ == "__main__":
    main()
