"""Can a text stand for a fact? The claim of arXiv 2407.01178, section 2, on facts that a model knows and does not know.

A model knows a fact where each token of its answer has a probability of 0.9 or more, and does not where one has 0.5 or less.
The fact is separable if some text in front makes the model say it (0.9 again), and imitable if every text of the fact does.

    none        <s> The capital of Chad is
    text        <s>The capital city of Chad is N'Djamena. The capital of Chad is
    memory      <s> | memory of that sentence | The capital of Chad is

Small models know few facts that well, so another threshold can say which are known. What a model says behind a text is counted
at 0.9, and at the other threshold beside.

The prompt reads as text or as memory: the sentence in the pattern that is asked, and in others. Controls are the sentence of
another fact of the relation, and the sentence's own words in another order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory3.config import MemoryConfig
from memory3.errors import InputError
from memory3.interpret.facts import Fact, Relation
from memory3.interpret.rates import Rate, separation
from memory3.llm import Memory3
from memory3.prompt import PromptRow
from memory3.recall.held import Held
from memory3.scoring import Score
from memory3.types import Memory, Reference

__all__ = [
    "ARMS",
    "KNOWN",
    "UNKNOWN",
    "Tried",
    "ask_closed",
    "settings_for",
    "summary",
    "try_facts",
    "try_relations",
    "usable",
    "written_by",
]

#: Probability of each token of an answer that is known, and of its least likely token where it is not known.
KNOWN, UNKNOWN = 0.9, 0.5

#: Tokens that another model writes at most.
_WRITTEN = 16
#: What stands in front of the prompt, by name.
ARMS: Mapping[str, str] = {
    "none": "nothing",
    "text, same pattern": "the fact in the pattern that is asked",
    "text, every other pattern": "the fact in other patterns, and each of them works",
    "text, all patterns at once": "the fact in all of these patterns, one after the other",
    "text, some pattern": "the fact in any pattern or in all of them, and one of these works",
    "memory, same pattern": "as memory: the fact in the pattern that is asked",
    "memory, other pattern": "as memory: the fact in another pattern",
    "text, another model's": "what another model writes when it is asked",
    "text, another fact": "control: another fact of the relation, in another pattern",
    "memory, another fact": "control, as memory: the same",
    "text, shuffled": "control: the words of the other pattern's text in another order",
}


@dataclass
class Tried:
    """One fact and what was seen.

    Attributes:
        relation, fact: which.
        closed: the score of its answer behind nothing.
        found: by arm, the probability of the answer's least likely token.
        sizes: tokens of the answer, of the prompt and of the text in another pattern.
        texts: what stood in front, by arm; those in other patterns are ``other 0``, ``other 1``, ...
    """

    relation: str
    fact: Fact
    closed: Score
    found: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def settings_for(tokenizer: Any, config: MemoryConfig | None = None) -> MemoryConfig:
    """Settings under which a text stands behind the first token alone: there is no chat, and nobody says what it is for. It
    lies a reference's length in front of what reads it, however short it is (docs/circuits.md says what the distance does).

    Args:
        tokenizer: of the model.
        config: whose other settings are kept.

    Raises:
        InputError: the tokenizer has no token that texts begin with.
    """
    first = "<bos>" if tokenizer.bos_token is not None else tokenizer.pad_token or tokenizer.eos_token
    if not first:
        raise InputError("the tokenizer has no special token that a text could begin with: use another model")
    return (config or MemoryConfig()).replace(prefix=first, arrangement="row")


def _ids(m3: Memory3, asked: str, answer: str) -> tuple[list[int], list[int]] | None:
    """Tokens of a prompt and of its answer; None where the two share a token."""
    prompt, whole = m3.prompts.ids(f" {asked}"), m3.prompts.ids(f" {asked} {answer}")
    return (prompt, whole[len(prompt) :]) if whole[: len(prompt)] == prompt and len(whole) > len(prompt) else None


def ask_closed(
    m3: Memory3, relation: Relation, facts: Sequence[Fact], progress: Callable[[int], None] | None = None, *, rows: int = 16
) -> list[Tried]:
    """What the model says of facts by itself, asked in the relation's first pattern. Answers that share a token with their
    prompt are left out.

    Args:
        m3: the model, under `settings_for`.
        relation: of the facts, with a pattern in `Relation.asked`.
        facts: of the relation.
        progress: called with how many more are done.
        rows: prompts of a pass.
    """
    pattern = relation.asked[0]
    tokens = [(fact, ids) for fact in facts if (ids := _ids(m3, relation.prompt(pattern, fact), fact.answer))]
    found: list[Tried] = []
    for start in range(0, len(tokens), rows):
        some = tokens[start : start + rows]
        prompts = [m3.prompts.row(prompt, "none") for _, (prompt, _) in some]
        scores = m3.scorer.score(prompts, [[answer] for _, (_, answer) in some])
        for (fact, (prompt, answer)), [score] in zip(some, scores, strict=True):
            sizes = {"tokens of the answer": float(len(answer)), "tokens of the prompt": float(len(prompt))}
            found.append(Tried(relation.name, fact, score, {"none": _probability(score)}, sizes))
        if progress:
            progress(len(some))
    return found


def _probability(score: Score) -> float:
    return math.exp(min(0.0, score.least))


def try_facts(
    m3: Memory3,
    relation: Relation,
    tried: Sequence[Tried],
    *,
    others: int = 3,
    seed: int = 0,
    written: Mapping[Fact, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fill in what the model says of facts behind each text, as text and as memory.

    Args:
        m3: the model, under `settings_for`.
        relation: of the facts.
        tried: from `ask_closed`.
        others: patterns beside the one that is asked, at most.
        seed: of which other patterns, which other fact, and of the order of words.
        written: by fact, another model's text of it.
        progress: called with how many more are done.
    """
    asked = relation.asked[0]
    for each in tried:
        draw = random.Random(f"{seed} {relation.name} {each.fact.subject}")
        patterns = [pattern for pattern in relation.patterns if pattern != asked]
        patterns = draw.sample(patterns, min(others, len(patterns)))
        texts = {"text, same pattern": relation.text(asked, each.fact)}
        texts |= {f"other {n}": relation.text(pattern, each.fact) for n, pattern in enumerate(patterns)}
        if patterns:
            texts["text, all patterns at once"] = " ".join(texts.values())
        foreign = [fact for fact in relation.facts if fact.subject != each.fact.subject and fact.answer != each.fact.answer]
        control = (patterns or [asked])[0]
        if foreign:
            texts["text, another fact"] = relation.text(control, draw.choice(foreign))
        words = relation.text(control, each.fact).split()
        draw.shuffle(words)
        texts["text, shuffled"] = " ".join(words)
        if written and each.fact in written:
            texts["text, another model's"] = written[each.fact]
        each.texts = texts
        _read(m3, relation.prompt(asked, each.fact), each)
        if progress:
            progress(1)


