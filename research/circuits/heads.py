"""Which KV heads read memories: the attention they give to them while an answer is written, and what the answer loses when a
head's pairs are left out.

    python -m research.circuits.heads --data DIR --questions 30 --out heads.json [--picture heads.svg]

A question reads what search finds for it, as `research.quality.several` loads it (dev, the default settings). *Mass* of a
query head is the part of its attention that goes to memories, a mean over the answer's tokens. *Effect* of a KV head is the
NLL of the answer without that head's pairs minus the NLL with all, in nats a token, a mean over questions. Pairs belong to
KV heads, so a KV head is left out with all query heads of its group, and its mass is their mean.

Each head is written to ``--out`` as it is measured, and a second run goes on where the first was stopped. Only dev is read.
Symbols: L memory layers, H KV heads, A query heads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from memory3.attention.watching import Watch
from memory3.evaluation.intervals import interval
from memory3.files import read_json, write_atomically
from memory3.llm import Memory3
from memory3.recall.held import Held
from memory3.types import Memory
from research.quality.several import Several
from research.quality.ways import figures, say


def without(memory: Memory, row: int, head: int) -> Memory:
    """A memory whose pairs of one KV head (row of ``counts``, column) are left out."""
    counts = memory.counts.copy()
    start = int(counts.reshape(-1)[: row * counts.shape[1] + head].sum(dtype=np.int64))
    end = start + int(counts[row, head])
    counts[row, head] = 0
    kept = np.r_[0:start, end : len(memory.positions)]
    biases = None if memory.biases is None else memory.biases[kept]
    return replace(
        memory,
        counts=counts,
        positions=memory.positions[kept],
        keys=memory.keys[kept],
        values=memory.values[kept],
        biases=biases,
    )


class _Heads:
    """One model and one set."""

    def __init__(self, m3: Memory3, folder: Path, given: argparse.Namespace) -> None:
        self.m3, self.batch = m3, given.batch
        self.set = Several(m3, folder, Path(given.cache), given.questions, given.seed, given.batch, 0, "dev", None)
        names = sorted({name for item in self.set.items for name in item["reads"]})
        say(f"{folder.name}: {len(self.set.items)} questions, {len(names)} references")
        self.memories: dict[str, Memory] = {}
        started = time.perf_counter()
        for at in range(0, len(names), given.batch):
            some = names[at : at + given.batch]
            self.memories |= dict(zip(some, m3.encode([self.set.references[name] for name in some]), strict=True))
            each = (time.perf_counter() - started) / len(self.memories)
            say(f"  {len(self.memories)} references encoded, {each * (len(names) - len(self.memories)) / 60:.1f} min left")

    def nll(self, memories: dict[str, Memory]) -> list[float]:
        """Of the first answer of every question, in nats a token."""
        bank: Any = Held(memories, self.set.references)
        prompts, after = self.m3.prompts, max(map(len, self.set.wanted))
        rows = [prompts.row(prompts.ids(i["question"]), "memory", i["reads"], bank, after=after) for i in self.set.items]
        return list(figures(self.m3, rows, self.set.items, self.set.wanted, bank, self.batch, False)["nll"])

    def effect(self, row: int, head: int) -> list[float]:
        """NLL of every question without a head."""
        return self.nll({name: without(memory, row, head) for name, memory in self.memories.items()})

    def mass(self) -> np.ndarray:
        """``[L, A]``, a mean over the tokens of the answers that the model writes itself, at most 16 each."""
        layers = self.m3.encoder.shape.layers
        total, tokens = np.zeros((len(layers), self.m3.geometry.heads)), 0
        bank: Any = Held(self.memories, self.set.references)
        for item in self.set.items:
            watch = Watch()
            self.m3.generate(item["question"], bank, references=item["reads"], watch=watch, max_new_tokens=16)
            for stretch in watch.stretches:
                tokens += stretch.tokens
                for layer, looks in stretch.layers.items():
                    group = looks.weights.shape[1] // looks.owner.shape[0]
                    seen = looks.weights * (looks.owner >= 0).repeat(group, 0)
                    total[layers.index(layer)] += seen.sum((0, 2))
        return total / max(1, tokens)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Means with intervals, the heads that matter most, and how far mass tells effect."""
    rows = found["without"]
    full = np.asarray(found["full"])
    lost = {name: np.asarray(values) - full for name, values in rows.items()}
    mass = {name: _group(found["mass"], name, found["kv_heads"]) for name in rows}
    effect = {name: float(values.mean()) for name, values in lost.items()}
    order = sorted(rows, key=lambda name: -effect[name])
    apart = [(name, interval(lost[name].tolist())) for name in order]
    ranks = spearmanr([mass[name] for name in order], [effect[name] for name in order]) if len(order) > 2 else None
    return {
        "questions": len(full),
        "nll": float(full.mean()),
        "heads": len(order),
        "rank_correlation": None if ranks is None else {"rho": float(ranks[0]), "p": float(ranks[1])},
        "hurts": sum(low > 0 for _, (low, _) in apart),
        "helps": sum(high < 0 for _, (_, high) in apart),
        "first": [{"head": n, "effect": effect[n], "interval": list(i), "mass": mass[n]} for n, i in apart[:10]],
        "last": [{"head": n, "effect": effect[n], "interval": list(i), "mass": mass[n]} for n, i in apart[-5:]],
    }


