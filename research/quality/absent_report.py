"""Not in the bank, in tables: AUROC of scores, alone and several fitted on dev, all reported on test; and the weights that
memory3 brings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memory3.evaluation.metrics import auroc
from memory3.files import write_atomically
from memory3.models.catalogue import DEFAULT_EMBEDDER
from memory3.presence import SIGNALS, VERSION, find_presence_weights
from research.quality.absent_fit import Fitted, Table, area, fit

__all__ = ["presence", "report", "shipped"]

#: Scores that are fitted together. Those of `memory3.presence` cost nothing; ``embedded`` wants the references' tokens.
GROUPS = {
    "signals": SIGNALS,
    "signals and embedded": (*SIGNALS, "token matches, mean", "nearest sentence"),
}
_QUESTION = ("question: gain", "question: share explained")
_ANSWER = ("answer: likelihood", "first token: entropy", "first token: moved by memory", "copied", "attention")
MODEL_GROUPS = {
    "signals": SIGNALS,
    "question read": _QUESTION,
    "answer read": _ANSWER,
    "question and answer read": (*_QUESTION, *_ANSWER),
    "signals and question read": (*SIGNALS, *_QUESTION),
    "signals, question and answer read": (*SIGNALS, *_QUESTION, *_ANSWER),
}
#: Share of the questions whose answer is in the bank that may be told it is not.
ALARMS = 0.1


def _shown(found: Mapping[str, Any]) -> str:
    sure = "*" if found["above cosine"][1] > 0 else ""
    low, high = found["interval"]
    return f"{found['auroc']:.2f} [{low:.2f}, {high:.2f}]{sure}"


def report(words: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Tables of all scores, as JSON to ``out`` and as text; a star where a score is surely above the cosine."""
    found: dict[str, Any] = {}
    for label, model in {"no model": None, **models}.items():
        dev, test = (Table.make(words, model, split) for split in ("dev", "test"))
        sets = [str(s) for s in dict.fromkeys(test.sets)]
        counts = {s: [int((t.of(s).present == p).sum()) for t in (dev, test) for p in (True, False)] for s in sets}
        print(f"\n## {label}: asks (dev in, dev not, test in, test not) {counts}\n")
        print("| score, test | " + " | ".join(sets) + " |\n|---|" + "---|" * len(sets))
        rows: dict[str, Any] = {}
        for n, name in enumerate(test.names):
            rows[name] = {s: area(test.of(s), test.of(s).values[:, n]) for s in sets}
            print(f"| {name} | " + " | ".join(_shown(rows[name][s]) for s in sets) + " |")
        fits: dict[str, Any] = {}
        for group, names in (GROUPS if model is None else MODEL_GROUPS).items():
            for on in ("all sets", *sets, "the other sets"):
                each, weights = {}, {}
                for s in sets:
                    near = s.split(",")[0]
                    mine = dev if on == "all sets" else dev.without(near) if on == "the other sets" else dev.of(on)
                    fitted = fit(names, mine.columns(names), mine.present)
                    each[s] = area(test.of(s), fitted.score(test.of(s).columns(names)))
                    weights = dict(zip(names, fitted.weights.round(3).tolist(), strict=True))
                fits[f"{group}, fitted on {on}"] = {"test": each} | ({} if on == "the other sets" else {"weights": weights})
                print(f"| **{group}**, fitted on {on} | " + " | ".join(_shown(each[s]) for s in sets) + " |")
        if model is not None:
            for part, values in heads(dev, test).items():
                fits[part] = {"test": values}
                print(f"| **{part}** | " + " | ".join(_shown(values[s]) for s in sets) + " |")
        found[label] = {"counts": counts, "scores": rows, "fitted": fits}
    write_atomically(out, json.dumps(found, indent=1))


def heads(dev: Table, test: Table, most: int = 8) -> dict[str, dict[str, Any]]:
    """The heads whose attention to memories tells most on dev, on the mean of the sets: one, and ``most`` fitted."""
    assert dev.heads is not None
    assert test.heads is not None
    found = {}
    sets = [str(s) for s in dict.fromkeys(test.sets)]
    for part, name in enumerate(
        ("over the question", "at the last token", "over the answer", "largest weight at the last token")
    ):
        mine, theirs = (t.heads[:, part].reshape(len(t.ids), -1) for t in (dev, test))  # type: ignore[index]
        areas = np.array(
            [
                np.mean([auroc(mine[(dev.sets == s) & dev.present, h], mine[(dev.sets == s) & ~dev.present, h]) for s in sets])
                for h in range(mine.shape[1])
            ]
        )
        best = np.argsort(-np.abs(areas - 0.5))
        one, sign = best[0], 1 if areas[best[0]] > 0.5 else -1
        layer, head = divmod(int(one), dev.heads.shape[3])
        found[f"attention {name}, layer {layer} head {head}"] = {
            s: area(test.of(s), sign * theirs[test.sets == s, one]) for s in sets
        }
        names = tuple(map(str, best[:most]))
        fitted = fit(names, mine[:, best[:most]], dev.present)
        scores = fitted.score(theirs[:, best[:most]])
        found[f"attention {name}, {most} heads fitted"] = {s: area(test.of(s), scores[test.sets == s]) for s in sets}
    return found


