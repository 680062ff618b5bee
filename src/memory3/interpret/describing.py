"""What edges read and write, in words; and whether what they write is the same in all texts.

    output     what the edge adds to the residual stream; its words have the largest logits, by the last norm and the head
    input      tokens whose embedding the edge's activation hangs on: |gradient x embedding|
    variance   n / (n - 1) (1 - |mean o|^2 / mean |o|^2) of the outputs o of n texts: 0 where they are the same, 1 where they
               have nothing in common

Knowledge is specific where outputs are nearly the same over texts, and abstract where they vary (arXiv 2407.01178, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memory3.interpret.circuit import Alignment, Edge
from memory3.interpret.gates import GatedModel, Seen
from memory3.interpret.weighing import log_likelihoods

__all__ = ["inputs", "outputs", "variance", "words"]


def _members(alignment: Alignment, numbers: Sequence[int], edge: Edge) -> torch.Tensor:
    """bool ``[B, T, T]`` of the attention edges, or ``[B, T]`` of the MLPs, that are this edge."""
    if edge.is_mlp:
        return torch.stack([alignment.role_ids(n) for n in numbers]) == alignment.roles.index(edge.to)
    return torch.stack([alignment.pair_ids(n) for n in numbers]) == alignment.pairs.index((edge.source, edge.to))


@torch.no_grad()
def outputs(gated: GatedModel, alignment: Alignment, edges: Sequence[Edge]) -> list[torch.Tensor]:
    """What each edge adds to the residual stream, float32 ``[texts, D]``: added up over a text's tokens that have its roles.

    Args:
        gated: the model.
        alignment: of the texts.
        edges: of the alignment.
    """
    found = [torch.zeros(len(alignment.texts), gated.model.config.get_text_config().hidden_size) for _ in edges]
    for numbers in alignment.batches():
        seen = Seen()
        log_likelihoods(gated, alignment, numbers, None, seen)
        for edge, out in zip(edges, found, strict=True):
            members = _members(alignment, numbers, edge).to(gated.model.device, gated.model.dtype)
            if edge.is_mlp:
                added = (members[..., None] * seen.mlps[edge.layer]).sum(1)
            else:
                scores = (seen.scores[edge.layer][:, edge.head] * members).sum(1)  # by key
                heads = (scores[..., None] * seen.values[edge.layer][:, edge.head]).sum(1)
                added = gated.parts.written(edge.layer, edge.head, gated.heads, heads)
            out[list(numbers)] = added.float().cpu()
    return found


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
    """How far outputs of several texts differ, as above; not a number of fewer than two.

    Args:
        vectors: ``[texts, D]``; texts that lack the edge have zeros.
    """
    there = vectors[vectors.abs().amax(1) > 0].double()
    count = there.shape[0]
    if count < 2:
        return float("nan")
    share = float(there.mean(0).square().sum() / there.square().sum(1).mean())
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