def _group(mass: Sequence[Sequence[float]], name: str, kv_heads: int) -> float:
    """Mean mass of the query heads of a KV head, ``"row.head"``."""
    row, head = map(int, name.split("."))
    return float(np.mean(np.array_split(np.asarray(mass[row]), kv_heads)[head]))


def picture(report: dict[str, Any], path: Path) -> None:
    """Effect and mass of every head, a row of panels for each set."""
    from memory3.interpret.picture import drawing

    rc_context, new_figure = drawing()
    sets = report["sets"]
    with rc_context({"svg.hashsalt": "memory3", "font.family": "sans-serif"}):
        figure = new_figure(figsize=(3.2 * len(sets), 3.2), layout="constrained")
        for axis, (name, found) in zip(np.atleast_1d(figure.subplots(1, len(sets))), sets.items(), strict=True):
            full = np.mean(found["full"])
            x = [_group(found["mass"], head, found["kv_heads"]) for head in found["without"]]
            y = [np.mean(values) - full for values in found["without"].values()]
            axis.scatter(x, y, s=10, color="#0969da")
            axis.axhline(0, color="#8c959f", linewidth=0.8)
            axis.set_title(f"{name}, {len(found['full'])} questions", fontsize=9)
            axis.set_xlabel("mass on memories", fontsize=8)
            axis.set_ylabel("NLL without the head, minus with it", fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


@torch.no_grad()
def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--data", required=True, help="folders of sets, with a comma between")
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--every", type=int, default=1, help="of the layers: 3 leaves out heads of every third one alone")
    parser.add_argument("--out", required=True)
    parser.add_argument("--picture", default="")
    parser.add_argument("--cache", default=str(Path.home() / ".cache/memory3-measure/several"))
    given = parser.parse_args()
    out = Path(given.out)
    m3 = Memory3.from_pretrained(*([given.model] if given.model else []), dtype=given.dtype or None, batch_size=given.batch)
    same = {"model": m3.name, "questions": given.questions, "seed": given.seed}
    report: dict[str, Any] = read_json(out, 1 << 28) if out.exists() else {**same, "sets": {}}
    if {name: report[name] for name in same} != same:
        raise SystemExit(f"{out} was measured with other settings: name another file with --out")
    for folder in map(Path, given.data.split(",")):
        shape = m3.encoder.shape
        names = [f"{row}.{head}" for row in range(0, len(shape.layers), given.every) for head in range(shape.kv_heads)]
        found = report["sets"].setdefault(
            folder.name, {"layers": list(shape.layers), "kv_heads": shape.kv_heads, "without": {}}
        )
        todo = [name for name in names if name not in found["without"]]
        if todo:
            bench = _Heads(m3, folder, given)
            if "full" not in found:
                found |= {"full": bench.nll(bench.memories), "mass": bench.mass().round(5).tolist()}
            started = time.perf_counter()
            for number, name in enumerate(todo, 1):
                found["without"][name] = bench.effect(*map(int, name.split(".")))
                write_atomically(out, json.dumps(report))
                each = (time.perf_counter() - started) / number
                say(f"  {number}/{len(todo)} {name}: {each:.1f} s a head, {each * (len(todo) - number) / 60:.1f} min left")
        found["summary"] = summary(found)
        write_atomically(out, json.dumps(report))
        say(f"{folder.name}: {json.dumps(found['summary']['rank_correlation'])}")
    if given.picture:
        picture(report, Path(given.picture))


if __name__ == "__main__":
    main()
