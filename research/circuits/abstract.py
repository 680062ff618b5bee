"""Can a text stand for abstract knowledge? Induction, agreement and addition, on instances that a model fails by itself.

    python -m research.circuits.abstract --asked 120 --tried 30 --out abstract.json

The claim of arXiv 2407.01178, section 2, is that specific knowledge can leave the weights and abstract knowledge cannot. So a
text of another instance, or a rule in words, should be of no help, and a text of the instance itself should. A model **can
do** an instance if it would write the answer, token by token; of agreement, if it prefers the right form of the verb.

    none       stone lamp, river coat, .. river                                                       answer: coat
    example    paper wheel, knife cloud, .. knife cloud.     stone lamp, river coat, .. river
    itself     stone lamp, river coat, .. river coat.        stone lamp, river coat, .. river
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory3.cli.progress import StepMeter
from memory3.errors import InputError
from memory3.files import read_json, write_atomically
from memory3.interpret.imitable import settings_for
from memory3.interpret.rates import Rate
from memory3.llm import Memory3
from memory3.models.load import load_model
from memory3.recall.held import Held
from memory3.types import Reference
from research.circuits.screening import ids_of

__all__ = ["KINDS", "RULES", "Instance", "can_do", "drawn", "try_kind"]

#: Nouns whose plural has an s. Each is one of a pair of random words, or stands in a sentence.
_NOUNS = """
lamp river stone cloud paper horse coat wheel knife garden mirror pocket ladder engine ticket bottle window button basket
candle hammer blanket island bridge farmer doctor singer teacher driver painter
"""
_BETWEEN = ("near", "behind", "beside", "next to")
#: What a text says of the knowledge in words.
RULES = {
    "induction": "The words come in pairs. When the first word of a pair comes again, the second word of that pair follows.",
    "agreement": "A verb agrees with its subject. With a singular subject it is 'is', with a plural subject it is 'are', "
    "whatever noun stands between the two.",
    "addition": "To add two numbers, add their ones and their tens. If the ones give ten or more, carry one to the tens.",
}
#: Texts of other instances that are drawn for each kind, once.
_SETS = 4


@dataclass(frozen=True)
class Instance:
    """One thing to do.

    Attributes:
        prompt: without a space at its end.
        answer: what follows.
        foil: what must be less likely; empty: everything else.
    """

    prompt: str
    answer: str
    foil: str = ""

    @property
    def text(self) -> str:
        """The instance as it is done."""
        return f"{self.prompt} {self.answer}."


def _induction(draw: random.Random) -> Instance:
    words = draw.sample(_NOUNS.split(), 16)
    pairs = [(words[n], words[n + 1]) for n in range(0, 16, 2)]
    first, second = draw.choice(pairs[:-1])
    return Instance(f"{', '.join(' '.join(pair) for pair in pairs)}, {first}", second)


def _agreement(draw: random.Random) -> Instance:
    subject, other = draw.sample(_NOUNS.split(), 2)
    plural = draw.random() < 0.5
    # The noun between has the other number: that is what misleads.
    ends = ("s", "") if plural else ("", "s")
    forms = ("are", "is") if plural else ("is", "are")
    return Instance(f"The {subject}{ends[0]} {draw.choice(_BETWEEN)} the {other}{ends[1]}", *forms)


def _addition(draw: random.Random) -> Instance:
    one, other = draw.randint(10, 99), draw.randint(10, 99)
    return Instance(f"{one} + {other} =", str(one + other))


#: How an instance of each kind is drawn.
KINDS: dict[str, Callable[[random.Random], Instance]] = {
    "induction": _induction,
    "agreement": _agreement,
    "addition": _addition,
}


def drawn(kind: str, number: int, seed: int = 0) -> list[Instance]:
    """Instances of a kind, each once.

    Args:
        kind: one of `KINDS`.
        number: how many.
        seed: of the draw.
    """
    draw, found = random.Random(f"{seed} {kind}"), dict[Instance, None]()
    for _ in range(100 * number):
        found[KINDS[kind](draw)] = None
        if len(found) == number:
            return list(found)
    raise InputError(f"{kind} has fewer than {number} instances: ask for fewer")


def can_do(m3: Memory3, instance: Instance, rows: Sequence[Any], held: Any = None) -> list[bool]:
    """Whether the model can do an instance behind each of some prompts.

    Args:
        m3: the model.
        instance: whose prompt ends each of the rows.
        rows: prompts.
        held: of the memories that they read.
    """
    answers = [_ids(m3, instance)[1]]
    if instance.foil:
        answers.append(_ids(m3, Instance(instance.prompt, instance.foil))[1])
    scores = m3.scorer.score(rows, [answers] * len(rows), held)
    return [one[0].total > one[1].total if instance.foil else one[0].greedy for one in scores]


def _ids(m3: Memory3, instance: Instance) -> tuple[list[int], list[int]]:
    found = ids_of(m3, instance.prompt, instance.answer)
    if found is None:
        raise InputError(f"the tokenizer merges {instance.prompt!r} with its answer: use another model")
    return found


def _reference(m3: Memory3, name: str, text: str) -> Reference:
    ids = tuple(m3.prompts.ids(text))
    if len(ids) > m3.config.reference_length:
        raise InputError(f"{len(ids)} tokens of a text are more than the {m3.config.reference_length} of a reference")
    return Reference(name, name, 0, 0, len(text), text, ids)


def try_kind(
    m3: Memory3, kind: str, asked: int, tried: int, seed: int = 0, tell: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What a model can do of a kind, and what of the rest it can do behind texts and memories.

    Args:
        m3: the model, under `memory3.interpret.imitable.settings_for`.
        kind: one of `KINDS`.
        asked: instances that are asked behind nothing.
        tried: of those that it cannot do, how many are tried behind texts at most.
        seed: of the draw.
        tell: called with how many are done, and of how many.
    """
    every = drawn(kind, asked + 3 * _SETS, seed)
    instances, examples = every[:asked], every[asked:]
    failed = []
    for number, instance in enumerate(instances, 1):
        if not can_do(m3, instance, [m3.prompts.row(_ids(m3, instance)[0], "none")])[0]:
            failed.append(instance)
        if tell:
            tell(number, asked + tried)
    shared = {"a rule in words": RULES[kind]}
    for number in range(_SETS):
        some = examples[3 * number : 3 * number + 3]
        shared[f"one other instance {number}"] = some[0].text
        shared[f"three other instances {number}"] = " ".join(each.text for each in some)
    stranger = next(name for name in KINDS if name != kind)
    shared["control: another kind"] = drawn(stranger, 1, seed)[0].text
    references = {name: _reference(m3, name, text) for name, text in shared.items()}
    memories = dict(zip(references, m3.encode(list(references.values())), strict=True))
    hits: dict[str, list[bool]] = {}
    for number, instance in enumerate(failed[:tried], 1):
        itself = _reference(m3, "the instance itself", instance.text)
        here = references | {itself.id: itself}
        held = Held(memories | {itself.id: m3.encode([itself])[0]}, here)
        turn = number % _SETS
        names = [name for name in here if not name[-1].isdigit() or name.endswith(str(turn))]
        tokens = _ids(m3, instance)[0]
        rows = [m3.prompts.row(tokens, mode, [name], held) for mode in ("text", "memory") for name in names]
        labels = [f"{mode}, {name.rstrip('0123456789').strip()}" for mode in ("text", "memory") for name in names]
        for label, hit in zip(labels, can_do(m3, instance, rows, held), strict=True):
            hits.setdefault(label, []).append(hit)
        if tell:
            tell(asked + number, asked + tried)
    able = Rate(asked - len(failed), asked).to_dict()
    return {"by itself": able, "arms": {name: Rate(sum(some), len(some)).to_dict() for name, some in hits.items()}}


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--kinds", default=",".join(KINDS), help="default: all")
    parser.add_argument("--asked", type=int, default=120, help="instances of each kind (default: 120)")
    parser.add_argument("--tried", type=int, default=30, help="of those that fail, at most (default: 30)")
    parser.add_argument("--first", default="<|endoftext|>", help="token in front of a prompt (default: <|endoftext|>)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model, tokenizer = load_model(given.model)
    m3 = Memory3(model, tokenizer, settings_for(tokenizer).replace(prefix=given.first), name=given.model)
    about = {"model": given.model, "asked": given.asked, "tried": given.tried, "seed": given.seed}
    report: dict[str, Any] = read_json(given.out) if given.out.exists() else about | {"kinds": {}}
    if {name: report[name] for name in about} != about:
        raise InputError(f"{given.out} was made with other options: give another file")
    with StepMeter() as meter:
        for kind in given.kinds.split(","):
            if kind in report["kinds"]:
                continue

            def tell(done: int, total: int, kind: str = kind) -> None:
                meter(kind, done, total, "")

            report["kinds"][kind] = try_kind(m3, kind, given.asked, given.tried, given.seed, tell)
            write_atomically(given.out, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
