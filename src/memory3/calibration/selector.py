"""Fitting the selector `learned`: least squares from a token's queries to the attention that questions paid it.

A passage is encoded once for its queries, and read once more in front of each of its questions with its answer; the attention
a token got from any of them is what is to be predicted:

    t_j = max over questions, tokens i of question and answer, and query heads of the group of  softmax_j(q_i . k_j * scale)
    w_h = argmin sum_j (w_h . [q_j ; 1] - t_j)^2 + ridge |w_h|^2

The attention itself is the target: its logarithm, or its root, predict worse which few pairs matter (research/log.md). A
passage without questions is read as its own repetition, so any text will do, and the selector then predicts
`reconstruction`.

Symbols: A query heads, H KV heads, d head dimension, L layers.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from memory3.calibration.formats import serve_formats
from memory3.encode.encoder import Encoder
from memory3.encode.selector_weights import SelectorWeights, keep_weights
from memory3.encode.selectors import LayerView, Selector, selector
from memory3.encode.selectors.learned import plain_queries
from memory3.errors import InputError
from memory3.files import open_unzipped
from memory3.llm import Memory3
from memory3.types import Document, Reference

__all__ = ["Passage", "answered", "calibrate_selector", "passages_in", "read_questions"]

PASSAGES = 240
_QUESTIONS = 3
_RIDGE = 30.0
_BATCH = 8


@dataclass(frozen=True)
class Passage:
    """A text with questions that it answers: (question, answer)."""

    text: str
    questions: Sequence[tuple[str, str]] = ()


class _Queries(Selector):
    """Scores nothing; keeps what selector `learned` looks at."""

    name: ClassVar[str] = "queries"

    def __init__(self) -> None:
        self.by_layer: dict[int, torch.Tensor] = {}

    def score(self, view: LayerView) -> torch.Tensor:
        """Zeros."""
        self.by_layer[view.layer] = plain_queries(view)
        return torch.zeros(view.key.shape[:3], device=view.key.device)


def calibrate_selector(
    m3: Memory3,
    passages: Iterable[Passage],
    *,
    number: int = PASSAGES,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> SelectorWeights:
    """Fit the selector to a model, and keep it in the cache folder: it is used from then on where the settings say ``learned``
    or ``blended``.

    Args:
        m3: the model, with the prefix and the length of references that memories will be written with.
        passages: each gives its first reference that holds an answer, or its first if it has no questions.
        number: how many are drawn.
        progress: told how many are done, of how many.
        seed: of the draw.

    Raises:
        InputError: no passage has a reference.
    """
    config = m3.config.replace(layers="all", budget="all", selector="first")
    encoder = Encoder(m3.model, m3.geometry, m3.frame, config)
    drawn = list(passages)
    random.Random(seed).shuffle(drawn)
    examples = list(answered(m3, drawn, number))
    if not examples:
        raise InputError("there is no text to fit the selector to: give files with passages")
    sums: _Sums | None = None
    asked = 0
    for start in range(0, len(examples), _BATCH):
        part = examples[start : start + _BATCH]
        queries = _Queries()
        encoder.dense([reference for reference, _ in part], [queries])
        for n, (reference, questions) in enumerate(part):
            length = len(reference.token_ids)
            target = _attention_paid(m3, encoder, reference, questions)[:, :, :length]
            found = [queries.by_layer[layer][n, :length] for layer in encoder.shape.layers]
            sums = sums or _Sums.zeros(len(found), found[0].shape[1] + 1, target.shape[1])
            sums.add(found, target)
            asked += len(questions)
        if progress is not None:
            progress(min(start + _BATCH, len(examples)), len(examples))
    assert sums is not None
    about = {"passages": len(examples), "questions": asked, "tokens": sums.count, "torch": torch.__version__}
    learned = SelectorWeights(m3.whole_model, encoder.shape.layers, sums.solved(), about)
    keep_weights(learned)
    serve_formats(m3)
    return learned


def answered(m3: Memory3, passages: Iterable[Passage], number: int) -> Iterator[tuple[Reference, list[tuple[str, str]]]]:
    """The first reference of each passage that holds an answer, with what it answers; of one that nobody asked, the first.

    Args:
        m3: whose references.
        passages: in the order wanted.
        number: how many at most.
    """
    taken = 0
    for passage in passages:
        references = list(m3.split(Document("passage", passage.text)))
        held = [(r, [qa for qa in passage.questions if qa[1] in r.text][:_QUESTIONS]) for r in references]
        best = next((each for each in held if each[1]), None)
        if passage.questions and best is None:
            continue  # its answers lie across two references, or are none of its words
        if best is None and held:
            best = held[0]
        if best is not None:
            yield best
            taken += 1
        if taken == number:
            return


def _attention_paid(m3: Memory3, encoder: Encoder, reference: Reference, questions: Sequence[tuple[str, str]]) -> torch.Tensor:
    """t, float32 ``[L, H, S]``."""
    scores = selector("reconstruction")
    if not questions:
        return encoder.dense([reference], [scores]).scores[0][0].cpu()
    asked = [[*m3.question_tokens(question), *m3.prompts.ids(answer)] for question, answer in questions]
    return encoder.dense([reference] * len(asked), [scores], asked=asked).scores[0].amax(0).cpu()


@dataclass
class _Sums:
    """Of every layer: X^T X ``[L, A d + 1, A d + 1]`` and X^T t ``[L, A d + 1, H]``, X being queries with a one behind."""

    squares: torch.Tensor
    products: torch.Tensor
    count: int = 0

    @classmethod
    def zeros(cls, layers: int, width: int, heads: int) -> _Sums:
        return cls(torch.zeros(layers, width, width), torch.zeros(layers, width, heads))

    def add(self, queries: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        """Queries ``[S, A d]`` of every layer, target ``[L, H, S]``."""
        for layer, query in enumerate(queries):
            x = torch.cat([query.float().cpu(), torch.ones(len(query), 1)], 1)
            self.squares[layer] += x.T @ x
            self.products[layer] += x.T @ target[layer].T
        self.count += target.shape[2]

    def solved(self) -> torch.Tensor:
        """w, float32 ``[L, A d + 1, H]``."""
        ridge = _RIDGE * torch.eye(self.squares.shape[1], dtype=torch.float64)
        return torch.linalg.solve(self.squares.double() + ridge, self.products.double()).float()


def passages_in(records: Iterable[dict[str, Any]]) -> Iterator[Passage]:
    """Passages of JSON records with ``passage``, ``question`` and ``answer``: questions of one passage together, in the order
    they first come.
    """
    together: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        together.setdefault(str(record["passage"]), []).append((str(record["question"]), str(record["answer"])))
    for text, questions in together.items():
        yield Passage(text, questions)


def read_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Records of JSON lines, gzipped or not, each with ``passage``, ``question`` and ``answer``.

    Raises:
        InputError: the file is none such.
    """
    try:
        with open_unzipped(path) as file, io.TextIOWrapper(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                record = json.loads(line)
                lacks = [name for name in ("passage", "question", "answer") if not isinstance(record.get(name), str)]
                if lacks:
                    raise InputError(
                        f"{path}, line {number}: has no {lacks[0]}; wanted are passage, question and answer as text"
                    )
                yield record
    except (OSError, EOFError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {error}") from None
