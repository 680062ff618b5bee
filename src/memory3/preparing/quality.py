"""A small judge of quality: grades predicted from the embedder's vectors, by ridge regression on graded examples.

    w, b = argmin  sum_i (w . v_i + b - g_i)^2 + k |w|^2

with v_i the vector of example i, of length 1, and g_i its grade. The strength k is the one of `STRENGTHS` with the smallest
error on examples that were left out one at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memory3.errors import InputError
from memory3.files import read_json, write_atomically
from memory3.text.readers import read_documents

__all__ = ["STRENGTHS", "Judge", "agreement", "fit", "fit_file", "ridge"]

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_FOLDS = 5
_FEWEST, _MOST = 20, 20_000
#: The field of an example that holds its grade, in this order.
_GRADES = ("grade", "score", "label", "quality")
#: The embedder reads some 256 tokens and cuts the rest off: no need to tokenize it.
_BEGINNING = 4000

Vectors = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Judge:
    """What was fitted, and to what.

    Attributes:
        embedder: whose vectors it takes.
        weights: one for each number of a vector.
        bias: added to their sum.
        strength: of the ridge.
        examples: how many it was fitted to.
        source: the file they came from.
        digest: of their texts and grades.
        agreement: of pairs of held-out examples with different grades, the share whose better one it grades higher; 0.5 is
            chance.
        error: root of the mean squared error on held-out examples.
        spread: standard deviation of the grades, which is the error of always saying their mean.
    """

    embedder: str
    weights: tuple[float, ...]
    bias: float
    strength: float
    examples: int
    source: str
    digest: str
    agreement: float
    error: float
    spread: float

    def grades(self, vectors: np.ndarray) -> np.ndarray:
        """Predicted grades, float64 ``[N]``.

        Args:
            vectors: float32 ``[N, d]``.
        """
        grades: np.ndarray = vectors.astype(np.float64) @ np.array(self.weights) + self.bias
        return grades

    def save(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        write_atomically(path, json.dumps({"format": 1, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Judge:
        """What `save` wrote. Raises OSError and ValueError."""
        data: dict[str, Any] = read_json(path)
        if data.pop("format", None) != 1:
            raise ValueError(f"{path} is of another format")
        return cls(**{**data, "weights": tuple(map(float, data["weights"]))})


def judged_part(text: str) -> str:
    """The part of a text that is judged."""
    return text[:_BEGINNING]


def fit_file(path: str, embedder: str, encode: Vectors) -> Judge:
    """Fit to a file of graded examples: records with a text and a number called grade, score, label or quality.

    Args:
        path: JSON lines, CSV or another table that `read_documents` takes.
        embedder: its name.
        encode: gives the vectors of texts, float32 ``[N, d]``.

    Raises:
        InputError: too few examples, no grades, or only one grade.
    """
    texts, grades = [], []
    for text, grade in _examples(path):
        texts.append(judged_part(text))
        grades.append(grade)
        if len(texts) > _MOST:
            raise InputError(f"{path} has more than {_MOST:,} examples: a sample of them is enough")
    if len(texts) < _FEWEST:
        raise InputError(f"{path} has {len(texts)} graded examples; at least {_FEWEST} are needed, some hundreds are better")
    if min(grades) == max(grades):
        raise InputError(f"all examples in {path} have the grade {grades[0]:g}: some must be better than others")
    state = hashlib.blake2b(digest_size=16)
    for text, grade in zip(texts, grades, strict=True):
        state.update(f"{len(text)} {grade!r} {text}".encode("utf-8", "surrogatepass"))
    return fit(encode(texts), np.array(grades), embedder, path, state.hexdigest())


def _examples(path: str) -> Iterator[tuple[str, float]]:
    for document in read_documents(path, id_field="", on_skip=lambda place, reason: None):
        found = next((document.metadata[name] for name in _GRADES if name in document.metadata), None)
        try:
            grade = float(found) if found is not None else math.nan
        except ValueError:
            grade = math.nan
        if not math.isfinite(grade):
            raise InputError(f"{document.id} has no grade: each example needs a number in a field called {', '.join(_GRADES)}")
        yield document.text, grade


def fit(vectors: np.ndarray, grades: np.ndarray, embedder: str = "", source: str = "", digest: str = "") -> Judge:
    """Fit to vectors and grades.

    Args:
        vectors: float32 ``[N, d]``.
        grades: float64 ``[N]``.
        embedder, source, digest: see `Judge`.
    """
    x, count = vectors.astype(np.float64), len(grades)
    order = np.random.default_rng(0).permutation(count)
    predicted = np.empty(count)
    for fold in range(_FOLDS):
        out = order[fold::_FOLDS]
        rest = np.setdiff1d(order, out)
        weights, bias = ridge(x[rest], grades[rest], _strength(x[rest], grades[rest]))
        predicted[out] = x[out] @ weights + bias
    strength = _strength(x, grades)
    weights, bias = ridge(x, grades, strength)
    return Judge(
        embedder,
        tuple(weights.tolist()),
        float(bias),
        strength,
        count,
        source,
        digest,
        agreement(predicted, grades),
        float(np.sqrt(np.mean((predicted - grades) ** 2))),
        float(np.std(grades)),
    )


def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Weights ``[d]`` and bias; the bias is not held down.

    Args:
        x: float64 ``[N, d]``.
        y: float64 ``[N]``.
        strength: k.
    """
    mean = x.mean(axis=0)
    centred = x - mean
    weights = np.linalg.solve(centred.T @ centred + strength * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
    return weights, float(y.mean() - mean @ weights)


def _strength(x: np.ndarray, y: np.ndarray) -> float:
    """That of the smallest error on examples left out one at a time: ``e_i / (1 - h_ii)``, h the matrix that maps grades to
    predictions.
    """
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    target = u.T @ (y - y.mean())
    errors = []
    for strength in STRENGTHS:
        shrunk = s**2 / (s**2 + strength)
        own = (u**2 * shrunk).sum(axis=1) + 1 / len(y)
        left = y - y.mean() - u @ (shrunk * target)
        errors.append(float(np.mean((left / np.maximum(1 - own, 1e-6)) ** 2)))
    return STRENGTHS[int(np.argmin(errors))]


def agreement(predicted: np.ndarray, grades: np.ndarray) -> float:
    """Of pairs with different grades, the share that is predicted in the right order; ties count half.

    Args:
        predicted: float64 ``[N]``.
        grades: float64 ``[N]``, not all the same.
    """
    better = pairs = 0.0
    for value, grade in zip(predicted, grades, strict=True):
        worse = predicted[grades < grade]
        pairs += len(worse)
        better += float((value > worse).sum()) + 0.5 * float((value == worse).sum())
    return better / pairs
