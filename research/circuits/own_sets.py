"""Passages and questions to measure a search on: a pool for each set, its keys and queries, and what other searches say.

Passages are encoded as memories are (`memory3.encode.encoder.Encoder.dense`), questions behind the prefix, where there are no
memories yet, and moved to where they lie once there are. Both are kept in files, a batch each, so that an interrupted run goes
on.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from transformers import DynamicCache

from memory3.attention.attach import Seen, attached
from memory3.attention.rotary import rotate
from memory3.evaluation.task import data_records
from memory3.llm import Memory3
from memory3.text.words import COMMON, stem, words
from memory3.types import Document, Reference

__all__ = ["Asked", "Pool", "bm25", "layer_of", "make_pool", "read_keys", "read_queries", "token_weights"]

_BATCH = 16
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """A question, the split it is of, and the numbers of the passages that hold its answer."""

    text: str
    split: str
    right: tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """One set.

    Attributes:
        name: of the set.
        references: the passages.
        asked: the questions, of dev and of test.
    """

    name: str
    references: list[Reference]
    asked: list[Asked]

    @property
    def right(self) -> np.ndarray:
        """bool ``[questions, N]``: which passages are right."""
        found = np.zeros((len(self.asked), len(self.references)), bool)
        for row, one in enumerate(self.asked):
            found[row, list(one.right)] = True
        return found


def make_pool(m3: Memory3, folder: Path, passages: int, questions: int, seed: int) -> Pool:
    """Documents that are asked about, dev and test by turns, then others, whole, until there are enough passages.

    A right passage is one of a right document and has an answer in it, word for word. Questions without one are left out.

    Args:
        m3: splits documents.
        folder: of the set: ``kb``, ``dev``, ``test``.
        passages: about how many.
        questions: of each split, at most.
        seed: of the order.
    """
    rng = random.Random(seed)
    texts = {str(record["id"]): record["text"] for record in data_records(folder, "kb")[0] if record["text"].strip()}
    names, splits = sorted(texts), {split: data_records(folder, split)[0] for split in ("dev", "test")}
    rng.shuffle(names)
    for records in splits.values():
        rng.shuffle(records)
    pooled: dict[str, list[Reference]] = {}
    found: list[tuple[str, str, list[str]]] = []
    counts, size = Counter[str](), 0

    def add(name: str) -> int:
        pooled[name] = list(m3.split(Document(name, texts[name])))
        return len(pooled[name])

    mixed = chain.from_iterable(zip_longest(*([(split, r) for r in records] for split, records in splits.items())))
    for split, record in filter(None, mixed):
        wanted = [str(name) for name in record["references"] if str(name) in texts]
        answers = [answer.lower() for answer in record["answers"] if answer.strip()]
        if counts[split] == questions or not wanted or (size >= passages and not set(wanted) <= set(pooled)):
            continue
        size += sum(add(name) for name in wanted if name not in pooled)
        right = [r.id for name in wanted for r in pooled[name] if any(answer in r.text.lower() for answer in answers)]
        if right:
            found.append((record["question"], split, right))
            counts[split] += 1
    for name in names:
        if size < passages and name not in pooled:
            size += add(name)
    references = [reference for some in pooled.values() for reference in some]
    places = {reference.id: number for number, reference in enumerate(references)}
    return Pool(folder.name, references, [Asked(q, s, tuple(places[name] for name in names_)) for q, s, names_ in found])


def _stored(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> None:
    if path.exists():
        return
    new = path.with_suffix(".new")
    safetensors.torch.save_file(make(), new)
    os.replace(new, path)


@torch.no_grad()
def read_keys(m3: Memory3, references: Sequence[Reference], folder: Path, told: Told) -> list[Path]:
    """Files of the passages' keys without rotation: by layer float16 ``[N, H, S, d]``, and ``lengths`` int64 ``[N]``."""
    folder.mkdir(parents=True, exist_ok=True)
    layers, first, paths = m3.encoder.shape.layers, len(m3.frame.prefix), []
    for start in range(0, len(references), _BATCH):
        some = references[start : start + _BATCH]
        paths.append(folder / f"keys-{start:05d}.safetensors")

        def make(some: Sequence[Reference] = some) -> dict[str, torch.Tensor]:
            dense = m3.encoder.dense(some, ())
            back = -torch.arange(first, first + dense.keys.shape[3])
            keys = {
                str(layer): rotate(dense.keys[:, n].float(), back, m3.geometry.angles[layer]).half().contiguous()
                for n, layer in enumerate(layers)
            }
            return keys | {"lengths": dense.lengths}

        _stored(paths[-1], make)
        told("passages", min(start + _BATCH, len(references)), len(references))
    return paths


