"""What was kept of each ask as a table of scores, their AUROC, and a logistic regression of a few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memory3.evaluation.intervals import DRAWS
from memory3.evaluation.metrics import auroc

__all__ = ["Fitted", "Table", "area", "fit", "model_scores"]


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
        sets = [
            words[k]["set"] + (", left out" if words[k]["set"] == "clapnq" and words[k]["kind"] == "out" else "") for k in keys
        ]
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
