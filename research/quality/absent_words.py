"""Scores of a search that need no language model: cosines and their margins, and how much of a question is found in the
references by its words, names and numbers, or by the embedder's vectors of single tokens and sentences.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from memory3.presence import signals
from memory3.text.words import COMMON, stem, words
from memory3.types import Reference
from research.quality.absent_asks import KnowledgeBase

__all__ = ["EMBEDDED", "Vectors", "Words", "copied", "cosines", "tokens_found"]

#: What `tokens_found` gives.
EMBEDDED = ("token matches, mean", "token matches, worst", "token matches of those read", "nearest sentence")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def cosines(hits: Sequence[tuple[str, float]], gap: float) -> dict[str, float]:
    """The best cosine, and how far it stands from the next ones."""
    c = [score for _, score in hits]
    rest = np.array(c[1:])
    return {
        "cosine margin to 2nd": c[0] - c[1],
        "cosine margin to mean of 20": c[0] - float(rest.mean()),
        "cosine z of 20": (c[0] - float(rest.mean())) / max(float(rest.std()), 1e-3),
        "hits in gap": -float(sum(s >= c[0] - gap for s in c[:5])),
    }


def copied(answer: str, question: str, read: Sequence[Reference]) -> float:
    """Share of the answer's words, those of the question left out, that stand in the references; 0 where there are none."""
    asked = {stem(w) for w in words(question)} | COMMON
    new = [stem(w) for w in words(answer) if w not in COMMON and stem(w) not in asked]
    there = {stem(w) for r in read for w in words(r.read_text)}
    return sum(w in there for w in new) / len(new) if new else 0.0


class Words:
    """Words of a knowledge base, by how many of its references have them."""

    def __init__(self, base: KnowledgeBase) -> None:
        self.base = base
        self._sets = [[stem(w) for w in words(r.read_text)] for r in base.references]
        self._seen = Counter(w for words in self._sets for w in set(words))
        self._mean = float(np.mean([len(words) for words in self._sets]))

    def _weight(self, word: str) -> float:
        n = len(self._sets)
        return math.log(1 + (n - self._seen[word] + 0.5) / (self._seen[word] + 0.5))

    def found(self, question: str, hits: Sequence[tuple[str, float]], gap: float) -> dict[str, float]:
        """How much of a question the references have that it found.

        Args:
            question: text.
            hits: ids and cosines, best first.
            gap: of cosines, within which references are read.
        """
        asked = [w for w in dict.fromkeys(words(question)) if w not in COMMON]
        named = {w for word in question.split()[1:] for w in words(word) if word[0].isupper() or any(map(str.isdigit, w))}
        stems = [stem(w) for w in asked] or [""]
        weights = np.array([self._weight(w) for w in stems])
        read = [self.base.by_id[name] for name, score in hits[:5] if score >= hits[0][1] - gap]
        near = [self.base.by_id[name] for name, _ in hits[:5]]
        has = {n: np.array([w in set(self._sets[n]) for w in stems], float) for n in near}
        every = np.max([has[n] for n in read], axis=0)
        names = [stem(w) for w in asked if w in named]
        there = set().union(*(self._sets[n] for n in read))
        scores = [self._bm25(stems, n) for n in near]
        most = sum(self._weight(w) * 2.2 for w in stems)
        texts = [self.base.references[n].read_text for n in read]
        return signals(question, [score for _, score in hits[:5]], texts) | {
            "words in best": float(has[near[0]] @ weights / weights.sum()),
            "words in one of those read": max(float(has[n] @ weights / weights.sum()) for n in read),
            "words in those read": float(every @ weights / weights.sum()),
            "plain words in those read": float(every.mean()),
            "rarest word in those read": float(every[int(weights.argmax())]),
            "names in those read": float(np.mean([w in there for w in names])) if names else 1.0,
            "BM25 of best": scores[0] / most,
            "BM25 highest of 5": max(scores) / most,
            "BM25 highest of 5, raw": max(scores),
        }

    def _bm25(self, stems: Sequence[str], n: int) -> float:
        counts, size = Counter(self._sets[n]), len(self._sets[n])
        total = 0.0
        for w in stems:
            if counts[w]:
                total += self._weight(w) * counts[w] * 2.2 / (counts[w] + 1.2 * (0.25 + 0.75 * size / self._mean))
        return total


class Vectors:
    """Vectors of single tokens, of the embedder."""

    def __init__(self, embedder: Any) -> None:
        self._model, self._tokenizer = embedder._model._model, embedder._model._tokenizer
        self._kept: dict[str, tuple[torch.Tensor, list[int]]] = {}

    @torch.inference_mode()
    def of(self, text: str) -> tuple[torch.Tensor, list[int]]:
        """float32 ``[T, e]`` of length 1, and the ids, without the two special tokens."""
        if text not in self._kept:
            row = self._tokenizer([text], truncation=True, return_tensors="pt")
            found = self._model(**row).last_hidden_state[0, 1:-1]
            self._kept[text] = torch.nn.functional.normalize(found, dim=-1), row["input_ids"][0, 1:-1].tolist()
        return self._kept[text]


def tokens_found(
    vectors: Vectors, embedder: Any, question: str, read: Sequence[Reference], cosine: np.ndarray
) -> dict[str, float]:
    """ColBERT's sum of best matches between tokens of the question and of one reference, over the question's length; and the
    nearest single sentence.

    Args:
        vectors: of tokens.
        embedder: of sentences.
        question: text.
        read: references.
        cosine: float32 ``[e]``, the question's vector.
    """
    mine, ids = vectors.of(question)
    keep = torch.tensor([vectors._tokenizer.convert_ids_to_tokens(i) not in COMMON | {"?", ",", "."} for i in ids])
    if not keep.any():
        keep[:] = True
    best = [(mine @ vectors.of(r.read_text)[0].T).amax(1) for r in read]
    whole = torch.stack([b[keep] for b in best])
    sentences = [s for r in read for s in _SENTENCE.split(r.read_text) if len(s.split()) > 2] or [read[0].read_text]
    return {
        "token matches, mean": float(whole.mean(1).max()),
        "token matches, worst": float(whole.amin(1).max()),
        "token matches of those read": float(whole.amax(0).mean()),
        "nearest sentence": float((embedder.encode(sentences) @ cosine).max()),
    }
