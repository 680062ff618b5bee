"""What edges read and write, in words; and whether what they write is the same in all texts.

    output     what the edge adds to the residual stream; its words have the largest logits, by the last norm and the head
    input      tokens whose embedding the edge's activation hangs on: |gradient x embedding|
    variance   n / (n - 1) (1 - |mean o|^2 / mean |o|^2) of n outputs o, one of each token that the edge ends at: 0 where
               they are the same, 1 where they have nothing in common

A circuit's outputs are the probabilities that it gives alone, one vector for each text.

Knowledge is specific where outputs are nearly the same over texts, and abstract where they vary (arXiv 2407.01178, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memory3.interpret.circuit import Alignment, Edge
from memory3.interpret.gates import GatedModel, Seen
from memory3.interpret.weighing import log_likelihoods

__all__ = ["Written", "inputs", "outputs", "variance", "words"]


def _members(alignment: Alignment, numbers: Sequence[int], edge: Edge) -> torch.Tensor:
    """bool ``[B, T, T]`` of the attention edges, or ``[B, T]`` of the MLPs, that are this edge."""
    if edge.is_mlp:
        return torch.stack([alignment.role_ids(n) for n in numbers]) == alignment.roles.index(edge.to)
    return torch.stack([alignment.pair_ids(n) for n in numbers]) == alignment.pairs.index((edge.source, edge.to))


@dataclass(frozen=True)
class Written:
    """What one edge adds to the residual stream, M times: once for every token of every text that it ends at.

    Attributes:
        vectors: float32 ``[M, D]``.
        texts: of each, the number of its text, in rising order.
    """

    vectors: torch.Tensor
    texts: tuple[int, ...]

    def first(self, texts: int) -> torch.Tensor:
        """The first vector of each of the first texts that have the edge, ``[texts or fewer, D]``.

        Args:
            texts: how many.
        """
        starts = list(dict.fromkeys(self.texts))[:texts]
        return self.vectors[[self.texts.index(text) for text in starts]]


@torch.no_grad()
def outputs(gated: GatedModel, alignment: Alignment, edges: Sequence[Edge]) -> list[Written]:
    """What each edge writes. Where it reaches a token from several, that is their sum.

    Args:
        gated: the model.
        alignment: of the texts.
        edges: of the alignment.
    """
    found: list[dict[int, torch.Tensor]] = [{} for _ in edges]
    for numbers in alignment.batches():
        seen = Seen()
        log_likelihoods(gated, alignment, numbers, None, seen)
        for edge, out in zip(edges, found, strict=True):
            members = _members(alignment, numbers, edge).to(gated.model.device)
            if edge.is_mlp:
                added, there = seen.mlps[edge.layer], members
            else:
                heads = (seen.scores[edge.layer][:, edge.head] * members) @ seen.values[edge.layer][:, edge.head]
                added, there = gated.parts.written(edge.layer, edge.head, gated.heads, heads), members.any(-1)
            for number, vectors, mine in zip(numbers, added.float().cpu(), there.cpu(), strict=True):
                out[number] = vectors[mine]
    return [
        Written(torch.cat([out[n] for n in sorted(out)]), tuple(n for n in sorted(out) for _ in range(len(out[n]))))
        for out in found
    ]


def inputs(gated: GatedModel, alignment: Alignment, edges: Sequence[Edge]) -> list[dict[str, float]]:
    """For each edge, the share of every role's tokens in what its activation hangs on, the largest first.

    An attention edge's activation is its score, an MLP's the length of its output. One forward pass, and a backward pass for
    each edge, over the texts of the first batch.

    Args:
        gated: the model.
        alignment: of the texts.
        edges: of the alignment.
    """
    numbers, seen = max(alignment.batches(), key=len)[:8], Seen()
    roles = torch.stack([alignment.role_ids(n) for n in numbers])
    kept: list[torch.Tensor] = []

    def watch(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0]

    handle = gated.model.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            log_likelihoods(gated, alignment, numbers, None, seen)
    finally:
        handle.remove()
    found: list[dict[str, float]] = []
    for edge in edges:
        members = _members(alignment, numbers, edge).to(gated.model.device)
        layer = edge.layer
        with torch.enable_grad():
            # A length has no gradient where it is 0.
            active = (
                seen.mlps[layer].square().sum(-1).clamp_min(1e-20).sqrt() if edge.is_mlp else seen.scores[layer][:, edge.head]
            )
            total = (active * members).sum()
            [slope] = torch.autograd.grad(total, kept, retain_graph=True)
        each = (slope * kept[0]).sum(-1).abs().detach().double().cpu()
        by_role = torch.zeros(len(alignment.roles), dtype=torch.float64).index_add_(0, roles.flatten(), each.flatten())
        shares = by_role / by_role.sum().clamp_min(1e-30)
        order = shares.argsort(descending=True).tolist()
        found.append({alignment.roles[n]: float(shares[n]) for n in order if float(shares[n]) > 0})
    return found


def variance(vectors: torch.Tensor) -> float:
    """How far outputs differ, as above; not a number of fewer than two, or where all are 0.

    Args:
        vectors: ``[n, D]``.
    """
    count, whole = vectors.shape[0], float(vectors.double().square().sum())
    if count < 2 or not whole > 0:
        return float("nan")
    share = float(vectors.double().mean(0).square().sum()) * count / whole
    return count / (count - 1) * (1 - share)


@torch.no_grad()
def words(gated: GatedModel, tokenizer: Any, vectors: torch.Tensor, count: int = 5) -> list[list[str]]:
    """The tokens that vectors of the residual stream raise most, by themselves.

    Args:
        gated: the model.
        tokenizer: its tokenizer.
        vectors: ``[n, D]``.
        count: tokens of each.
    """
    found: list[list[str]] = []
    for some in vectors.split(64):
        logits = gated.parts.unembedded(some.to(gated.model.device, gated.model.dtype))
        found += [[str(tokenizer.decode([token])) for token in row] for row in logits.topk(count).indices.tolist()]
    return found
