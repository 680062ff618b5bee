"""Weights of edges two ways: by one gradient for all of them, and by taking each out, which is exact and slow.

    gradient   dL/dg at g = 1, which is score x dL/dscore: what taking the edge out would change if L were linear
    exact      L - L(g = 0)

L is the log-likelihood of the answer's tokens in nats, added up. Both are means over texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from memory3.interpret.circuit import Alignment, Edge, Weights
from memory3.interpret.gates import GatedModel, Gates, Means, Seen
from memory3.scoring import log_probabilities, token_log_likelihoods

__all__ = [
    "POINTS",
    "Progress",
    "carried",
    "exact_weights",
    "gradient_weights",
    "log_likelihoods",
    "mean_outputs",
    "said_alone",
]

#: Where the gradient is taken when means stand in. A model that is sure of its answer loses little by a small change, whatever
#: the edge: one step towards the means shows what it rests on (docs/circuits.md has the rank correlations).
POINTS = (1.0, 0.75)
#: Called with how much is done, and of how much.
Progress = Callable[[int, int], None]


def _batch(alignment: Alignment, numbers: Sequence[int]) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Tokens ``[B, T]``, the places of the answer's targets and the targets ``[B, S]`` of texts that are alike."""
    texts = [alignment.texts[n] for n in numbers]
    places = [place for place, _ in texts[0].targets]
    return (
        torch.tensor([text.tokens for text in texts]),
        places,
        torch.tensor([[token for _, token in text.targets] for text in texts]),
    )


def _kinds(alignment: Alignment, numbers: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.stack([alignment.pair_ids(n) for n in numbers]).to(device),
        torch.stack([alignment.role_ids(n) for n in numbers]).to(device),
    )


def log_likelihoods(
    gated: GatedModel, alignment: Alignment, numbers: Sequence[int], gates: Gates | None = None, seen: Seen | None = None
) -> torch.Tensor:
    """Log-likelihood of each text's answer in nats, ``[B]``.

    Args:
        gated: the model.
        alignment: of the texts.
        numbers: of texts that are alike (`Alignment.batches`).
        gates: of these texts.
        seen: is filled.
    """
    tokens, places, targets = _batch(alignment, numbers)
    logits = gated.logits(tokens, places, gates, seen)
    return token_log_likelihoods(logits, targets.to(logits.device)).sum(-1)


def gradient_weights(
    gated: GatedModel,
    alignment: Alignment,
    means: Means | None = None,
    progress: Progress | None = None,
    *,
    points: Sequence[float] = (1.0,),
) -> Weights:
    """Weights of all edges, by a forward and a backward pass over the texts at each point.

    Args:
        gated: the model.
        alignment: of the texts.
        means: what stands in for an edge that is out; None: nothing.
        progress: called after each batch.
        points: values that all gates have together while the gradient is taken; their gradients are averaged. At 1 alone, a
            sure answer's gradient is nearly 0 (`POINTS`).
    """
    attention = torch.zeros(gated.layers, gated.heads, len(alignment.pairs), dtype=torch.float64)
    mlps = torch.zeros(gated.layers, len(alignment.roles), dtype=torch.float64)
    done = 0
    for numbers, value in ((some, point) for some in alignment.batches() for point in points):
        kinds = _kinds(alignment, numbers, gated.model.device)
        gates = _open(gated, kinds, means, value)
        wanted = [gates.attention[n] for n in range(gated.layers)] + [gates.mlps[n] for n in range(gated.layers)]
        for gate in wanted:
            gate.requires_grad_()
        with torch.enable_grad():
            total = log_likelihoods(gated, alignment, numbers, gates).sum()
            found = [part.double().cpu() for part in torch.autograd.grad(total, wanted)]
        pairs, roles = (kind.cpu() for kind in kinds)
        seen = (pairs >= 0).flatten()
        for layer in range(gated.layers):
            by_head = found[layer].transpose(0, 1).flatten(1)[:, seen]
            attention[layer].index_add_(1, pairs.flatten()[seen], by_head)
            mlps[layer].index_add_(0, roles.flatten(), found[gated.layers + layer].flatten())
        done += len(numbers)
        if progress:
            progress(done, len(alignment.texts) * len(points))
    number = len(alignment.texts) * len(points)
    return Weights(alignment, attention / number, mlps / number)


