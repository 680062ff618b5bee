"""Induction heads by the scores of the literature (C. Olsson et al., arXiv 2209.11895), to compare a circuit with.

On random tokens that are repeated, for every head:

    prefix matching   the mean attention of a repeated token to the one behind its earlier copy
    copying           the mean share, in what the head's output raises of the text's own tokens, of the token that it attends
                      to most. What is raised: logits above their mean over the text's tokens. By chance 1 / n of n tokens.

Olsson's copying score weighs all attended tokens; here the one attended most counts, which needs no other scale.
"""

from __future__ import annotations

from typing import Any

import torch

from memory3.interpret.circuit import Alignment, Weights
from memory3.interpret.gates import GatedModel, Seen
from memory3.interpret.rates import statistics
from memory3.interpret.weighing import Progress, log_likelihoods

__all__ = ["MATCHED", "agreement", "copying", "drawn_from", "prefix_matching"]

#: The pair of a repeated text that induction is: ``(source, to)``.
MATCHED = ("matched", "again")


@torch.no_grad()
def prefix_matching(gated: GatedModel, alignment: Alignment) -> torch.Tensor:
    """Prefix-matching scores, float32 ``[L, A]``, from 0 to 1.

    Args:
        gated: the model.
        alignment: of repeated texts.
    """
    found = torch.zeros(gated.layers, gated.heads)
    for numbers in alignment.batches():
        seen = Seen()
        log_likelihoods(gated, alignment, numbers, None, seen)
        matched = torch.stack([alignment.pair_ids(n) for n in numbers]) == alignment.pairs.index(MATCHED)
        per_text = matched.sum((1, 2)).float()
        for layer, scores in seen.scores.items():
            mine = (scores.float().cpu() * matched[:, None]).sum((2, 3)) / per_text[:, None]
            found[layer] += mine.sum(0) / len(alignment.texts)
    return found


@torch.no_grad()
def copying(gated: GatedModel, alignment: Alignment, progress: Progress | None = None) -> torch.Tensor:
    """Copying scores, float32 ``[L, A]``, from 0 to 1.

    Args:
        gated: the model.
        alignment: of repeated texts.
        progress: called after each layer.
    """
    found = torch.zeros(gated.layers, gated.heads)
    batches = alignment.batches()
    for number, numbers in enumerate(batches):
        seen = Seen()
        log_likelihoods(gated, alignment, numbers, None, seen)
        tokens = torch.tensor([alignment.texts[n].tokens for n in numbers])
        again = torch.tensor([[role == "again" for role in alignment.texts[n].roles] for n in numbers])
        front = torch.tensor([[role == "front" for role in alignment.texts[n].roles] for n in numbers])
        for layer in range(gated.layers):
            scores, values = seen.scores[layer], seen.values[layer]
            for head in range(gated.heads):
                mixed = scores[:, head] @ values[:, head]
                for row in range(len(numbers)):
                    found[layer, head] += _raised(
                        gated, layer, head, mixed[row], scores[row, head], tokens[row], again[row], front[row]
                    )
            if progress:
                progress(number * gated.layers + layer + 1, len(batches) * gated.layers)
    return found / len(alignment.texts)


def _raised(
    gated: GatedModel,
    layer: int,
    head: int,
    mixed: torch.Tensor,
    scores: torch.Tensor,
    tokens: torch.Tensor,
    again: torch.Tensor,
    front: torch.Tensor,
) -> float:
    """Of one text: ``mixed`` ``[T, d]``, ``scores`` ``[T, T]``; the mean over its repeated tokens."""
    kinds = tokens[~front & ~again].unique()
    out = gated.parts.written(layer, head, gated.heads, mixed[again.to(mixed.device)])
    logits = gated.parts.unembedded(out)[:, kinds.to(out.device)].float().cpu()
    raised = (logits - logits.mean(1, keepdim=True)).clamp_min(0)
    # Attention to the front is attention to nothing: among the text's own tokens the most attended counts.
    most = scores.float().cpu()[again].masked_fill(front, -1).argmax(1)
    place = (kinds[None] == tokens[most][:, None]).int().argmax(1)
    return float((raised.gather(1, place[:, None])[:, 0] / raised.sum(1).clamp_min(1e-30)).mean())


def drawn_from(tokenizer: Any) -> list[int]:
    """Tokens that random texts are drawn from: neither the most common nor the rarest, as far as their order in the vocabulary
    tells, and none of special meaning.

    Args:
        tokenizer: of the model.
    """
    size, special = len(tokenizer), set(tokenizer.all_special_ids)
    return [token for token in range(size // 50, size // 2) if token not in special]


def agreement(weights: Weights, matching: torch.Tensor, copied: torch.Tensor, most: int = 10) -> dict[str, Any]:
    """The heads that weigh most in induction with their scores, and how well weight and prefix matching agree.

    Args:
        weights: of repeated texts.
        matching: from `prefix_matching`.
        copied: from `copying`.
        most: heads that are told.
    """
    mine = weights.attention[:, :, weights.alignment.pairs.index(MATCHED)].flatten()
    scores, shares, heads = matching.flatten(), copied.flatten(), matching.shape[1]
    order = mine.argsort(descending=True)[:most].tolist()
    best = set(scores.argsort(descending=True)[:most].tolist())
    return {
        "heads": [
            {
                "layer": at // heads,
                "head": at % heads,
                "weight": float(mine[at]),
                "prefix matching": float(scores[at]),
                "copying": float(shares[at]),
            }
            for at in order
        ],
        "rank correlation": float(statistics().spearmanr(mine.numpy(), scores.numpy()).statistic),
        "shared": len(set(order) & best),
    }
