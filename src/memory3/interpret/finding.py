"""Find a circuit: weigh all edges, keep the heaviest, and say what they carry, read and write."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from memory3.errors import ConfigError, InputError, ModelError
from memory3.interpret.circuit import Alignment, Edge, Weights
from memory3.interpret.describing import inputs, outputs, variance, words
from memory3.interpret.gates import GatedModel, Means
from memory3.interpret.rates import statistics
from memory3.interpret.texts import Text
from memory3.interpret.weighing import (
    POINTS,
    carried,
    exact_weights,
    gradient_weights,
    log_likelihoods,
    mean_outputs,
    said_alone,
)

__all__ = ["BASELINES", "THRESHOLD", "find_circuit", "known", "rank_correlation"]

#: What stands in for an edge that is out.
BASELINES = ("mean", "zero")
#: Below this variance of its outputs over texts an edge, or a circuit, is specific, else abstract.
THRESHOLD = 0.5
#: Sizes of circuits whose share is told beside the one that was asked for.
_SIZES = (10, 30, 100, 300, 1000, 3000)
#: Words of an output; texts whose words are shown.
_WORDS, _SHOWN = 5, 3
#: Bytes of the weights and means of all edges.
_MOST_BYTES = 4 << 30
#: Edges of a circuit whose outputs and inputs are told.
_DESCRIBED = 40

#: Called with what is done, how much of it, and of how much.
Tell = Callable[[str, int, int], None]


def known(gated: GatedModel, texts: Sequence[Text], least: float, most: int, tell: Tell | None = None) -> list[int]:
    """Numbers of the texts whose answer is as likely as ``least`` or more, the likeliest first.

    Args:
        gated: the model.
        texts: in any order.
        least: probability of the whole answer.
        most: how many at most.
        tell: progress.
    """
    alignment, likelihoods = Alignment(texts), [0.0] * len(texts)
    for numbers in alignment.batches():
        with torch.no_grad():
            found = log_likelihoods(gated, alignment, numbers).tolist()
        for number, value in zip(numbers, found, strict=True):
            likelihoods[number] = value
        if tell:
            tell("asking", numbers[-1] + 1, len(texts))
    floor = math.log(least) if least > 0 else -math.inf
    order = sorted(range(len(texts)), key=lambda n: -likelihoods[n])
    return [n for n in order[:most] if likelihoods[n] >= floor]


def find_circuit(
    gated: GatedModel,
    tokenizer: Any,
    texts: Sequence[Text],
    *,
    edges: int = 40,
    baseline: str = "mean",
    exact: int = 40,
    threshold: float = THRESHOLD,
    seed: int = 0,
    tell: Tell | None = None,
) -> tuple[dict[str, Any], Weights]:
    """The circuit of some texts, as a report for JSON; and the weights of all edges.

    Args:
        gated: the model.
        tokenizer: its tokenizer.
        texts: of one kind of knowledge.
        edges: how many edges the circuit has.
        baseline: one of `BASELINES`.
        exact: of the heaviest edges, how many are also taken out one by one, and as many of the others, drawn at random.
        threshold: see `THRESHOLD`.
        seed: of that draw.
        tell: progress.

    Raises:
        ConfigError: an unknown baseline.
        InputError: no texts; or one alone, whose mean it would be itself.
    """
    if baseline not in BASELINES:
        raise ConfigError(f"baseline {baseline!r} is unknown: use {' or '.join(BASELINES)}")
    if not texts or (baseline == "mean" and len(texts) < 2):
        raise InputError(
            f"{len(texts) or 'no'} text: the baseline mean needs two texts or more, since a mean of one is that text. "
            "Give more, or the baseline zero"
        )
    alignment = Alignment(texts)
    _check_size(gated, alignment, baseline)
    say = tell or (lambda what, done, total: None)
    means = mean_outputs(gated, alignment) if baseline == "mean" else None
    points = POINTS if baseline == "mean" else (1.0,)
    weights = gradient_weights(gated, alignment, means, lambda done, total: say("gradient", done, total), points=points)
    if not bool(weights.attention.isfinite().all()) or not bool(weights.mlps.isfinite().all()):
        raise ModelError(
            f"{gated.parts.name} computes what is not finite on these texts; is its dtype too narrow for its weights?"
        )
    circuit = weights.ranked(edges)
    measured = _measured(gated, weights, circuit, exact, seed, means, say)
    described = _described(gated, tokenizer, alignment, circuit, weights, measured, threshold, say)
    report: dict[str, Any] = {
        "baseline": baseline,
        "points": list(points),
        "texts": len(texts),
        "edges in all": weights.count,
        "roles": _ordered(alignment),
        "circuit": _carried(gated, alignment, weights, circuit, means, say),
        "edges": described,
        "gradient against exact": rank_correlation(weights, measured, circuit),
    }
    # What the circuit says alone: probabilities of the answer's first token, one vector for each text.
    said = said_alone(gated, alignment, circuit, means).exp()
    report["circuit"] |= _kind(said, threshold) | {"threshold": threshold}
    return report, weights


def _check_size(gated: GatedModel, alignment: Alignment, baseline: str) -> None:
    """Raise InputError where the texts have so many kinds of edges that their weights, or their means, do not fit into RAM."""
    longest, kinds = max(len(text.tokens) for text in alignment.texts), len(alignment.pairs)
    numbers = 2 * gated.layers * gated.heads * kinds
    if baseline == "mean":  # how much of each kind every query lacks, in all layers
        numbers += gated.layers * gated.heads * max(longest, 512) * kinds
    if 4 * numbers > _MOST_BYTES:
        more = ", or the baseline zero" if baseline == "mean" else ""
        raise InputError(
            f"these texts have {kinds:,} kinds of attention edges of {len(alignment.roles)} roles, whose weights would take "
            f"{4 * numbers / 1e9:.0f} GB: give shorter texts, or name their subjects{more}"
        )


def _measured(
    gated: GatedModel, weights: Weights, circuit: Sequence[Edge], exact: int, seed: int, means: Means | None, say: Tell
) -> dict[Edge, float]:
    """The exact weights of the heaviest edges and of some others."""
    if not exact:
        return {}
    every = weights.ranked()
    heaviest, rest = every[:exact], every[exact:]
    chosen = [*heaviest, *random.Random(seed).sample(rest, min(exact, len(rest)))]
    found = exact_weights(gated, weights.alignment, chosen, means, lambda done, total: say("ablation", done, total))
    return dict(zip(chosen, found, strict=True))


def rank_correlation(weights: Weights, measured: dict[Edge, float], heaviest: Sequence[Edge]) -> dict[str, Any]:
    """Spearman's rank correlation of the two weights: of all edges that were measured, of attention alone, and of MLPs.

    Args:
        weights: by gradient.
        measured: exact.
        heaviest: the edges of the circuit, whose number among the measured is told.
    """
    groups = {
        "all": list(measured),
        "attention": [edge for edge in measured if not edge.is_mlp],
        "MLPs": [edge for edge in measured if edge.is_mlp],
    }
    found: dict[str, Any] = {"edges": len(measured), "of the circuit": len(set(heaviest) & set(measured))}
    for name, some in groups.items():
        if len(some) > 2:
            ours, exact = [weights.of(edge) for edge in some], [measured[edge] for edge in some]
            value = float(statistics().spearmanr(ours, exact).statistic)
            found[name] = None if value != value else value
    return found


def _described(
    gated: GatedModel,
    tokenizer: Any,
    alignment: Alignment,
    circuit: Sequence[Edge],
    weights: Weights,
    measured: dict[Edge, float],
    threshold: float,
    say: Tell,
) -> list[dict[str, Any]]:
    heaviest = circuit[:_DESCRIBED]
    written, read = outputs(gated, alignment, heaviest), inputs(gated, alignment, heaviest)
    found: list[dict[str, Any]] = []
    for number, edge in enumerate(circuit):
        each: dict[str, Any] = {"layer": edge.layer, "head": None if edge.is_mlp else edge.head, "source": edge.source}
        each |= {"to": edge.to, "weight": weights.of(edge), "exact": measured.get(edge)}
        if number < len(heaviest):
            out = written[number]
            says = words(gated, tokenizer, torch.cat([out.vectors.mean(0, keepdim=True), out.first(_SHOWN)]), _WORDS)
            each |= {**_kind(out.vectors, threshold), "writes": says[0], "writes in the first texts": says[1:]}
            each["reads"] = dict(list(read[number].items())[:_SHOWN])
            say("words", number + 1, len(heaviest))
        found.append(each)
    return found


def _kind(vectors: torch.Tensor, threshold: float) -> dict[str, Any]:
    found = variance(vectors)
    if found != found:
        return {"variance": None, "kind": "unknown"}
    return {"variance": found, "kind": "specific" if found < threshold else "abstract"}


def _carried(
    gated: GatedModel, alignment: Alignment, weights: Weights, circuit: Sequence[Edge], means: Means | None, say: Tell
) -> dict[str, Any]:
    """Mean log-likelihoods with the heaviest edges alone and without them; a share is of what all edges give over none."""

    def mean(edges: Sequence[Edge], keep: bool) -> float:
        return sum(carried(gated, alignment, edges, means, keep=keep)) / len(alignment.texts)

    whole, none = mean([], False), mean([], True)
    every, sizes = weights.ranked(), sorted({len(circuit), *(size for size in _SIZES if size < weights.count)})
    found: dict[str, Any] = {"all edges": whole, "no edge": none, "sizes": []}
    for number, size in enumerate(sizes, 1):
        kept, cut = mean(every[:size], True), mean(every[:size], False)
        gain = whole - none
        each = {"edges": size, "kept alone": kept, "cut": cut, "share": (kept - none) / gain if gain > 0 else None}
        found["sizes"].append(each)
        if size == len(circuit):
            found |= each
        say("keeping and cutting", number, len(sizes))
    return found


def _ordered(alignment: Alignment) -> list[str]:
    """Roles as they follow one another: those of the text that has most of them, and others behind their neighbours."""
    ordered: list[str] = []
    for text in sorted(alignment.texts, key=lambda one: -len(set(one.roles))):
        at = 0
        for role in text.roles:
            if role not in ordered:
                ordered.insert(at, role)
            at = ordered.index(role) + 1
    return ordered