def _open(gated: GatedModel, kinds: tuple[torch.Tensor, torch.Tensor], means: Means | None, value: float = 1.0) -> Gates:
    """Gates of all edges, each of one value."""
    rows, size = kinds[1].shape
    make: Any = {"dtype": gated.model.dtype, "device": gated.model.device}
    return Gates(
        {layer: torch.full((rows, gated.heads, size, size), value, **make) for layer in range(gated.layers)},
        {layer: torch.full((rows, size), value, **make) for layer in range(gated.layers)},
        means,
        kinds,
    )


@torch.no_grad()
def exact_weights(
    gated: GatedModel,
    alignment: Alignment,
    edges: Sequence[Edge],
    means: Means | None = None,
    progress: Progress | None = None,
    *,
    most: int = 1024,
) -> list[float]:
    """The weight of each edge: texts are read once with all edges, and once for each edge without it.

    Args:
        gated: the model.
        alignment: of the texts.
        edges: of the alignment.
        means: what stands in for an edge that is out; None: nothing.
        progress: called after each pass.
        most: tokens of a pass.
    """
    lost = torch.zeros(len(edges), dtype=torch.float64)
    done, total = 0, len(edges) * len(alignment.texts)
    for numbers in alignment.batches(most):
        whole = log_likelihoods(gated, alignment, numbers).double().cpu()
        size = len(alignment.texts[numbers[0]].tokens)
        step = max(1, most // (size * len(numbers)))
        for start in range(0, len(edges), step):
            some = edges[start : start + step]
            rows = list(numbers) * len(some)
            owners = [edge for edge in some for _ in numbers]
            gates = _without(gated, alignment, rows, owners, means)
            found = log_likelihoods(gated, alignment, rows, gates).double().cpu().view(len(some), len(numbers))
            lost[start : start + step] += (whole - found).sum(1)
            done += len(rows)
            if progress:
                progress(done, total)
    return (lost / len(alignment.texts)).tolist()


def _without(
    gated: GatedModel, alignment: Alignment, rows: Sequence[int], owners: Sequence[Edge], means: Means | None
) -> Gates:
    """Gates of texts, each without one edge."""
    kinds = _kinds(alignment, rows, gated.model.device)
    pairs = {pair: n for n, pair in enumerate(alignment.pairs)}
    roles = {role: n for n, role in enumerate(alignment.roles)}
    gates = Gates(means=means, kinds=kinds)
    size = kinds[1].shape[1]
    make: Any = {"dtype": gated.model.dtype, "device": gated.model.device}
    for row, edge in enumerate(owners):
        if edge.is_mlp:
            if edge.layer not in gates.mlps:
                gates.mlps[edge.layer] = torch.ones(len(rows), size, **make)
            gates.mlps[edge.layer][row].masked_fill_(kinds[1][row] == roles[edge.to], 0)
        else:
            if edge.layer not in gates.attention:
                gates.attention[edge.layer] = torch.ones(len(rows), gated.heads, size, size, **make)
            gates.attention[edge.layer][row, edge.head].masked_fill_(kinds[0][row] == pairs[edge.source, edge.to], 0)
    return gates


@torch.no_grad()
def mean_outputs(gated: GatedModel, alignment: Alignment) -> Means:
    """The mean of what each edge adds, over the texts that have it and its members in them.

    Args:
        gated: the model.
        alignment: of the texts.
    """
    pairs, roles = len(alignment.pairs), len(alignment.roles)
    attention: list[torch.Tensor] = []
    mlps: list[torch.Tensor] = []
    number_of_pairs, number_of_roles = torch.zeros(pairs), torch.zeros(roles)
    for numbers in alignment.batches():
        seen = Seen()
        log_likelihoods(gated, alignment, numbers, None, seen)
        kinds = [kind.cpu() for kind in _kinds(alignment, numbers, gated.model.device)]
        number_of_pairs += torch.bincount(kinds[0][kinds[0] >= 0], minlength=pairs)
        number_of_roles += torch.bincount(kinds[1].flatten(), minlength=roles)
        here = kinds[0] >= 0
        for layer in range(gated.layers):
            scores, values, out = (part[layer].double().cpu() for part in (seen.scores, seen.values, seen.mlps))
            if len(attention) <= layer:
                attention.append(torch.zeros(gated.heads, pairs, values.shape[-1], dtype=torch.float64))
                mlps.append(torch.zeros(roles, out.shape[-1], dtype=torch.float64))
            each = scores[..., None] * values[:, :, None]  # [B, A, to, source, d]
            attention[layer].index_add_(1, kinds[0][here], each.transpose(0, 1)[:, here])
            mlps[layer].index_add_(0, kinds[1].flatten(), out.flatten(0, 1))
    dtype, device = gated.model.dtype, gated.model.device
    return Means(
        [(part / number_of_pairs.clamp_min(1)[:, None]).to(device, dtype) for part in attention],
        [(part / number_of_roles.clamp_min(1)[:, None]).to(device, dtype) for part in mlps],
    )


@torch.no_grad()
def carried(
    gated: GatedModel, alignment: Alignment, edges: Iterable[Edge], means: Means | None = None, *, keep: bool
) -> list[float]:
    """Log-likelihood of each text's answer in nats with these edges alone, or without them.

    Args:
        gated: the model.
        alignment: of the texts.
        edges: of the alignment; none of them and ``keep``: the model without any edge.
        means: what stands in for an edge that is out; None: nothing.
        keep: whether they are all that is kept, or what is cut.
    """
    named = _named(gated, alignment, edges)
    found = [0.0] * len(alignment.texts)
    for numbers in alignment.batches():
        gates = _of_named(gated, alignment, numbers, named, means, keep)
        for number, value in zip(numbers, log_likelihoods(gated, alignment, numbers, gates).tolist(), strict=True):
            found[number] = value
    return found


@torch.no_grad()
def said_alone(gated: GatedModel, alignment: Alignment, edges: Iterable[Edge], means: Means | None = None) -> torch.Tensor:
    """Log-probabilities of the answer's first token with these edges alone, float32 ``[texts, V]``.

    Args:
        gated: the model.
        alignment: of the texts.
        edges: of the alignment.
        means: what stands in for an edge that is out; None: nothing.
    """
    named = _named(gated, alignment, edges)
    found: dict[int, torch.Tensor] = {}
    for numbers in alignment.batches():
        tokens, places, _ = _batch(alignment, numbers)
        gates = _of_named(gated, alignment, numbers, named, means, keep=True)
        logits = gated.logits(tokens, places[:1], gates)[:, 0]
        found |= dict(zip(numbers, log_probabilities(logits).float().cpu(), strict=True))
    return torch.stack([found[n] for n in range(len(alignment.texts))])


#: Which edges are named: bool ``[L, A, P]`` and ``[L, R]``.
_Named = tuple[torch.Tensor, torch.Tensor]


def _named(gated: GatedModel, alignment: Alignment, edges: Iterable[Edge]) -> _Named:
    pairs = {pair: n for n, pair in enumerate(alignment.pairs)}
    roles = {role: n for n, role in enumerate(alignment.roles)}
    attention = torch.zeros(gated.layers, gated.heads, len(pairs), dtype=torch.bool)
    mlps = torch.zeros(gated.layers, len(roles), dtype=torch.bool)
    for edge in edges:
        if edge.is_mlp:
            mlps[edge.layer, roles[edge.to]] = True
        else:
            attention[edge.layer, edge.head, pairs[edge.source, edge.to]] = True
    return attention, mlps


def _of_named(
    gated: GatedModel, alignment: Alignment, numbers: Sequence[int], named: _Named, means: Means | None, keep: bool
) -> Gates:
    """Gates of texts that have the named edges alone, or all others."""
    dtype, device = gated.model.dtype, gated.model.device
    kinds = _kinds(alignment, numbers, device)
    on_pairs, on_roles = (each if keep else ~each for each in named)
    # Above the diagonal no edge is: which pair stands there makes no difference.
    pairs, roles = kinds[0].cpu().clamp_min(0), kinds[1].cpu()
    return Gates(
        {n: on_pairs[n][:, pairs].transpose(0, 1).to(device, dtype) for n in range(gated.layers)},
        {n: on_roles[n][roles].to(device, dtype) for n in range(gated.layers)},
        means,
        kinds,
    )
