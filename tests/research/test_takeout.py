"""Taking knowledge out: what is pruned is zero, what is fine-tuned is a copy, and reports hold what they say."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from memory3 import Memory3, MemoryConfig
from memory3.interpret.circuit import Alignment
from memory3.interpret.facts import Fact, Relation
from memory3.interpret.gates import GatedModel, Gates
from memory3.interpret.imitable import ask_closed, settings_for
from memory3.interpret.texts import Asked, asked_text
from memory3.interpret.weighing import gradient_weights, log_likelihoods
from research.circuits.pruning import Components, heaviest, projections, pruned, weigh
from research.circuits.screening import Screened, screen
from research.circuits.takeout import ARMS, answers_behind, mirrors, perplexity, split, split_others
from research.circuits.unlearning import Unlearning, unlearned

FACTS = (
    Fact("The bridge", "1874"),
    Fact("The sea", "the river"),
    Fact("Füße of the old town", "county"),
    Fact("A tab", "sea"),
)
RELATION = Relation("built", ("[X] was built in [Y] .", "In [Y] stands [X]."), FACTS)
ASKED = [
    Asked("The bridge was built by the engineer of the", " county", "engineer"),
    Asked("The bridge was built by the reader in the", " mountains near", "reader"),
]


@pytest.fixture(scope="module")
def texts():
    return [asked_text(tiny_tokenizer(), asked) for asked in ASKED]


@pytest.fixture(scope="module")
def m3():
    tokenizer = tiny_tokenizer(adds_bos=False)
    return Memory3(tiny_model(), tokenizer, settings_for(tokenizer, MemoryConfig(budget="all")))


def test_a_pruned_head_is_a_closed_gate(texts):
    """Zeroed columns, and gates that let nothing of the head through, are two ways to the same logits."""
    model = tiny_model("qwen2").double()
    before = copy.deepcopy(model.state_dict())
    made = pruned(model, [(2, 5), (4, 0)], [])
    text = texts[0]
    size = len(text.tokens)
    gates = Gates({layer: torch.ones(1, 6, size, size, dtype=torch.float64) for layer in (2, 4)})
    gates.attention[2][:, 5] = 0
    gates.attention[4][:, 0] = 0
    tokens = torch.tensor([text.tokens])
    expected = GatedModel(model).logits(tokens, [size - 1], gates)
    torch.testing.assert_close(made(tokens).logits[:, -1:], expected)
    assert (made(tokens).logits - model(tokens).logits).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruned_neurons_are_silent(texts):
    """The same as a hook that silences them."""
    model = tiny_model().double()
    made, silent = pruned(model, [], [(1, 3), (1, 21), (4, 0)]), {1: [3, 21], 4: [0]}

    def hook(which):
        def silenced(_, given):
            inputs = given[0].clone()
            inputs[..., which] = 0
            return (inputs,)

        return silenced

    tokens = torch.tensor([texts[0].tokens])
    found = made(tokens).logits
    handles = [projections(model)[layer][1].register_forward_pre_hook(hook(which)) for layer, which in silent.items()]
    torch.testing.assert_close(found, model(tokens).logits)
    for handle in handles:
        handle.remove()
    assert (found - model(tokens).logits).abs().max() > 1e-3


def test_weights_are_those_of_the_edges_added_up(texts):
    model = tiny_model().double()
    found, alignment = weigh(model, texts), Alignment(texts)
    edges = gradient_weights(GatedModel(model), alignment)
    torch.testing.assert_close(found.heads, edges.attention.sum(-1))
    torch.testing.assert_close(found.neurons.sum(1), edges.mlps.sum(1))
    # A single neuron, by a step: norms compute in float32, so that a smaller one would be rounding.
    layer, neuron, step = 3, 7, 1e-2
    values = []
    for scale in (1 + step, 1 - step):
        made = copy.deepcopy(model)
        with torch.no_grad():
            projections(made)[layer][1].weight[:, neuron] *= scale
            values.append(sum(float(log_likelihoods(GatedModel(made), alignment, [n])) for n in range(len(texts))))
    slope = (values[0] - values[1]) / (2 * step) / len(texts)
    assert float(found.neurons[layer, neuron]) == pytest.approx(slope, rel=1e-2)
    assert abs(slope) > 1e-3


def test_the_heaviest_are_those_that_others_do_not_need():
    mine = Components(torch.tensor([[3.0, 1.0], [2.0, -9.0]]), torch.tensor([[1.0, 5.0, 4.0]]))
    others = Components(torch.tensor([[0.0, 0.0], [-2.5, 0.0]]), torch.tensor([[0.0, 5.0, 0.0]]))
    assert heaviest(mine, others, 2, 1) == ([(0, 0), (0, 1)], [(0, 2)])


def test_fine_tuning_touches_a_copy_and_its_layers_alone():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    prompts = [[1, 40, 50, 60], [1, 41, 51], [1, 42, 52, 62, 72]]
    kept, plain = [[1, 90, 91], [1, 95, 96, 97]], [[1, 100, 101, 102, 103]]
    losses = []
    how = Unlearning(layers=2, steps=60, rate=1e-2, batch=3)
    made = unlearned(model, prompts, kept, plain, how, lambda step, loss: losses.append(loss))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = [name for name, value in made.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)]
    assert len(losses) == 60
    assert losses[-1] < 0.5 * losses[0]

    def said(of, row):
        return torch.log_softmax(of(torch.tensor([row])).logits[0, -1].detach(), -1)

    prior = torch.stack([said(model, row).exp() for row in prompts]).mean(0)
    for row in prompts:
        before_it, behind = ((prior * (prior.log() - said(of, row))).sum() for of in (model, made))
        assert behind < before_it
    drift = [(said(model, row).exp() * (said(model, row) - said(made, row))).sum() for row in kept]
    assert max(drift) < 0.2


def test_screening_is_what_is_asked_one_by_one(m3):
    found = {one.subject: one for one in screen(m3, RELATION, FACTS)}
    asked = ask_closed(m3, RELATION, FACTS)
    assert len(found) == len(asked) == 4
    for each in asked:
        one = found[each.fact.subject]
        assert one.least == pytest.approx(each.found["none"], rel=1e-4)
        assert one.total == pytest.approx(each.closed.total, rel=1e-4)
    assert {one.rank for one in found.values()} != {1}


def test_answers_behind_nothing_are_those_of_the_screening(m3):
    found = answers_behind(m3, RELATION, FACTS, ARMS)
    for each, one in zip(found, (screen(m3, RELATION, [fact])[0] for fact in FACTS), strict=True):
        assert set(each) == set(ARMS)
        assert each["closed book"]["rank"] == one.rank
        assert each["closed book"]["probability"] >= math.exp(one.total) * 0.999
        # What stands in front counts.
        assert len({round(value["probability"], 9) for value in each.values()}) == len(ARMS)


def test_memories_are_the_edited_models_own(m3):
    made = pruned(m3.model, [(0, 1), (2, 3)], [(1, 1)])
    edited = Memory3(made, m3.tokenizer, m3.config)
    mine, theirs = (answers_behind(one, RELATION, FACTS[:2], ["memory, same pattern"]) for one in (m3, edited))
    assert mine != theirs


def test_halves_of_the_known_facts():
    screened = [Screened("P1", f"subject {n}", f"answer {n % 3}", 0.5, -1.0, 1 + n % 2, "a") for n in range(60)]
    halves = split(screened, 5)
    assert len(halves.train) == len(halves.test) == 5
    assert not set(halves.train) & set(halves.test)
    both = [*halves.train, *halves.test]
    assert max(sum(fact.answer == other.answer for other in both) for fact in both) <= 4
    assert {int(fact.subject.split()[1]) % 2 for fact in both} == {0}  # rank 1 alone
    screened += [Screened(name, "s", "t", 0.5, -1.0, 1, "a") for name in ("P2", "P3", "P4")]
    kept, tested = split_others(screened, {"P1"}, 9)
    assert {one.relation for one in kept} == {"P2", "P4"}
    assert {one.relation for one in tested} == {"P3"}


def test_what_can_be_read_in_the_subject_is_not_known():
    assert Screened("P1", "Harbour", "sea", 0.5, -1.0, 1, "a").known
    assert not Screened("P1", "Seaside", "sea", 0.5, -1.0, 1, "a").known
    assert not Screened("P1", "Harbour", "sea", 0.5, -1.0, 2, "a").known


def test_a_relation_that_is_turned_round_is_its_mirror():
    turned = Relation("builds", (), tuple(Fact(fact.answer, fact.subject) for fact in FACTS[:1]))
    assert mirrors({"built": RELATION, "builds": turned, "else": Relation("else", (), FACTS)}, "built") == {"builds"}


def test_perplexity_equals_a_loop():
    model, rows = tiny_model(), [[1, 40, 50, 60], [1, 41, 51, 61]]
    total = 0.0
    for row in rows:
        for end in range(1, len(row)):
            with torch.no_grad():
                total -= float(torch.log_softmax(model(torch.tensor([row[:end]])).logits[0, -1], -1)[row[end]])
    assert perplexity(model, rows) == pytest.approx(math.exp(total / 6), rel=1e-4)