def _read(m3: Memory3, prompt: str, each: Tried) -> None:
    """The prompt of one fact behind each of its texts, and behind the memories of some."""
    tokens = _ids(m3, prompt, each.fact.answer)
    assert tokens is not None, "it was asked before"
    question, answer = tokens
    references = {name: _reference(m3, name, text) for name, text in each.texts.items()}
    as_memory = {"text, same pattern": "memory, same pattern", "other 0": "memory, other pattern"}
    as_memory["text, another fact"] = "memory, another fact"
    wanted = [name for name in as_memory if name in references]
    memories: dict[str, Memory] = dict(zip(wanted, m3.encode([references[name] for name in wanted]), strict=True))
    held = Held(memories, references)
    names = [*references, *(as_memory[name] for name in wanted)]
    rows: list[PromptRow] = [m3.prompts.row(question, "text", [name], held) for name in references]
    rows += [m3.prompts.row(question, "memory", [name], held) for name in wanted]
    scores = m3.scorer.score(rows, [[answer]] * len(rows), held)
    each.found |= {name: _probability(score) for name, [score] in zip(names, scores, strict=True)}
    behind = [value for name, value in each.found.items() if name.startswith("other ")]
    if behind:
        each.found["text, every other pattern"] = min(behind)
    ways = (*behind, each.found["text, same pattern"], each.found.get("text, all patterns at once", 0.0))
    each.found["text, some pattern"] = max(ways)
    each.sizes["tokens of the text"] = float(len(references.get("other 0", references["text, same pattern"]).token_ids))


def _reference(m3: Memory3, name: str, text: str) -> Reference:
    ids = tuple(m3.prompts.ids(text))[: m3.config.reference_length]
    return Reference(name, name, 0, 0, len(text), text, ids)


def written_by(other: Memory3, relation: Relation, facts: Sequence[Fact]) -> dict[Fact, str]:
    """What another model writes of facts, greedily, when it is asked: its own sentence, where that says the answer.

    It is asked in the relation's second pattern where there is one, so that its text is no copy of the prompt.

    Args:
        other: the model that writes, under its own `settings_for`.
        relation: of the facts.
        facts: that it is asked for.
    """
    pattern = relation.asked[min(1, len(relation.asked) - 1)]
    prompts = [relation.prompt(pattern, fact) for fact in facts]
    found: dict[Fact, str] = {}
    for start in range(0, len(facts), 16):
        answers = other.generate(prompts[start : start + 16], mode="none", max_new_tokens=_WRITTEN)
        for fact, prompt, answer in zip(facts[start:], prompts[start:], answers, strict=False):
            said = f"{prompt} {answer.text.strip()}".split("\n")[0]
            end = said.find(". ", len(prompt))
            said = said if end < 0 else said[: end + 1]
            if fact.answer.lower() in said[len(prompt) :].lower():
                found[fact] = said
    return found


