"""Finding references by the queries of the model's own heads: recall at 1, 3 and 5 beside MiniLM and BM25, and what it costs.

    python -m research.circuits.own_queries --data DIR --cache DIR --out FILE [--model M --dtype bfloat16]

The paper's Remark 2 proposes it. Each set has one pool of passages for all ways to search (`research.circuits.own_sets`), and
each head a score of every passage (`research.circuits.own_scores`). Every other question of dev chooses heads, the others of
dev choose the kind of score and how many heads, all of dev fits what is learned, test is reported. Heads are chosen over the
sets together. What is learned is also fitted without the set that it is reported on (``learned on others``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory3.bank.embedder import Embedder
from memory3.cli.progress import StepMeter
from memory3.evaluation.intervals import interval
from memory3.files import write_atomically
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_EMBEDDER
from research.circuits.own_costs import costs
from research.circuits.own_scores import KINDS, head_scores, mean_reciprocal_rank, ranks, standardised
from research.circuits.own_sets import Pool, bm25, layer_of, make_pool, read_keys, read_queries, token_weights

SETS = ("wiki_qa", "qa/tatqa", "qa/friendsqa")
WEIGHTS = ("even", "rare", "last")
SIZES = (1, 2, 4, 8, 16, 32)
#: Heads of a kind that are scored for all questions, and of the chosen kind that what is learned weighs.
_SHORTLIST, _LEARNED = 32, 8
_RIDGES = (0.001, 0.01, 0.1)

Head = tuple[int, int]


@dataclass
class Searched:
    """A pool with what is known of it.

    Attributes:
        pool: passages and questions.
        keys, queries: files.
        known: scores of other searches, ``[questions, N]`` by name.
        heads: scores by kind and weights, ``[heads, questions, N]``, in the order of the shortlist.
    """

    pool: Pool
    keys: list[Path]
    queries: list[Path]
    known: dict[str, np.ndarray]
    heads: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def rows(self, part: str) -> np.ndarray:
        """Numbers of the questions: ``choose`` and ``check`` are the halves of ``dev``; ``test``."""
        dev = [n for n, one in enumerate(self.pool.asked) if one.split == "dev"]
        if part == "test":
            return np.array([n for n, one in enumerate(self.pool.asked) if one.split == "test"])
        return np.array({"choose": dev[::2], "check": dev[1::2], "dev": dev}[part])


class Heads:
    """Scores by all heads of a model, or by some."""

    def __init__(self, m3: Memory3) -> None:
        self.layers, self.angles = m3.encoder.shape.layers, m3.geometry.angles
        self.first = len(m3.frame.prefix)

    def scores(
        self,
        found: Searched,
        rows: np.ndarray,
        wanted: Callable[[str, int, int], Sequence[int]],
    ) -> dict[tuple[str, str], dict[Head, np.ndarray]]:
        """``[rows, N]`` by kind and head.

        Args:
            found: the pool.
            rows: questions.
            wanted: of a kind, a layer and the query heads that there are: which heads.
        """
        owner, places, tokens, lengths = (
            layer_of(paths, name)
            for paths, name in (
                (found.queries, "owner"),
                (found.queries, "places"),
                (found.queries, "tokens"),
                (found.keys, "lengths"),
            )
        )
        number = torch.full((len(found.pool.asked),), -1)
        number[torch.from_numpy(rows)] = torch.arange(len(rows))
        at = torch.nonzero(number[owner] >= 0)[:, 0]
        weights = torch.stack([token_weights(tokens, owner, found.pool.references, how)[at] for how in WEIGHTS])
        of_dev = torch.isin(owner, torch.from_numpy(found.rows("dev")))
        last = tokens == -1
        result: dict[tuple[str, str], dict[Head, np.ndarray]] = {(kind, how): {} for kind in KINDS for how in WEIGHTS}
        for layer in self.layers:
            query, keys = layer_of(found.queries, str(layer)), layer_of(found.keys, str(layer))
            means = torch.empty_like(query)
            for group in (last, ~last):  # the prompt's last token is like no other
                means[:, group] = query[:, of_dev & group].mean(1, keepdim=True)
            for kind in KINDS:
                heads = list(wanted(kind, layer, len(query)))
                if not heads:
                    continue
                size = len(query) // keys.shape[1]
                some = head_scores(
                    kind,
                    query[:, at],
                    places[at],
                    number[owner[at]],
                    weights,
                    means[:, at],
                    keys,
                    lengths,
                    self.angles[layer],
                    heads,
                    size,
                    self.first,
                )
                for head, ways in zip(heads, some.numpy(), strict=True):
                    for how, one in zip(WEIGHTS, ways, strict=True):
                        result[kind, how][layer, head] = one
        return result


def fitted(
    blocks: Sequence[tuple[np.ndarray, np.ndarray]], ridge: float, positive: bool = False, steps: int = 60
) -> np.ndarray:
    """Weights of features under which a softmax over the passages says the right ones: float32 ``[F]``.

    Args:
        blocks: of each set features ``[F, questions, N]``, standardised, and bool ``[questions, N]``.
        ridge: of the squared weights.
        positive: of no weight below 0.
        steps: of L-BFGS.
    """
    data = [(torch.from_numpy(x).float(), torch.from_numpy(right)) for x, right in blocks]
    weights = torch.full((data[0][0].shape[0],), 0.1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        used = weights.abs() if positive else weights
        terms = []
        for x, right in data:
            logits = torch.einsum("f,fqn->qn", used, x)
            terms.append(-(logits.masked_fill(~right, -torch.inf).logsumexp(-1) - logits.logsumexp(-1)).mean())
        total = torch.stack(terms).mean() + ridge * used.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    result: np.ndarray = (weights.abs() if positive else weights).detach().numpy()
    return result


def figures(scores: np.ndarray, right: np.ndarray, beside: np.ndarray | None = None) -> dict[str, Any]:
    """Recall at 1, 3, 5 and the mean reciprocal rank with 95% intervals; ``beside``: minus those of other scores, paired."""

    def measured(scored: np.ndarray) -> dict[str, np.ndarray]:
        rank = ranks(scored, right)
        return {f"recall at {k}": (rank <= k).astype(float) for k in (1, 3, 5)} | {"mrr": 1.0 / rank}

    mine, theirs = measured(scores), measured(beside) if beside is not None else {}
    found: dict[str, Any] = {"questions": len(right)}
    for name, values in mine.items():
        found[name] = [round(float(values.mean()), 4), *(round(x, 4) for x in interval(values))]
        if theirs:
            other = values - theirs[name]
            found[f"{name}, difference"] = [round(float(other.mean()), 4), *(round(x, 4) for x in interval(other))]
    return found


def fused(*scores: np.ndarray) -> np.ndarray:
    """Reciprocal-rank fusion with the usual 60 (G. Cormack and others, SIGIR 2009): ``[questions, N]``."""
    order = [np.argsort(np.argsort(-one, axis=-1), axis=-1) + 1 for one in scores]
    result: np.ndarray = np.sum([1.0 / (60 + one) for one in order], axis=0)
    return result


def chosen_heads(found: Sequence[Searched], heads: Heads, meter: StepMeter) -> dict[tuple[str, str], list[Head]]:
    """By kind the heads with the highest mean reciprocal rank over the sets, on the questions that choose; puts the scores
    that they give all questions into ``found``.
    """
    kinds = [(kind, how) for kind in KINDS for how in WEIGHTS]
    sums: dict[tuple[str, str], dict[Head, float]] = {kind: {} for kind in kinds}
    for done, one in enumerate(found):
        rows = one.rows("choose")
        meter("all heads, set", done, len(found), one.pool.name)
        for kind, by_head in heads.scores(one, rows, lambda kind, layer, number: range(number)).items():
            for head, scores in by_head.items():
                value = float(mean_reciprocal_rank(scores, one.pool.right[rows]))
                sums[kind][head] = sums[kind].get(head, 0.0) + value / len(found)
    best = {kind: sorted(values, key=lambda head: -values[head])[:_SHORTLIST] for kind, values in sums.items()}
    wanted = {kind: {head for (name, _), some in best.items() if name == kind for head in some} for kind in KINDS}
    for done, one in enumerate(found):
        meter("chosen heads, set", done, len(found), one.pool.name)
        every = np.arange(len(one.pool.asked))
        scored = heads.scores(one, every, lambda kind, layer, number: [h for h in range(number) if (layer, h) in wanted[kind]])
        one.heads = {kind: standardised(np.stack([scored[kind][head] for head in best[kind]])) for kind in kinds}
    return best


def compare(found: Sequence[Searched], best: dict[tuple[str, str], list[Head]]) -> dict[str, Any]:
    """Chooses a kind, fits what is learned, and reports on test."""
    checked: list[dict[str, Any]] = []
    for kind, scores in ((kind, [one.heads[kind] for one in found]) for kind in best):
        for size in SIZES:
            parts = [one.rows("check") for one in found]
            each = [
                float(mean_reciprocal_rank(s[:size].sum(0)[r], one.pool.right[r]))
                for s, r, one in zip(scores, parts, found, strict=True)
            ]
            checked.append({"kind": kind[0], "tokens": kind[1], "heads": size, "mrr": float(np.mean(each)), "sets": each})
    checked.sort(key=lambda row: -row["mrr"])
    first = checked[0]
    kind, size = (first["kind"], first["tokens"]), first["heads"]
    report: dict[str, Any] = {
        "kind": kind[0],
        "tokens": kind[1],
        "heads": [f"{layer}.{head}" for layer, head in best[kind][:size]],
        "check": checked[:24],
        "best of each kind": [next(row for row in checked if (row["kind"], row["tokens"]) == each) for each in best],
        "test": {},
    }
    names: dict[str, Callable[[Searched], list[np.ndarray]]] = {
        "own": lambda one: list(one.heads[kind][:_LEARNED]),
        "minilm+own": lambda one: [one.known["minilm"], *one.heads[kind][:_LEARNED]],
        "minilm+bm25": lambda one: [one.known["minilm"], one.known["bm25"]],
        "bm25+own": lambda one: [one.known["bm25"], *one.heads[kind][:_LEARNED]],
        "minilm+bm25+own": lambda one: [one.known["minilm"], one.known["bm25"], *one.heads[kind][:_LEARNED]],
    }
    learned: dict[str, dict[str, np.ndarray]] = {one.pool.name: {} for one in found}
    report["weights"] = {}
    for name, of in names.items():
        stacks = [standardised(np.stack(of(one))) for one in found]

        def blocks(part: str, left_out: int = -1, stacks: list[np.ndarray] = stacks) -> list[tuple[np.ndarray, np.ndarray]]:
            return [
                (s[:, one.rows(part)], one.pool.right[one.rows(part)])
                for n, (one, s) in enumerate(zip(found, stacks, strict=True))
                if n != left_out
            ]

        def missed(ridge: float) -> float:
            weights = fitted(blocks("choose"), ridge)
            return -float(np.mean([mean_reciprocal_rank(np.tensordot(weights, x, 1), right) for x, right in blocks("check")]))

        ridge = min(_RIDGES, key=missed)
        weights = fitted(blocks("dev"), ridge)
        report["weights"][name] = {"ridge": ridge, "weights": [round(float(w), 4) for w in weights]}
        for n, (one, stack) in enumerate(zip(found, stacks, strict=True)):
            learned[one.pool.name][f"{name}, learned"] = np.tensordot(weights, stack, 1)
            if len(found) > 1:
                without = fitted(blocks("dev", n), ridge)
                learned[one.pool.name][f"{name}, learned on others"] = np.tensordot(without, stack, 1)
    for one in found:
        rows, own = one.rows("test"), one.heads[kind][:size].sum(0)
        z = {name: standardised(scores) for name, scores in one.known.items()} | {"own": standardised(own)}
        ways: dict[str, np.ndarray] = one.known | {"own": own}
        for some in (("minilm", "own"), ("minilm", "bm25"), ("minilm", "bm25", "own")):
            ways[f"{'+'.join(some)}, ranks"] = fused(*(z[name] for name in some))
            ways[f"{'+'.join(some)}, sum"] = np.sum([z[name] for name in some], axis=0)
        ways |= learned[one.pool.name]
        right = one.pool.right[rows]
        table = {
            name: figures(scores[rows], right, one.known["minilm"][rows] if name != "minilm" else None)
            for name, scores in ways.items()
        }
        pair = "minilm+bm25, learned"
        table["minilm+bm25+own, learned"]["beside minilm+bm25"] = figures(
            ways["minilm+bm25+own, learned"][rows], right, ways[pair][rows]
        )
        report["test"][one.pool.name] = table
    return report


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="name or folder (default: the default model)")
    parser.add_argument("--dtype", default="", help="as the model is loaded (default: as it is stored)")
    parser.add_argument("--data", type=Path, required=True, help="folder with wiki_qa and qa")
    parser.add_argument("--cache", type=Path, required=True, help="folder for keys and queries; an interrupted run goes on")
    parser.add_argument("--passages", type=int, default=100, help="of each pool (default: 100)")
    parser.add_argument("--questions", type=int, default=80, help="of each split of each set (default: 80)")
    parser.add_argument("--sets", default=",".join(SETS), help=f"folders of the data (default: {','.join(SETS)})")
    parser.add_argument("--seed", type=int, default=0, help="of the pools (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="JSON report")
    given = parser.parse_args()
    started = time.time()
    m3 = Memory3.from_pretrained(*([given.model] if given.model else []), dtype=given.dtype or None)
    embedder = Embedder.load(DEFAULT_EMBEDDER)
    found: list[Searched] = []
    with StepMeter() as meter:
        for name in given.sets.split(","):
            pool = make_pool(m3, given.data / name, given.passages, given.questions, given.seed)
            folder = given.cache / f"{m3.fingerprint[:16]}-{pool.name}-{given.passages}-{given.questions}-{given.seed}"
            texts = [one.text for one in pool.asked]

            def told(what: str, done: int, total: int, name: str = name) -> None:
                meter(f"{name}, {what}", done, total, "")

            queries, keys = read_queries(m3, texts, folder, told), read_keys(m3, pool.references, folder, told)
            cosine = embedder.encode(texts) @ embedder.encode([reference.text for reference in pool.references]).T
            found.append(Searched(pool, keys, queries, {"minilm": cosine, "bm25": bm25(pool.references, texts)}))
        with torch.no_grad():
            best = chosen_heads(found, Heads(m3), meter)
    report: dict[str, Any] = {
        "model": m3.name,
        "dtype": str(m3.model.dtype),
        "seed": given.seed,
        "pools": {
            one.pool.name: {
                "passages": len(one.pool.references),
                "tokens a passage": round(float(np.mean([len(r.token_ids) for r in one.pool.references])), 1),
                "right a question": round(float(one.pool.right.sum(1).mean()), 2),
                "dev": len(one.rows("dev")),
                "test": len(one.rows("test")),
            }
            for one in found
        },
    }
    report |= compare(found, best)
    report["costs"] = costs(m3, embedder, [one.text for pool in found for one in pool.pool.asked], len(report["heads"]))
    report["seconds"] = round(time.time() - started)
    write_atomically(given.out, json.dumps(report, indent=1) + "\n")
    short = {name: {way: row["mrr"] for way, row in rows.items()} for name, rows in report["test"].items()}
    print(json.dumps(short, indent=1))


if __name__ == "__main__":
    main()
