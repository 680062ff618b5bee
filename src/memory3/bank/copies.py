"""Search that reads identical texts once: copies of one passage must not take the places of others."""

from __future__ import annotations

import itertools

import numpy as np

from memory3.bank.lookup import read_texts
from memory3.bank.reports import Hit
from memory3.bank.retriever import search
from memory3.bank.snapshot import Snapshot
from memory3.bank.where import Where

__all__ = ["search_distinct"]

#: Copies of a text have the same embedding, up to what padding in the embedder's batches does to it.
_TIE = 1e-3
#: How many times as many are looked for when copies leave places free.
_MORE = 4


def search_distinct(snapshot: Snapshot, vectors: np.ndarray, k: int, where: Where | None = None) -> list[list[Hit]]:
    """The ``k`` nearest references of each query, of which no two have the same text apart from white space at its ends.

    Of references with one text the first found counts.

    Args:
        snapshot: of the bank.
        vectors: embeddings of the queries, float32 ``[q, dimension]``, of length 1.
        k: hits per query at most.
        where: metadata that references must have; None: any.
    """
    hits = search(snapshot, vectors, k, where)
    open_ = list(range(len(hits)))  # queries that copies may have taken places of
    texts: dict[str, str] = {}
    found: list[list[Hit]] = [[] for _ in hits]
    wanted = k
    while open_:
        mine = dict(zip(open_, hits, strict=True))
        tied = {hit.reference_id for each in hits for hit in _tied(each)} - texts.keys()
        texts.update(read_texts(snapshot, sorted(tied)))
        for n, each in mine.items():
            found[n] = _first_of_each(each, texts)[:k]
        open_ = [n for n, each in mine.items() if len(found[n]) < k and len(each) == wanted]
        wanted = min(wanted * _MORE, snapshot.size)
        hits = search(snapshot, vectors[open_], wanted, where) if open_ else []
        if open_ and all(len(each) <= len(mine[n]) for n, each in zip(open_, hits, strict=True)):
            break  # there are no more
    return found


def _tied(hits: list[Hit]) -> list[Hit]:
    """Those whose score another one nearly has."""
    near = [a.score - b.score <= _TIE for a, b in itertools.pairwise(hits)]
    return [hit for n, hit in enumerate(hits) if (n and near[n - 1]) or (n < len(near) and near[n])]


def _first_of_each(hits: list[Hit], texts: dict[str, str]) -> list[Hit]:
    seen: set[str] = set()
    first = []
    for hit in hits:
        text = texts.get(hit.reference_id)
        if text is None or text not in seen:
            first.append(hit)
        if text is not None:
            seen.add(text)
    return first
