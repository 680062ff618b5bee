"""What an answer looked at: for each of its tokens, which heads looked at which tokens of which passages.

Attention of a head is a softmax over all memories and the context. *Mass* of a pair is the part of it that went to the
pair, 0 to 1. A passage's token has the sum over all heads that kept its pair. Tokens whose pairs no head kept have none.

`explain` makes plain values of what a `memory3.attention.watching.Watch` was told. `memory3.interpret.explained` makes a
page of them.

Symbols: T tokens of the answer, L memory layers, A query heads, R passages, S tokens of a passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memory3.attention.watching import LayerLooks, Stretch, Watch
from memory3.types import Citation, Memory

__all__ = ["bounded", "explain", "pieces"]

#: Tokens of an answer that are explained, the first.
_TOKENS = 256
#: Heads that are named for a token, those with the largest mass.
_HEADS = 8
#: Tokens of passages that are named for a head.
_TARGETS = 3
#: Tokens of passages that `bounded` names for a token of the answer.
_LOOKS = 8


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the text of all.

    A character of several tokens belongs to the last of them, and the others are empty.
    """
    found, before = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:end]), clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd") or end == len(tokens)
        found.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return found


def explain(
    watch: Watch, tokenizer: Any, answer: Sequence[int], citations: Sequence[Citation], read: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What an answer looked at, as JSON values.

    Args:
        watch: was told of the answer.
        tokenizer: of the model.
        answer: its token ids.
        citations: every passage that was read.
        read: token ids of each of them, those that `memory3.types.Memory.positions` counts.

    Returns:
        ``layers``: numbers of the L memory layers. ``heads``: A. ``memory_heads``: L times the number of KV heads.
        ``passages``: ``id``, ``source``, ``start``, ``end``, ``share``, ``score``, and of each token ``text``, ``kept`` (how
        many KV heads of all layers kept its pair) and ``mass`` (its part of what all tokens of the answer paid to memories).
        ``answer``: of each token ``text``, ``reads`` (numbers of passages), ``mass`` (its attention to memories, mean over
        layers and heads), ``heads`` (the `_HEADS` that looked most: ``layer``, ``head``, ``mass``, and ``at``: passage, token
        and mass of the `_TARGETS` largest), ``map`` (``[L, A]`` mass of each head) and ``looks`` (passage, token and their
        part of what this token paid to memories, largest first).
        ``map``: ``[L, A]``, mean over the answer. ``left_out``: tokens of the answer that are not told.
    """
    layers = sorted({layer for stretch in watch.stretches for layer in stretch.layers})
    number = {citation.reference_id: n for n, citation in enumerate(citations)}
    lengths = [len(tokens) for tokens in read]
    heads = max((looks.weights.shape[1] for s in watch.stretches for looks in s.layers.values()), default=0)
    paid = [np.zeros(length) for length in lengths]
    told: list[dict[str, Any]] = []
    texts = pieces(tokenizer, answer[:_TOKENS])
    total = np.zeros((len(layers), heads))
    for stretch in watch.stretches:
        if len(told) == len(texts):
            break
        named = [number[name] for name in stretch.references]
        for row in range(min(stretch.tokens, len(texts) - len(told))):
            token, mine = _token(stretch, row, layers, heads, named, lengths)
            told.append({"text": texts[len(told)], **token})
            total += np.asarray(token["map"])
            paid = [a + b for a, b in zip(paid, mine, strict=True)]
    everything = sum(float(one.sum()) for one in paid) or 1.0
    passages = []
    for citation, tokens, mass in zip(citations, read, paid, strict=True):
        kept = _kept(watch.memories.get(citation.reference_id), len(tokens))
        passages.append(
            {
                "id": citation.reference_id,
                "source": citation.source or citation.document_id,
                "start": citation.start,
                "end": citation.end,
                "share": round(citation.share, 4),
                "score": round(citation.score, 4),
                "tokens": [
                    {"text": text, "kept": int(k), "mass": round(float(m) / everything, 5)}
                    for text, k, m in zip(pieces(tokenizer, tokens), kept, mass, strict=True)
                ],
            }
        )
    some = next(iter(watch.memories.values()), None)
    return {
        "layers": layers,
        "heads": heads,
        "memory_heads": 0 if some is None else int(some.counts.size),
        "passages": passages,
        "answer": told,
        "map": (total / max(1, len(told))).round(4).tolist(),
        "left_out": len(answer) - len(told),
    }


def bounded(found: dict[str, Any]) -> dict[str, Any]:
    """The same for a terminal: of each token the `_LOOKS` largest looks and no map; of passages the tokens that were kept.

    Args:
        found: from `explain`.
    """
    answer = [{**{k: v for k, v in t.items() if k != "map"}, "looks": t["looks"][:_LOOKS]} for t in found["answer"]]
    passages = [
        {**p, "tokens": [{"token": n, **t} for n, t in enumerate(p["tokens"]) if t["kept"]]} for p in found["passages"]
    ]
    return {**found, "answer": answer, "passages": passages}


def _token(
    stretch: Stretch, row: int, layers: Sequence[int], heads: int, named: Sequence[int], lengths: Sequence[int]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """One token of the answer, and its mass on each token of each passage."""
    mass = np.zeros((len(layers), heads))
    paid = [np.zeros(length) for length in lengths]
    for at, layer in enumerate(layers):
        looks = stretch.layers.get(layer)
        if looks is None:
            continue
        weights, owner, positions = _by_query_head(looks, row)
        mass[at] = (weights * (owner >= 0)).sum(1)
        for n, passage in enumerate(named):
            mine = owner == n
            np.add.at(paid[passage], positions[mine], weights[mine])
    most = []
    for flat in np.argsort(-mass, axis=None)[:_HEADS]:
        at, head = divmod(int(flat), heads)
        looks = stretch.layers.get(layers[at])
        if looks is None or mass[at, head] <= 0:
            continue
        weights, owner, positions = (x[head] for x in _by_query_head(looks, row))
        targets = [
            [named[owner[p]], int(positions[p]), round(float(weights[p]), 4)]
            for p in np.argsort(-weights * (owner >= 0))[:_TARGETS]
            if owner[p] >= 0
        ]
        most.append({"layer": layers[at], "head": head, "mass": round(float(mass[at, head]), 4), "at": targets})
    whole = sum(float(one.sum()) for one in paid) or 1.0
    looked = [(n, int(p), float(one[p]) / whole) for n, one in enumerate(paid) for p in np.flatnonzero(one)]
    looked.sort(key=lambda look: -look[2])
    return {
        "reads": list(named),
        "mass": round(float(mass.mean()) if mass.size else 0.0, 5),
        "heads": most,
        "map": mass.round(4).tolist(),
        "looks": [[n, p, round(share, 5)] for n, p, share in looked if share >= 5e-6],
    }, paid


def _by_query_head(looks: LayerLooks, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, owner and positions ``[A, M]`` of one token."""
    weights = looks.weights[row]
    group = weights.shape[0] // looks.owner.shape[0]
    return weights, looks.owner.repeat(group, 0), looks.positions.repeat(group, 0)


def _kept(memory: Memory | None, length: int) -> np.ndarray:
    """How many heads kept each token."""
    if memory is None:
        return np.zeros(length, np.int64)
    return np.bincount(memory.positions.astype(np.int64), minlength=length)[:length]
