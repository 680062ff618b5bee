"""How far away must a text stand to be copied from? Facts that a model does not know, behind a text of them, at distances.

    python -m research.circuits.distance FACTS --model M --relations P36,P19 --tried 5 --out distance.json

A memory lies a reference's length in front of the prompt, and a prefix right in front of it. This tells what of the difference
between the two is distance: positions of the prompt are moved, all else is the text in front.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from memory3.cli.progress import StepMeter
from memory3.files import write_atomically
from memory3.interpret.facts import read_facts
from memory3.interpret.imitable import KNOWN, UNKNOWN, ask_closed, settings_for
from memory3.interpret.rates import Rate
from memory3.llm import Memory3
from memory3.models.load import load_model
from memory3.scoring import token_log_likelihoods

#: Positions left out between a text and the prompt behind it.
GAPS = (0, 4, 16, 64, 116, 256, 1024)


@torch.no_grad()
def least_likely(m3: Memory3, text: str, prompt: str, answer: str, gaps: Sequence[int]) -> list[float]:
    """The probability of the least likely token of an answer, for each gap between a text and the prompt behind it."""
    front = [*m3.frame.prefix, *m3.prompts.ids(text)]
    asked, whole = m3.prompts.ids(f" {prompt}"), m3.prompts.ids(f" {prompt} {answer}")
    tokens = torch.tensor([[*front, *whole[:-1]]] * len(gaps))
    places = torch.tensor([[*range(len(front)), *(len(front) + gap + n for n in range(len(whole) - 1))] for gap in gaps])
    # Without a mask, transformers takes a step in the positions for the start of another text, which sees nothing before it.
    call = {"attention_mask": torch.ones_like(tokens), "logits_to_keep": len(whole) - len(asked), "use_cache": False}
    model: Any = m3.model
    logits = model(input_ids=tokens, position_ids=places, **call).logits
    wanted = torch.tensor(whole[len(asked) :]).expand(len(gaps), -1)
    found: list[float] = token_log_likelihoods(logits, wanted).amin(-1).exp().tolist()
    return found


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--relations", default="P36,P19,P103,P17,P30,P37,P138,P140,P176,P495")
    parser.add_argument("--tried", type=int, default=5)
    parser.add_argument("--asked", type=int, default=20)
    parser.add_argument("--first", default="<|endoftext|>")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model, tokenizer = load_model(given.model)
    m3 = Memory3(model, tokenizer, settings_for(tokenizer).replace(prefix=given.first), name=given.model)
    relations = read_facts(given.facts)
    found: dict[int, dict[str, list[float]]] = {gap: {"same pattern": [], "other pattern": []} for gap in GAPS}
    names = given.relations.split(",")
    with StepMeter() as meter:
        for number, name in enumerate(names, 1):
            relation = relations[name]
            asked = ask_closed(m3, relation, relation.facts[:: max(1, len(relation.facts) // given.asked)][: given.asked])
            for each in [one for one in asked if one.found["none"] <= UNKNOWN][: given.tried]:
                first = relation.asked[0]
                other = next((pattern for pattern in relation.patterns if pattern != first), first)
                prompt = relation.prompt(first, each.fact)
                for kind, pattern in (("same pattern", first), ("other pattern", other)):
                    values = least_likely(m3, relation.text(pattern, each.fact), prompt, each.fact.answer, GAPS)
                    for gap, value in zip(GAPS, values, strict=True):
                        found[gap][kind].append(value)
            meter("relation", number, len(names), name)
    report: dict[str, Any] = {"model": given.model, "relations": names, "first": given.first, "gaps": []}
    for gap, kinds in found.items():
        row: dict[str, Any] = {"gap": gap}
        for kind, values in kinds.items():
            rate = Rate(sum(value >= KNOWN for value in values), len(values)).to_dict()
            row[kind] = rate | {"median probability": sorted(values)[len(values) // 2]}
        report["gaps"].append(row)
    write_atomically(given.out, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