def try_relations(
    m3: Memory3,
    relations: Sequence[Relation],
    *,
    asked: int = 100,
    tried: int = 20,
    others: int = 3,
    seed: int = 0,
    known: float = KNOWN,
    other: Memory3 | None = None,
) -> Iterator[list[Tried]]:
    """Ask for facts of each relation, and try texts in front of those that are known and of those that are not.

    Args:
        m3: the model, under `settings_for`.
        relations: see `usable`.
        asked: facts of each relation, drawn at random.
        tried: of these, known ones at most, and unknown ones at most.
        others: patterns beside the one that is asked, at most.
        seed: of every draw.
        known: probability of each token of an answer that is known; more than `UNKNOWN`.
        other: another model, whose own texts are tried too.

    Yields:
        for each relation, all facts that were asked; those that were tried have more than the arm ``none``.

    Raises:
        InputError: no relation can be used, or ``known`` is no such probability.
    """
    if not UNKNOWN < known <= 1:
        raise InputError(f"known is {known}: give a probability of more than {UNKNOWN}, from which on a fact is known")
    for relation in usable(relations):
        draw = random.Random(f"{seed} {relation.name}")
        facts = draw.sample(relation.facts, min(asked, len(relation.facts)))
        mine = ask_closed(m3, relation, facts)
        sure = [each for each in mine if each.found["none"] >= known][:tried]
        unknown = [each for each in mine if each.found["none"] <= UNKNOWN][:tried]
        written = written_by(other, relation, [each.fact for each in [*sure, *unknown]]) if other else {}
        try_facts(m3, relation, [*sure, *unknown], others=others, seed=seed, written=written)
        yield mine


def usable(relations: Sequence[Relation]) -> list[Relation]:
    """Those that have facts, and a pattern that can be asked.

    Args:
        relations: in any order.

    Raises:
        InputError: there is none.
    """
    found = [relation for relation in relations if relation.asked and relation.facts]
    if not found:
        raise InputError("no relation has facts and a pattern whose [Y] stands at its end: a model is asked with such a one")
    return found


def _features(each: Tried) -> dict[str, float]:
    """What may tell facts that can be imitated from those that cannot."""
    inside = each.fact.answer.lower() in each.fact.subject.lower()
    return {"log-likelihood without a text": each.closed.total, **each.sizes, "answer is in the subject": float(inside)}


def summary(tried: Sequence[Tried], known: float = KNOWN) -> dict[str, Any]:
    """Rates of all facts and of each relation, and what tells facts that fail from the others.

    Args:
        tried: facts with what was seen.
        known: as in `try_relations`.
    """
    closed = [each.found["none"] for each in tried]
    counts = {"asked": len(closed), "known": sum(p >= known for p in closed), "unknown": sum(p <= UNKNOWN for p in closed)}
    read = [each for each in tried if len(each.found) > 1]
    groups = {
        "unknown": [each for each in read if each.found["none"] <= UNKNOWN],
        "known": [each for each in read if each.found["none"] >= known],
    }
    found: dict[str, Any] = {"thresholds": {"says it": KNOWN, "known": known, "unknown": UNKNOWN}, "facts": counts}
    for name, some in groups.items():
        by_relation = {each.relation: [one for one in some if one.relation == each.relation] for each in some}
        relations = {relation: {"facts": len(mine), "arms": _rates(mine, known)} for relation, mine in by_relation.items()}
        found[name] = {"facts": len(some), "arms": _rates(some, known), "relations": relations}
    for arm in ("text, every other pattern", "memory, other pattern"):
        there = [each for each in groups["unknown"] if arm in each.found]
        good = [_features(each) for each in there if each.found[arm] >= KNOWN]
        bad = [_features(each) for each in there if each.found[arm] < KNOWN]
        found["unknown"].setdefault("what tells failures", {})[arm] = separation(bad, good)
    return found


def _rates(tried: Sequence[Tried], known: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in ARMS:
        values = [each.found[arm] for each in tried if arm in each.found]
        if values:
            found[arm] = Rate(sum(value >= KNOWN for value in values), len(values)).to_dict()
            found[arm]["as if known"] = Rate(sum(value >= known for value in values), len(values)).to_dict()
            found[arm]["median probability"] = sorted(values)[len(values) // 2]
    return found
