"""Which facts does a model know? Every fact asked in the relation's first pattern, many in a pass.

    python -m research.circuits.screening FACTS --each 300 --minutes 15 --out screened.jsonl

A line a fact. Relations take turns, each with its facts in an order drawn at random: a run that ends early has a sample of
every relation. Called again, it goes on where it ended. The lines hold texts of the facts: they stay out of the repository.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from memory3.cli.progress import StepMeter
from memory3.files import append, json_lines
from memory3.interpret.facts import Fact, Relation, read_facts
from memory3.interpret.imitable import settings_for, usable
from memory3.llm import Memory3
from memory3.models.load import load_model
from memory3.scoring import log_probabilities

__all__ = ["Screened", "candidates_of", "ids_of", "most_said", "read_screened", "screen"]

#: Tokens of a pass.
_TOKENS = 512


@dataclass(frozen=True)
class Screened:
    """What a model says of one fact.

    Attributes:
        relation, subject, answer: of the fact.
        least: probability of the answer's least likely token.
        total: log-likelihood of the whole answer in nats.
        rank: of its first token among the first tokens of all answers of the relation; 1 is the likeliest.
        said: the first token of theirs that is likeliest, as text.
    """

    relation: str
    subject: str
    answer: str
    least: float
    total: float
    rank: int
    said: str

    @property
    def known(self) -> bool:
        """Whether the answer ranks first, and is not to be read in the subject."""
        return self.rank == 1 and self.answer.lower() not in self.subject.lower()


def ids_of(m3: Memory3, prompt: str, answer: str) -> tuple[list[int], list[int]] | None:
    """Tokens of a prompt and of its answer; None where the two share a token.

    Args:
        m3: the model.
        prompt: without a space at its end.
        answer: without a space in front.
    """
    asked, whole = m3.prompts.ids(f" {prompt}"), m3.prompts.ids(f" {prompt} {answer}")
    return (asked, whole[len(asked) :]) if whole[: len(asked)] == asked and len(whole) > len(asked) else None


def candidates_of(m3: Memory3, relation: Relation) -> list[int]:
    """First tokens of the relation's answers, each once.

    Args:
        m3: the model.
        relation: with its facts.
    """
    return sorted({m3.prompts.ids(f" {fact.answer}")[0] for fact in relation.facts})


@torch.no_grad()
def screen(m3: Memory3, relation: Relation, facts: Sequence[Fact]) -> list[Screened]:
    """What the model says of facts, asked in the relation's first pattern. Those whose answer shares a token with the prompt
    are left out.

    Args:
        m3: the model, under `memory3.interpret.imitable.settings_for`.
        relation: of the facts.
        facts: of the relation.
    """
    model: Any = m3.model
    pattern, candidates = relation.asked[0], torch.tensor(candidates_of(m3, relation))
    rows = [(fact, ids) for fact in facts if (ids := ids_of(m3, relation.prompt(pattern, fact), fact.answer))]
    rows.sort(key=lambda row: len(row[1][0]) + len(row[1][1]))
    found: list[Screened] = []
    for some in _batches(rows):
        fed = [[*m3.frame.prefix, *prompt, *answer[:-1]] for _, (prompt, answer) in some]
        width = max(map(len, fed))
        # What is behind a row's end is seen by none of its tokens.
        tokens = torch.tensor([[*row, *([0] * (width - len(row)))] for row in fed], device=model.device)
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        for number, (fact, (_, answer)) in enumerate(some):
            end = len(fed[number])
            logits = model.get_output_embeddings()(hidden[number, end - len(answer) : end])
            likely = log_probabilities(logits).cpu()
            each = likely.gather(1, torch.tensor(answer)[:, None])[:, 0]
            first = likely[0, candidates]
            said = m3.tokenizer.decode([int(candidates[int(first.argmax())])])
            rank = 1 + int((first > each[0]).sum())
            values = (math.exp(float(each.min())), float(each.sum()), rank, said)
            found.append(Screened(relation.name, fact.subject, fact.answer, *values))
    return found


def _batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop + 1 - start) * (sum(map(len, rows[stop][1])) + 1) <= _TOKENS:
            stop += 1
        yield rows[start:stop]
        start = stop


def read_screened(path: Path) -> list[Screened]:
    """The lines of a file that this command wrote.

    Args:
        path: of the file.
    """
    return [Screened(**record) for _, record in json_lines(path.read_bytes())]


def most_said(screened: Iterable[Screened]) -> float:
    """The share of facts of a relation for which the model says the same, whatever it is.

    Args:
        screened: facts of one relation, at least one.
    """
    said = [each.said for each in screened]
    return max(said.count(one) for one in set(said)) / len(said)


def _turns(relations: Sequence[Relation], each: int, seed: int, size: int = 32) -> Iterator[tuple[Relation, list[Fact]]]:
    """Some facts of each relation in turn."""
    parts = []
    for relation in relations:
        draw = random.Random(f"{seed} {relation.name}")
        facts = draw.sample(relation.facts, min(each, len(relation.facts)))
        parts.append([(relation, facts[n : n + size]) for n in range(0, len(facts), size)])
    for turn in zip_longest(*parts):
        yield from (one for one in turn if one is not None)


def main() -> None:
    """Read the options, and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--relations", help="names with commas between them (default: all)")
    parser.add_argument("--each", type=int, default=300, help="facts of each relation at most (default: 300)")
    parser.add_argument("--minutes", type=float, default=15.0, help="after which it ends (default: 15)")
    parser.add_argument("--first", default="<|endoftext|>", help="token in front of a prompt (default: <|endoftext|>)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model, tokenizer = load_model(given.model)
    m3 = Memory3(model, tokenizer, settings_for(tokenizer).replace(prefix=given.first), name=given.model)
    relations = read_facts(given.facts)
    names = given.relations.split(",") if given.relations else list(relations)
    turns = list(_turns(usable([relations[name] for name in names]), given.each, given.seed))
    done = {(one.relation, one.subject) for one in read_screened(given.out)} if given.out.exists() else set()
    ends = time.monotonic() + 60 * given.minutes
    with StepMeter() as meter:
        for number, (relation, facts) in enumerate(turns, 1):
            left = [fact for fact in facts if (relation.name, fact.subject) not in done]
            lines = [json.dumps(asdict(one), ensure_ascii=False) for one in screen(m3, relation, left)]
            if lines:
                append(given.out, "\n".join(lines) + "\n")
            meter("turn", number, len(turns), relation.name)
            if time.monotonic() > ends:
                break


if __name__ == "__main__":
    main()