def presence(words: Mapping[str, Any], embedder: str, gap: float, out: Path) -> None:
    """Fit what `memory3.presence` uses on dev of all sets, with the threshold that calls one in ten "not found" whose answer
    is in the bank, and tell what that is on test.
    """
    dev, test = (Table.make(words, None, split) for split in ("dev", "test"))
    sets = [str(s) for s in dict.fromkeys(test.sets)]
    fitted, threshold = _threshold(dev)
    read = _read(words, gap)
    told: dict[str, Any] = {}
    for s in sets:
        mine, others = test.of(s), _threshold(dev.without(s.split(",")[0]))
        there = np.array([i in read for i in mine.ids]) & mine.present
        told[s] = {"asks": [int(mine.present.sum()), int((~mine.present).sum())]}
        for name, (how, below) in (("", (fitted, threshold)), (", fitted on the other sets", others)):
            scores = how.score(mine.columns(SIGNALS))
            low = 1 / (1 + np.exp(-scores)) < below
            told[s] |= {
                f"auroc{name}": round(area(mine, scores)["auroc"], 3),
                f"not found, though it is there{name}": round(float(low[mine.present].mean()), 3),
                f"not found, though its document is read{name}": round(float(low[there].mean()), 3),
                f"not found, and it is not there{name}": round(float(low[~mine.present].mean()), 3),
            }
        print(s, json.dumps(told[s]))
    about = {"fitted on": "dev of " + ", ".join(sets), "asks": len(dev.ids), "test": told, "by": "research/quality/absent.py"}
    numbers = {name: [round(float(x), 6) for x in getattr(fitted, name)] for name in ("mean", "spread", "weights")}
    search = {"embedder": embedder, "dimension": 384, "reference_length": 128, "k": 5, "gap": gap}
    made = {
        "version": VERSION,
        "signals": list(SIGNALS),
        **search,
        **numbers,
        "bias": round(fitted.bias, 6),
        "threshold": round(threshold, 4),
    }
    write_atomically(out, json.dumps({**made, "about": about}, indent=1) + "\n")


def _threshold(dev: Table) -> tuple[Fitted, float]:
    """Fitted to the signals of dev, and the score below which `ALARMS` of those fall whose answer is there, a mean of sets."""
    fitted = fit(SIGNALS, dev.columns(SIGNALS), dev.present)
    each = []
    for s in dict.fromkeys(dev.sets):
        mine = dev.of(str(s))
        each.append(np.quantile(1 / (1 + np.exp(-fitted.score(mine.columns(SIGNALS)[mine.present]))), ALARMS))
    return fitted, float(np.mean(each))


def _read(words: Mapping[str, Any], gap: float) -> set[str]:
    """Questions of which a reference of the right document is read: one that a search without that document does not find."""
    found = set()
    for key, row in words.items():
        other = words.get(key.replace("/in/", "/out/"))
        if row["kind"] == "in" and other is not None:
            far = {name for name, _ in other["hits"]}
            if any(name not in far for name, score in row["hits"][:5] if score >= row["hits"][0][1] - gap):
                found.add(row["id"])
    return found


def shipped(label: str, words: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    """What the weights that memory3 brings say of questions asked of references that another model's tokenizer split."""
    weights = find_presence_weights(DEFAULT_EMBEDDER)
    assert weights is not None
    how = Fitted(SIGNALS, np.array(weights.mean), np.array(weights.spread), np.array(weights.weights), weights.bias)
    for name, rows in ((label, words), ("default", {key: row for key, row in default.items() if key in words})):
        table = Table.make(rows, None, "test")
        for s in dict.fromkeys(map(str, table.sets)):
            mine = table.of(s)
            scores = how.score(mine.columns(SIGNALS))
            low = 1 / (1 + np.exp(-scores)) < weights.threshold
            shares = [float(low[mine.present == there].mean()) for there in (True, False)]
            told = f"{len(mine.ids)} asks, AUROC {_shown(area(mine, scores))}, not found {shares[0]:.3f} and {shares[1]:.3f}"
            print(f"{name}, {s}: {told}")