@torch.no_grad()
def read_queries(m3: Memory3, questions: Sequence[str], folder: Path, told: Told) -> list[Path]:
    """Files of the questions' queries without rotation: by layer float16 ``[A, T, d]``; ``owner``, ``places``, ``tokens``.

    ``owner`` int64 ``[T]``: number of the question. ``places``: where a token lies behind a memory. ``tokens``: its id; -1 for
    the last token of the prompt, which comes last in each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(questions), _BATCH):
        some = [m3.prompts.ids(question) for question in questions[start : start + _BATCH]]
        paths.append(folder / f"queries-{start:05d}.safetensors")

        def make(some: Sequence[list[int]] = some, start: int = start) -> dict[str, torch.Tensor]:
            rows = [m3.frame.after(ids) for ids in some]
            padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
            for n, row in enumerate(rows):
                padded[n, : len(row)] = torch.tensor(row)  # what stands behind is seen by nobody
            seen = Seen()
            cache = DynamicCache()
            for layer, (key, value) in enumerate(m3.encoder.prefix):
                cache.update(*(x.expand(len(rows), -1, -1, -1) for x in (key, value)), layer)
            with attached(m3.model):
                m3.geometry.base(padded, past_key_values=cache, use_cache=True, memory3=seen)
            begin = len(rows[0]) - len(some[0]) - len(m3.frame.tail)
            taken = [[*range(begin, begin + len(ids)), len(row) - 1] for ids, row in zip(some, rows, strict=True)]
            which = torch.tensor([n for n, at in enumerate(taken) for _ in at])
            where = torch.tensor([place for at in taken for place in at])
            places, found = where + len(m3.frame.prefix), {}
            for layer in m3.encoder.shape.layers:
                query = seen.layers[layer][0][which, :, where].transpose(0, 1).float()
                found[str(layer)] = rotate(query, -places, m3.geometry.angles[layer]).half().contiguous()
            tokens = torch.tensor([token for ids in some for token in (*ids, -1)])
            return found | {"owner": which + start, "places": places + m3.config.reference_length, "tokens": tokens}

        _stored(paths[-1], make)
        told("questions", min(start + _BATCH, len(questions)), len(questions))
    return paths


def layer_of(paths: Sequence[Path], name: str) -> torch.Tensor:
    """One tensor of all files: of passages along N, with padding of zeros; of questions along T."""
    parts = []
    for path in paths:
        with safetensors.safe_open(path, "pt") as file:
            part = file.get_tensor(name)
        parts.append(part.float() if part.is_floating_point() else part)
    if parts[0].dim() == 1:
        return torch.cat(parts)
    if parts[0].dim() == 3:
        return torch.cat(parts, 1)
    span = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, span - part.shape[2])) for part in parts])


def token_weights(tokens: torch.Tensor, owner: torch.Tensor, references: Sequence[Reference], how: str) -> torch.Tensor:
    """How much each token counts in its question; they add up to 1 in each: float32 ``[T]``.

    Args:
        tokens: int64 ``[T]``; -1: the prompt's last.
        owner: int64 ``[T]``, number of the question.
        references: the passages, for how rare a token is.
        how: ``even``; ``rare``: by inverse document frequency; ``last``: the prompt's last token alone.
    """
    if how == "last":
        return (tokens == -1).float()
    weight = (tokens != -1).float()
    if how == "rare":
        seen = Counter(token for reference in references for token in set(reference.token_ids))
        size = len(references)
        weight *= torch.tensor([math.log(1 + (size - seen[t] + 0.5) / (seen[t] + 0.5)) for t in tokens.tolist()])
    total = torch.zeros(int(owner.max()) + 1).index_add_(0, owner, weight)
    return weight / total.clamp(min=1e-9)[owner]


def bm25(references: Sequence[Reference], questions: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Okapi BM25 of stems without common words: float32 ``[questions, N]``.

    Args:
        references: the passages.
        questions: texts.
        k1, b: its two constants, as usual.
    """
    bags = [Counter(stem(word) for word in words(reference.text)) for reference in references]
    seen = Counter(word for bag in bags for word in bag)
    sizes = np.array([sum(bag.values()) for bag in bags], float)
    norm, found = k1 * (1 - b + b * sizes / sizes.mean()), np.zeros((len(questions), len(bags)))
    for row, question in enumerate(questions):
        for word in {stem(word) for word in words(question) if word not in COMMON}:
            count = np.array([bag[word] for bag in bags], float)
            rare = math.log(1 + (len(bags) - seen[word] + 0.5) / (seen[word] + 0.5))
            found[row] += rare * count * (k1 + 1) / (count + norm)
    return found.astype(np.float32)
