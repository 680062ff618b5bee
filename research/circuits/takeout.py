"""Take a relation's knowledge out of a copy of a model, and give the facts back as memories.

    python -m research.circuits.takeout FACTS --screened screened.jsonl --plain wikitext2.jsonl.gz --out takeout.json
    python -m research.circuits.takeout FACTS --draw takeout.json --figure takeout.svg

`research.circuits.screening` says which facts the model knows. Here a fact is known if the first token of its answer is the
likeliest of the first tokens of all answers of its relation, and if the answer is not to be read in the subject. Half of a
relation's known facts choose what is taken out, the others are tested. The edited copy writes its own memories and reads them.
What is done is written after each model, and a command that is called again goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from memory3.cli.progress import StepMeter
from memory3.errors import InputError
from memory3.files import open_unzipped, read_json, write_atomically
from memory3.interpret.facts import Fact, Relation, read_facts
from memory3.interpret.imitable import settings_for
from memory3.interpret.picture import drawing
from memory3.interpret.rates import Rate
from memory3.interpret.texts import Text
from memory3.llm import Memory3
from memory3.models.load import load_model
from memory3.recall.held import Held
from memory3.scoring import token_log_likelihoods
from memory3.types import Reference
from research.circuits.pruning import heaviest, pruned, weigh
from research.circuits.screening import Screened, candidates_of, ids_of, most_said, read_screened, screen
from research.circuits.unlearning import Unlearning, unlearned

__all__ = ["ARMS", "Split", "answers_behind", "perplexity", "split", "split_others"]

#: What stands in front of a prompt.
ARMS = (
    "closed book",
    "text, same pattern",
    "text, other pattern",
    "memory, same pattern",
    "memory, other pattern",
    "memory, another fact",
)
#: Models that are asked.
MODELS = ("original", "pruned", "tuned", "pruned at random")
#: Known facts of a relation with one answer, at most: a model that says the same of all is right about few.
_ALIKE = 4
#: Sizes of what is pruned: heads and neurons. The first after which the training facts are known no more is taken.
_SIZES = ((5, 30), (10, 100), (20, 300), (30, 1000))
#: What share of the training facts is known no more then.
_GONE = 0.75
#: Tokens of a plain text.
_PLAIN = 48


@dataclass(frozen=True)
class Split:
    """Facts of a relation that the model knows.

    Attributes:
        train: that say what is taken out.
        test: that are asked.
    """

    train: tuple[Fact, ...]
    test: tuple[Fact, ...]


def split(screened: Sequence[Screened], most: int, seed: int = 0) -> Split:
    """The known facts of a relation in two halves, few of one answer.

    Args:
        screened: facts of one relation.
        most: facts of a half at most.
        seed: of the order.
    """
    known = [each for each in screened if each.known]
    random.Random(seed).shuffle(known)
    taken: list[Fact] = []
    for each in known:
        if sum(fact.answer == each.answer for fact in taken) < _ALIKE:
            taken.append(Fact(each.subject, each.answer))
    half = min(most, len(taken) // 2)
    return Split(tuple(taken[:half]), tuple(taken[half : 2 * half]))


def split_others(
    screened: Sequence[Screened], without: Collection[str], most: int, seed: int = 0
) -> tuple[list[Screened], list[Screened]]:
    """Known facts of other relations: of some relations to keep while a relation is taken out, of the others to test.

    Args:
        screened: facts of all relations.
        without: relations that are left out.
        most: facts of either at most.
        seed: of the draw.
    """
    names = sorted({each.relation for each in screened} - set(without))
    known = [each for each in screened if each.known and each.relation in names]
    draw, found = random.Random(seed), []
    for start in (0, 1):
        mine = [each for each in known if each.relation in names[start::2]]
        found.append(draw.sample(mine, min(most, len(mine))))
    return found[0], found[1]


def mirrors(relations: Mapping[str, Relation], name: str) -> set[str]:
    """Relations that say the same the other way round, such as "is the capital of": a tenth of their facts or more.

    Args:
        relations: all.
        name: of one.
    """
    turned = {(fact.answer, fact.subject) for fact in relations[name].facts}
    shared = {other: sum((fact.subject, fact.answer) in turned for fact in one.facts) for other, one in relations.items()}
    return {other for other, number in shared.items() if number and 10 * number >= len(relations[other].facts)}


def answers_behind(m3: Memory3, relation: Relation, facts: Sequence[Fact], arms: Sequence[str]) -> list[dict[str, Any]]:
    """For each fact and arm, the rank of its answer's first token among those of the relation, and the token's probability.

    Args:
        m3: the model that writes memories and reads them.
        relation: of the facts.
        facts: that are asked in the relation's first pattern.
        arms: of `ARMS`.
    """
    asked = relation.asked[0]
    other = next((pattern for pattern in relation.patterns if pattern != asked), asked)
    candidates = candidates_of(m3, relation)
    found: list[dict[str, Any]] = []
    for number, fact in enumerate(facts):
        tokens = ids_of(m3, relation.prompt(asked, fact), fact.answer)
        assert tokens is not None, "it was screened before"
        foreign = next((f for f in [*facts[number + 1 :], *facts] if f.answer != fact.answer), None)
        texts = {"same pattern": relation.text(asked, fact), "other pattern": relation.text(other, fact)}
        texts |= {"another fact": relation.text(asked, foreign)} if foreign else {}
        references = {name: _reference(m3, name, text) for name, text in texts.items()}
        wanted = [arm for arm in arms if arm == "closed book" or arm.split(", ")[1] in references]
        written = [arm.split(", ")[1] for arm in wanted if arm.startswith("memory")]
        held = Held(dict(zip(written, m3.encode([references[name] for name in written]), strict=True)), references)
        rows = []
        for arm in wanted:
            mode, _, name = arm.partition(", ")
            rows.append(m3.prompts.row(tokens[0], mode if name else "none", [name] if name else [], held))
        scores = m3.scorer.score(rows, [[[token] for token in candidates]] * len(rows), held)
        right = candidates.index(tokens[1][0])
        each: dict[str, Any] = {}
        for arm, mine in zip(wanted, scores, strict=True):
            rank = 1 + sum(score.total > mine[right].total for score in mine)
            each[arm] = {"rank": rank, "probability": math.exp(mine[right].total)}
        found.append(each)
    return found


def _reference(m3: Memory3, name: str, text: str) -> Reference:
    ids = tuple(m3.prompts.ids(text))[: m3.config.reference_length]
    return Reference(name, name, 0, 0, len(text), text, ids)


@torch.no_grad()
def perplexity(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> float:
    """Of texts of one length, every token but the first.

    Args:
        model: the model.
        rows: tokens.
    """
    forward: Any = model
    total = 0.0
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        logits = forward(input_ids=tokens, use_cache=False).logits
        total += float(token_log_likelihoods(logits[:, :-1], tokens[:, 1:]).sum())
    return math.exp(-total / sum(len(row) - 1 for row in rows))


def _rates(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in ARMS:
        values = [each[arm] for each in answers if arm in each]
        if values:
            likely = sorted(value["probability"] for value in values)
            found[arm] = Rate(sum(value["rank"] == 1 for value in values), len(values)).to_dict()
            found[arm]["median probability"] = likely[len(likely) // 2]
    return found


def _text(m3: Memory3, relation: Relation, fact: Fact) -> Text:
    """A fact as it is asked, with the first token of its answer as target."""
    tokens = ids_of(m3, relation.prompt(relation.asked[0], fact), fact.answer)
    assert tokens is not None, "it was screened before"
    fed = (*m3.frame.prefix, *tokens[0])
    return Text(fed, ((len(fed) - 1, tokens[1][0]),), tuple(f"token {n}" for n in range(len(fed))))


class _Run:
    """One relation that is taken out of copies of a model."""

    def __init__(
        self, m3: Memory3, relations: dict[str, Relation], screened: Sequence[Screened], name: str, given: Any
    ) -> None:
        self.m3, self.relations, self.relation, self.given = m3, relations, relations[name], given
        mine = [each for each in screened if each.relation == name]
        self.split = split(mine, given.each)
        self.kept, self.others = split_others(screened, {name, *mirrors(relations, name)}, given.each)
        self.about: dict[str, Any] = {
            "pattern": self.relation.asked[0],
            "screened": len(mine),
            "known": sum(each.known for each in mine),
            "said most": most_said(mine),
            "train": len(self.split.train),
            "test": len(self.split.test),
            "candidates": len(candidates_of(m3, self.relation)),
        }

    def texts(self) -> tuple[list[Text], list[Text]]:
        """Training facts of the relation, and facts of others that are to stay."""
        mine = [_text(self.m3, self.relation, fact) for fact in self.split.train]
        return mine, [_text(self.m3, self.relations[one.relation], Fact(one.subject, one.answer)) for one in self.kept]

    def edited(self, name: str, plain: Sequence[Sequence[int]], tell: Callable[[str], None]) -> tuple[PreTrainedModel, Any]:
        """A copy without the relation, and how it was made."""
        model, (mine, theirs) = self.m3.model, self.texts()
        if name == "tuned":
            how = Unlearning(steps=self.given.steps, rate=self.given.rate)
            losses: list[float] = []

            def told(step: int, loss: float) -> None:
                losses.append(round(loss, 4))
                tell(f"step {step} of {how.steps}, loss {loss:.2f}")

            rows = [[list(text.tokens) for text in some] for some in (mine, theirs)]
            return unlearned(model, *rows, plain, how, told), asdict(how) | {"losses": losses}
        weights, others = weigh(model, mine), weigh(model, theirs)
        for heads, neurons in _SIZES:
            chosen = heaviest(weights, others, heads, neurons)
            made = pruned(model, *chosen)
            left = screen(self.like(made), self.relation, self.split.train)
            known = sum(each.rank == 1 for each in left)
            tell(f"{heads} heads and {neurons} neurons, {known} of {len(left)} known")
            if known <= (1 - _GONE) * len(left):
                break
        about: dict[str, Any] = {"heads": heads, "neurons": neurons, "training facts known": known}
        if name == "pruned":
            return made, about | {"which heads": chosen[0], "layers of neurons": _layers(chosen[1])}
        draw = random.Random(0)
        sizes = (weights.heads.shape, weights.neurons.shape)
        every = [[(layer, n) for layer in range(size[0]) for n in range(size[1])] for size in sizes]
        return pruned(model, *(draw.sample(some, n) for some, n in zip(every, (heads, neurons), strict=True))), about

    def like(self, model: PreTrainedModel) -> Memory3:
        """Another model under the same settings: it writes its own memories."""
        return Memory3(model, self.m3.tokenizer, self.m3.config, name=self.m3.name)

    def asked(self, m3: Memory3, plain: Sequence[Sequence[int]], arms: Sequence[str]) -> dict[str, Any]:
        """What a model says of the test facts, of other relations' facts, and of plain text."""
        found: dict[str, Any] = {"arms": _rates(answers_behind(m3, self.relation, self.split.test, arms))}
        others: list[Screened] = []
        for name in sorted({one.relation for one in self.others}):
            facts = [Fact(one.subject, one.answer) for one in self.others if one.relation == name]
            others += screen(m3, self.relations[name], facts)
        found["other relations"] = Rate(sum(one.rank == 1 for one in others), len(others)).to_dict()
        found["perplexity"] = perplexity(m3.model, plain)
        return found


