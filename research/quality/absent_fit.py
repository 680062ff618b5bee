"""AUROC of scores, alone and as a logistic regression of a few of them: fitted on dev, reported on test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memory3.evaluation.intervals import DRAWS
from memory3.evaluation.metrics import auroc
from memory3.files import write_atomically
from memory3.presence import SIGNALS, VERSION

__all__ = ["Fitted", "Table", "fit", "model_scores", "presence", "report"]

#: Scores that are fitted together. Those of `memory3.presence` cost nothing; ``embedded`` wants the references' tokens embedded.
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


def model_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Scores of what `research.quality.absent_read` kept of an ask, each to be high when the bank holds the answer."""
    words = {mode: np.array(row[f"words.{mode}"]) for mode in ("memory", "none", "text") if f"words.{mode}" in row}
    answer = {mode: np.array(row[f"answer.{mode}"]) for mode in words}
    weight = -words["none"] / max(float(-words["none"].sum()), 1e-6)  # of what a token told that was not known
    scores = {"copied": row["copied"], "attention": row["attention"] or 0.0}
    for mode, name in (("memory", ""), ("text", " (text)")):
        if mode not in words:
            continue
        gains = words[mode] - words["none"]
        scores |= {
            f"question: likelihood{name}": float(words[mode].mean()),
            f"question: gain{name}": float(gains.mean()),
            f"question: gain, weighted{name}": float((gains * weight).sum()),
            f"question: largest gain{name}": float(gains.max()),
            f"question: share explained{name}": float(gains.sum() / max(-words["none"].sum(), 1e-6)),
            f"answer: likelihood{name}": float(answer[mode].mean()),
            f"answer: least likely token{name}": float(answer[mode].min()),
            f"answer: first token{name}": float(answer[mode][0]),
            f"answer: gain{name}": float((answer[mode] - answer["none"]).mean()),
            f"answer: summed gain{name}": float((answer[mode] - answer["none"]).sum()),
            f"first token: entropy{name}": -row[f"entropy.{mode}"][0],
            f"three tokens: entropy{name}": -float(np.mean(row[f"entropy.{mode}"])),
        }
        if f"yes.{mode}" in row:
            scores[f"asked: yes{name}"] = row[f"yes.{mode}"]
            scores[f"asked: not mentioned{name}"] = -row[f"not mentioned.{mode}"]
    scores["first token: moved by memory"] = row["KL.none"]
    if "text" in words:
        scores["first token: agrees with text"] = -row["KL.text"]
        scores["answer: agrees with text"] = float((answer["text"] - answer["memory"]).mean())
    return scores


@dataclass(frozen=True)
class Table:
    """Asks of one split: N rows, F scores.

    Attributes:
        names: of the scores.
        values: float64 ``[N, F]``; not a number where a score was not taken.
        present: bool ``[N]``, whether the bank holds the answer.
        sets: name of the set of each row.
        ids: of its question.
        heads: float64 ``[N, 4, L, A]``, or None.
    """

    names: tuple[str, ...]
    values: np.ndarray
    present: np.ndarray
    sets: np.ndarray
    ids: np.ndarray
    heads: np.ndarray | None = None

    def of(self, name: str) -> Table:
        """The rows of one set."""
        return self._rows(self.sets == name)

    def without(self, name: str) -> Table:
        """The rows of the other sets."""
        return self._rows(np.array([not s.startswith(name) for s in self.sets], bool))

    def _rows(self, mine: np.ndarray) -> Table:
        return Table(
            self.names,
            self.values[mine],
            self.present[mine],
            self.sets[mine],
            self.ids[mine],
            None if self.heads is None else self.heads[mine],
        )

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """``[N, len(names)]``."""
        return self.values[:, [self.names.index(name) for name in names]]

    @classmethod
    def make(cls, words: Mapping[str, Any], model: Mapping[str, Any] | None, split: str) -> Table:
        """Of those asks that were searched and, with a model, read."""
        keys = [k for k, row in words.items() if row["split"] == split and (model is None or k in model)]
        sets = [words[k]["set"] + (", left out" if words[k]["set"] == "clapnq" and words[k]["kind"] == "out" else "") for k in keys]
        again = [k for k, s in zip(keys, sets, strict=True) if s == "clapnq" and words[k]["kind"] == "in"]
        if any(s.endswith("left out") for s in sets):  # both kinds of absence are set beside the same questions
            keys, sets = [*keys, *again], [*sets, *["clapnq, left out"] * len(again)]
        rows = [words[k]["scores"] | (model_scores(model[k]) if model else {}) for k in keys]
        names = tuple(dict.fromkeys(name for row in rows for name in row))
        heads = None
        if model and keys:
            heads = np.array([[model[k]["heads"][part] for part in ("question", "last", "answer", "peak")] for k in keys])
        return cls(
            names,
            np.array([[row.get(name, np.nan) for name in names] for row in rows]),
            np.array([words[k]["kind"] == "in" for k in keys]),
            np.array(sets),
            np.array([words[k]["id"] for k in keys]),
            heads,
        )


@dataclass(frozen=True)
class Fitted:
    """A logistic regression: odds = (x - mean) / spread @ weights + bias."""

    names: tuple[str, ...]
    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    bias: float

    def score(self, values: np.ndarray) -> np.ndarray:
        """Log-odds of ``[N, F]``."""
        found: np.ndarray = (values - self.mean) / self.spread @ self.weights + self.bias
        return found


