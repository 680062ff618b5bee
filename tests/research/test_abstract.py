"""Abstract knowledge: instances are what they say, and what a model can do is what it would write."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from memory3 import Memory3, MemoryConfig
from memory3.errors import InputError
from memory3.interpret.imitable import settings_for
from research.circuits.abstract import KINDS, Instance, can_do, drawn, try_kind


@pytest.fixture(scope="module")
def m3():
    tokenizer = tiny_tokenizer(adds_bos=False)
    return Memory3(tiny_model(), tokenizer, settings_for(tokenizer, MemoryConfig(budget="all", reference_length=200)))


def test_instances_are_right():
    for one in drawn("addition", 50):
        first, plus, second, equals = one.prompt.split()
        assert int(first) + int(second) == int(one.answer)
        assert (plus, equals) == ("+", "=")
    for one in drawn("induction", 50):
        *pairs, first = one.prompt.split(", ")
        assert dict(pair.split() for pair in pairs)[first] == one.answer
        assert len(pairs) == 8
        assert pairs[-1].split()[0] != first
    seen = set()
    for one in drawn("agreement", 50):
        words = one.prompt.split()
        plural = words[1].endswith("s")
        assert plural != words[-1].endswith("s")
        assert (one.answer, one.foil) == (("are", "is") if plural else ("is", "are"))
        seen.add(plural)
    assert seen == {True, False}


def test_instances_are_each_once_and_their_number_is_told():
    for kind in KINDS:
        some = drawn(kind, 60, seed=1)
        assert len(set(some)) == 60
        assert some == drawn(kind, 60, seed=1) != drawn(kind, 60, seed=2)
    with pytest.raises(InputError, match="fewer than 9000 instances: ask for fewer"):
        drawn("agreement", 9000)


@torch.no_grad()
def test_can_do_is_what_the_model_would_write(m3):
    """By a loop, token by token."""
    hits = []
    prompt = "The river reaches"
    asked = m3.prompts.ids(f" {prompt}")
    row = m3.prompts.row(asked, "none")
    written = list(row.tokens)
    for _ in range(2):
        written.append(int(m3.model(torch.tensor([written])).logits[0, -1].argmax()))
    said = m3.tokenizer.decode(written[-2:])
    for answer in (said.strip(), "sea", "the bridge"):
        whole = m3.prompts.ids(f" {prompt} {answer}")
        tokens, greedy = list(row.tokens), True
        for token in whole[len(asked) :]:
            greedy &= int(m3.model(torch.tensor([tokens])).logits[0, -1].argmax()) == token
            tokens.append(token)
        assert can_do(m3, Instance(prompt, answer), [row]) == [greedy]
        hits.append(greedy)
    # Of two forms one is preferred, whichever way they are asked.
    assert can_do(m3, Instance(prompt, "is", "are"), [row]) != can_do(m3, Instance(prompt, "are", "is"), [row])


def test_every_arm_has_every_instance_that_failed(m3):
    found = try_kind(m3, "agreement", 12, 5)
    failed = 12 - found["by itself"]["hits"]
    assert failed > 0
    names = {"a rule in words", "one other instance", "three other instances", "control: another kind", "the instance itself"}
    assert set(found["arms"]) == {f"{mode}, {name}" for mode in ("text", "memory") for name in names}
    assert {rate["of"] for rate in found["arms"].values()} == {min(5, failed)}