def _layers(chosen: Sequence[tuple[int, int]]) -> dict[str, int]:
    layers = [layer for layer, _ in chosen]
    return {str(layer): layers.count(layer) for layer in sorted(set(layers))}


def _plain(m3: Memory3, path: Path, pieces: int) -> tuple[list[list[int]], list[list[int]]]:
    """Pieces of a file of texts, from its first half for training and from its second for testing."""
    with open_unzipped(path) as file:
        text = " ".join(json.loads(line)["text"] for line in file.read(64 << 20).splitlines() if line.strip())
    found = []
    for half in (text[: len(text) // 2], text[len(text) // 2 :]):
        starts = range(0, len(half), max(1, len(half) // pieces))
        rows = [[*m3.frame.prefix, *m3.prompts.ids(half[start : start + 8 * _PLAIN])[:_PLAIN]] for start in starts]
        found.append([row for row in rows if len(row) == len(m3.frame.prefix) + _PLAIN][:pieces])
    if not all(found):
        raise InputError(f"{path} has too little text: give some thousand words")
    return found[0], found[1]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All relations and models, written as they are done."""
    model, tokenizer = load_model(given.model)
    # All pairs of texts as short as these are kept, so that the cheapest selector does what every other does.
    settings = settings_for(tokenizer).replace(
        prefix=given.first, memory_temperature=given.temperature, selector="random", budget="all"
    )
    m3 = Memory3(model, tokenizer, settings, name=given.model)
    relations, screened = read_facts(given.facts), read_screened(given.screened)
    training, testing = _plain(m3, given.plain, given.pieces)
    report: dict[str, Any] = read_json(given.out) if given.out.exists() else {"model": given.model, "relations": {}}
    names = given.relations.split(",")
    with StepMeter() as meter:
        for number, (name, kind) in enumerate([(name, kind) for name in names for kind in MODELS], 1):
            run = _Run(m3, relations, screened, name, given)
            if min(len(run.split.test), len(run.others)) < 2:
                raise InputError(
                    f"{name}: {run.about['known']} facts are known, which is too few: screen more, or take another"
                )
            mine = report["relations"].setdefault(name, run.about | {"models": {}})
            if kind in mine["models"]:
                continue

            def tell(more: str, name: str = name, kind: str = kind, number: int = number) -> None:
                meter("model", number, len(names) * len(MODELS), f"{name} {kind}: {more}")

            arms = ARMS[:1] if kind == "pruned at random" else ARMS
            edited, about = (model, {}) if kind == "original" else run.edited(kind, training, tell)
            tell("asking")
            mine["models"][kind] = run.asked(run.like(edited), testing, arms) | {"edit": about}
            write_atomically(given.out, json.dumps(report, indent=1) + "\n")
    return report


def picture(report: dict[str, Any], kind: str) -> bytes:
    """Bars of the share of facts that each model knows, a panel for each relation.

    Args:
        report: from this command.
        kind: ``svg`` or ``png``.
    """
    import io

    rc_context, new_figure = drawing()
    shown = [name for name in MODELS if name != "pruned at random"]
    colours = dict(zip(shown, ("#57606a", "#bc4c00", "#0969da"), strict=True))
    names = [*ARMS, "other relations"]
    with rc_context({"svg.hashsalt": "memory3", "font.size": 9}):
        figure = new_figure(figsize=(11, 3.6), layout="constrained")
        panels = figure.subplots(1, len(report["relations"]), sharey=True, squeeze=False)[0]
        for axes, (relation, about) in zip(panels, report["relations"].items(), strict=True):
            for offset, model in enumerate(shown):
                found = about["models"][model]
                rates = [found["arms"][arm] if arm in found["arms"] else found["other relations"] for arm in names]
                places = [n + 0.27 * (offset - 1) for n in range(len(names))]
                heights = [100 * rate["rate"] for rate in rates]
                low = [max(0.0, 100 * (rate["rate"] - rate["interval"][0])) for rate in rates]
                high = [max(0.0, 100 * (rate["interval"][1] - rate["rate"])) for rate in rates]
                axes.bar(places, heights, 0.25, yerr=[low, high], color=colours[model], label=model, ecolor="#8c959f")
            axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
            axes.set_title(f"{relation}: {about['pattern']}", fontsize=9)
        panels[0].set_ylabel("right answer ranks first, %")
        panels[-1].legend(frameon=False, fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def main() -> None:
    """Read the options, measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--screened", type=Path, help="from research.circuits.screening")
    parser.add_argument("--plain", type=Path, help="JSON lines with a text each (.gz too): half is kept, half is tested")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--relations", default="P36,P37,P17", help="default: P36,P37,P17")
    parser.add_argument("--each", type=int, default=20, help="training facts, and as many test facts, at most (default: 20)")
    parser.add_argument("--steps", type=int, default=12, help="of fine-tuning (default: 12)")
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning (default: 0.001)")
    parser.add_argument("--pieces", type=int, default=12, help="plain texts to keep, and as many to test (default: 12)")
    parser.add_argument("--temperature", type=float, default=0.9, help="of memories (default: 0.9)")
    parser.add_argument("--first", default="<|endoftext|>", help="token in front of a prompt (default: <|endoftext|>)")
    parser.add_argument("--out", type=Path, help="the report")
    parser.add_argument("--draw", type=Path, help="a report: nothing is measured")
    parser.add_argument("--figure", type=Path, help="a picture of it, .svg or .png")
    given = parser.parse_args()
    if not given.draw and not (given.screened and given.plain and given.out):
        parser.error("give --screened, --plain and --out to measure, or --draw a report")
    report = read_json(given.draw) if given.draw else measure(given)
    if given.figure:
        write_atomically(given.figure, picture(report, given.figure.suffix[1:]))


if __name__ == "__main__":
    main()