def fit(names: Sequence[str], values: np.ndarray, present: np.ndarray, ridge: float = 3.0) -> Fitted:
    """Newton's method on the penalised likelihood.

    Args:
        names: of the scores.
        values: ``[N, F]``.
        present: bool ``[N]``.
        ridge: penalty on squared weights of standardised scores; none on the bias.
    """
    mean, spread = values.mean(0), values.std(0) + 1e-9
    x = np.concatenate([(values - mean) / spread, np.ones((len(values), 1))], axis=1)
    y, penalty = present.astype(float), np.array([ridge] * values.shape[1] + [1e-9])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty), x.T @ (y - p) - penalty * w)
        w = w + step
        if np.abs(step).max() < 1e-8:
            break
    return Fitted(tuple(names), mean, spread, w[:-1], float(w[-1]))


def area(table: Table, scores: np.ndarray) -> dict[str, Any]:
    """AUROC with its interval over questions, both asks of a question together; and by how much it is above the cosine's."""
    items: dict[str, list[tuple[bool, float, float]]] = {}
    for id_, present, score, cosine in zip(table.ids, table.present, scores, table.columns(["cosine"])[:, 0], strict=True):
        if not np.isnan(score):
            items.setdefault(id_, []).append((bool(present), float(score), float(cosine)))

    def of(some: Sequence[Any]) -> tuple[float, float]:
        flat = [ask for one in some for ask in one]
        mine, cosine = (auroc([a[n] for a in flat if a[0]], [a[n] for a in flat if not a[0]]) for n in (1, 2))
        return mine, mine - cosine

    found = list(items.values())
    if not found:
        return {"auroc": np.nan, "interval": [np.nan] * 2, "above cosine": [np.nan] * 3, "questions": 0}
    generator = np.random.default_rng(0)
    drawn = [of([found[i] for i in generator.integers(0, len(found), len(found))]) for _ in range(DRAWS // 10)]
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    mine, more = of(found)
    above = [float(x) for x in (more, low[1], high[1])]
    return {"auroc": mine, "interval": [float(low[0]), float(high[0])], "above cosine": above, "questions": len(found)}


def _shown(found: Mapping[str, Any]) -> str:
    sure = "*" if found["above cosine"][1] > 0 else ""
    return "{:.2f} [{:.2f}, {:.2f}]{}".format(found["auroc"], *found["interval"], sure)


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
    """The heads whose attention to memories tells most on dev, on the mean of the sets, one and ``most`` of them fitted."""
    assert dev.heads is not None
    assert test.heads is not None
    found = {}
    sets = [str(s) for s in dict.fromkeys(test.sets)]
    for part, name in enumerate(("over the question", "at the last token", "over the answer", "largest weight at the last token")):
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
        found[f"attention {name}, layer {layer} head {head}"] = {s: area(test.of(s), sign * theirs[test.sets == s, one]) for s in sets}
        names = tuple(map(str, best[:most]))
        fitted = fit(names, mine[:, best[:most]], dev.present)
        scores = fitted.score(theirs[:, best[:most]])
        found[f"attention {name}, {most} heads fitted"] = {s: area(test.of(s), scores[test.sets == s]) for s in sets}
    return found


def presence(words: Mapping[str, Any], embedder: str, gap: float, out: Path) -> None:
    """Fit what `memory3.presence` uses on dev of all sets, with the threshold that calls one in ten "not found" whose answer is
    in the bank, and tell what that is on test.
    """
    dev, test = (Table.make(words, None, split) for split in ("dev", "test"))
    fitted = fit(SIGNALS, dev.columns(SIGNALS), dev.present)
    sets = [str(s) for s in dict.fromkeys(test.sets)]

    def score(table: Table) -> np.ndarray:
        odds: np.ndarray = 1 / (1 + np.exp(-fitted.score(table.columns(SIGNALS))))
        return odds

    threshold = float(np.mean([np.quantile(score(dev.of(s))[dev.of(s).present], ALARMS) for s in sets]))
    told: dict[str, Any] = {}
    for s in sets:
        mine = test.of(s)
        low = score(mine) < threshold
        told[s] = {
            "auroc": round(area(mine, score(mine))["auroc"], 3),
            "not found, though it is there": round(float(low[mine.present].mean()), 3),
            "not found, and it is not there": round(float(low[~mine.present].mean()), 3),
            "asks": [int(mine.present.sum()), int((~mine.present).sum())],
        }
        print(s, told[s])
    about = {"fitted on": "dev of " + ", ".join(sets), "asks": len(dev.ids), "test": told, "by": "research/quality/absent.py"}
    numbers = {name: [round(float(x), 6) for x in getattr(fitted, name)] for name in ("mean", "spread", "weights")}
    search = {"embedder": embedder, "dimension": 384, "reference_length": 128, "k": 5, "gap": gap}
    made = {"version": VERSION, "signals": list(SIGNALS), **search, **numbers, "bias": round(fitted.bias, 6), "threshold": round(threshold, 4)}
    write_atomically(out, json.dumps({**made, "about": about}, indent=1) + "\n")
