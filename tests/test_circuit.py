"""Circuits: one whose weights were set by hand is found, and every number is computed a second, slower way."""

from __future__ import annotations

import json
import math

import pytest
import torch
from by_hand import INDUCTION, PREVIOUS, TOKENS, induction_model
from command_line import _stand_in, run, run_json  # noqa: F401
from families import family
from tiny import save_tiny, tiny_model, tiny_tokenizer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from memory3.errors import ConfigError, InputError, ModelError, UnsupportedModel
from memory3.interpret.circuit import Alignment, Edge, Weights
from memory3.interpret.describing import inputs, outputs, variance, words
from memory3.interpret.finding import find_circuit, known, rank_correlation
from memory3.interpret.gates import GatedModel, Gates, Means, Seen
from memory3.interpret.induction import agreement, copying, prefix_matching
from memory3.interpret.picture import picture
from memory3.interpret.texts import Asked, asked_text, repeated_texts
from memory3.interpret.weighing import carried, exact_weights, gradient_weights, log_likelihoods, mean_outputs, said_alone

#: Subjects of one, two and several tokens, answers of one and of several.
ASKED = [
    Asked("The bridge was built by the engineer of the", " county", "engineer"),
    Asked("The bridge was built by Füße of the", " sea", "Füße"),
    Asked("The bridge was built by the reader in the", " mountains near", "reader"),
]


@pytest.fixture(scope="module")
def texts():
    return [asked_text(tiny_tokenizer(), asked) for asked in ASKED]


def doubled(name="llama", **changes):
    return GatedModel(tiny_model(name, **changes).double())


# ---- a circuit set by hand -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand():
    return GatedModel(induction_model())


PERIOD = 7


@pytest.fixture(scope="module")
def repeated():
    return Alignment(repeated_texts(range(1, TOKENS), [0], 5, PERIOD))


MATCHED = Edge(*INDUCTION, "matched", "again")
NOTED = Edge(*PREVIOUS, "previous", "once")


def test_the_induction_head_is_found_and_its_edges_are_exact(by_hand, repeated):
    every = [Edge(layer, head, *pair) for layer in range(2) for head in range(4) for pair in repeated.pairs]
    every += [Edge(layer, -1, role, role) for layer in range(2) for role in repeated.roles]
    exact = dict(zip(every, exact_weights(by_hand, repeated, every), strict=True))
    assert sorted(exact, key=exact.get)[-2:] == [NOTED, MATCHED]
    # By hand: what head 1 notes is sqrt(18) long, what head 2 says sqrt(36 / 20), and the last norm divides by their length.
    said = math.sqrt(36 / 20)
    logit = 1.8 * said / math.sqrt((1 + 1 + 18 + said**2) / 36)
    likely = (PERIOD - 1) * (logit - math.log(math.exp(logit) + TOKENS - 1))
    assert carried(by_hand, repeated, [], keep=False) == pytest.approx([likely] * 5, abs=1e-6)
    assert exact[MATCHED] == pytest.approx(likely + (PERIOD - 1) * math.log(TOKENS), abs=1e-6)
    # What repeated tokens note of the token before them is read by nobody, and lengthens what the last norm divides by.
    useless = Edge(*PREVIOUS, "previous", "again")
    logit = 1.8 * said / math.sqrt((1 + 1 + said**2) / 36)
    assert exact[useless] == pytest.approx(likely - (PERIOD - 1) * (logit - math.log(math.exp(logit) + TOKENS - 1)), abs=1e-5)
    others = [abs(weight) for edge, weight in exact.items() if edge not in (MATCHED, NOTED, useless)]
    assert max(others) < 1e-6
    kept = carried(by_hand, repeated, [MATCHED, NOTED, useless], keep=True)
    assert kept == pytest.approx([likely] * 5, abs=1e-6)
    assert carried(by_hand, repeated, [], keep=True) == pytest.approx([-(PERIOD - 1) * math.log(TOKENS)] * 5)
    assert max(carried(by_hand, repeated, [MATCHED], keep=False)) == pytest.approx(-(PERIOD - 1) * math.log(TOKENS))


def test_the_gradient_ranks_the_induction_head_first(by_hand, repeated):
    weights = gradient_weights(by_hand, repeated)
    assert weights.ranked(1) == [MATCHED]
    assert {(edge.layer, edge.head) for edge in weights.ranked(3)} == {PREVIOUS, INDUCTION}
    assert weights.mlps.abs().max() == 0
    means = mean_outputs(by_hand, repeated)
    assert gradient_weights(by_hand, repeated, means, points=(1.0, 0.5)).ranked(1) == [MATCHED]


def test_scores_of_the_literature_name_the_same_head(by_hand, repeated):
    matching, copied = prefix_matching(by_hand, repeated), copying(by_hand, repeated)
    assert int(matching.flatten().argmax()) == int(copied.flatten().argmax()) == 4 * INDUCTION[0] + INDUCTION[1]
    assert float(matching.max()) == pytest.approx(1, abs=1e-6)
    assert float(copied.max()) == pytest.approx(1, abs=1e-6)
    assert float(copied[PREVIOUS]) < 0.5
    found = agreement(gradient_weights(by_hand, repeated), matching, copied, most=1)
    assert (found["heads"][0]["layer"], found["heads"][0]["head"], found["shared"]) == (*INDUCTION, 1)


def test_what_the_induction_head_writes_and_reads(by_hand, repeated):
    [out] = outputs(by_hand, repeated, [MATCHED])
    # The token that is said, of each repeated token of each text: one number of the width.
    said = [(number, 2 * TOKENS + token) for number, text in enumerate(repeated.texts) for _, token in text.targets]
    assert [(number, int(row.argmax())) for number, row in zip(out.texts, out.vectors, strict=True)] == said
    torch.testing.assert_close(out.vectors.sum(1), torch.full((30,), math.sqrt(36 / 20)), rtol=1e-4, atol=0)
    assert out.first(2).argmax(1).tolist() == [said[0][1], said[6][1]]
    assert variance(out.vectors) > 0.8  # abstract: what it says varies

    class Letters:
        def decode(self, tokens):
            return "abcdefghijk"[tokens[0]]

    said = torch.zeros(1, 3 * TOKENS + 3)
    said[0, 2 * TOKENS + 5], said[0, 2 * TOKENS + 2] = 3, 2
    assert words(by_hand, Letters(), said, 2) == [["f", "c"]]


# ---- the same in a slow way ----------------------------------------------------------------------------------------------


def slow_logits(model, tokens, attention, mlps, means=None, pairs=None, roles=None):
    """One text, edge by edge: ``attention[layer][head][to][source]`` and ``mlps[layer][to]`` are gates."""
    base, size = model.model, len(tokens)
    stream = base.embed_tokens(torch.tensor([tokens]))
    angles = base.rotary_emb(stream, torch.arange(size)[None])
    for number, layer in enumerate(base.layers):
        part, normed = layer.self_attn, layer.input_layernorm(stream)
        split = [getattr(part, f"{name}_proj")(normed).view(1, size, -1, part.head_dim) for name in "qkv"]
        if hasattr(part, "q_norm"):
            split[:2] = part.q_norm(split[0]), part.k_norm(split[1])
        query, key, value = (each.transpose(1, 2) for each in split)
        query, key = apply_rotary_pos_emb(query, key, *angles)
        heads, group = query.shape[1], query.shape[1] // key.shape[1]
        added = torch.zeros_like(stream)
        for head in range(heads):
            weight = part.o_proj.weight[:, head * part.head_dim : (head + 1) * part.head_dim]
            for to in range(size):
                scores = torch.softmax(query[0, head, to] @ key[0, head // group, : to + 1].T * part.scaling, -1)
                for source in range(to + 1):
                    gate = attention[number][head][to][source]
                    mixed = gate * scores[source] * value[0, head // group, source]
                    if means is not None:
                        mixed = mixed + (1 - gate) * means.attention[number][head, pairs[to, source]]
                    added[0, to] += weight @ mixed
        stream = stream + added
        out = layer.mlp(layer.post_attention_layernorm(stream))
        for to in range(size):
            gate = mlps[number][to]
            out[0, to] = gate * out[0, to] + (0 if means is None else (1 - gate) * means.mlps[number][roles[to]])
        stream = stream + out
    return model.lm_head(base.norm(stream))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_gates_equal_a_loop_over_edges(name, texts):
    gated, alignment = doubled(name), Alignment(texts)
    text, generator = texts[0], torch.Generator().manual_seed(3)
    size = len(text.tokens)
    attention = torch.rand(gated.layers, 1, gated.heads, size, size, generator=generator, dtype=torch.float64)
    mlps = torch.rand(gated.layers, 1, size, generator=generator, dtype=torch.float64)
    pairs, roles = alignment.pair_ids(0), alignment.role_ids(0)
    for means in (None, mean_outputs(gated, alignment)):
        gates = Gates(dict(enumerate(attention)), dict(enumerate(mlps)), means, (pairs[None], roles[None]))
        found = gated.logits(torch.tensor([text.tokens]), [2, size - 1], gates)
        expected = slow_logits(gated.model, text.tokens, attention[:, 0], mlps[:, 0], means, pairs, roles)
        torch.testing.assert_close(found, expected[:, [2, size - 1]])
    one = slow_logits(gated.model, text.tokens, torch.ones_like(attention[:, 0]), torch.ones_like(mlps[:, 0]))
    torch.testing.assert_close(one, gated.model(torch.tensor([text.tokens])).logits)


@torch.no_grad()
def test_means_equal_a_loop_over_texts(texts):
    gated, alignment = doubled(), Alignment(texts)
    means = mean_outputs(gated, alignment)
    gathered, mlps = {}, {}
    for number, text in enumerate(texts):
        seen = Seen()
        log_likelihoods(gated, alignment, [number], None, seen)
        for to in range(len(text.tokens)):
            mlps.setdefault(text.roles[to], []).append(seen.mlps[4][0, to])
            for source in range(to + 1):
                added = seen.scores[2][0, 3, to, source] * seen.values[2][0, 3, source]
                gathered.setdefault(text.edge(source, to), []).append(added)
    for number, pair in enumerate(alignment.pairs):
        torch.testing.assert_close(means.attention[2][3, number], torch.stack(gathered[pair]).mean(0))
    for number, role in enumerate(alignment.roles):
        torch.testing.assert_close(means.mlps[4][number], torch.stack(mlps[role]).mean(0))


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_the_gradient_is_the_slope_of_the_gates(texts, baseline):
    gated, alignment = doubled(), Alignment(texts)
    means = mean_outputs(gated, alignment) if baseline == "mean" else None
    weights = gradient_weights(gated, alignment, means)
    for edge in heavy(weights):
        slope = slope_of(gated, alignment, edge, means)
        assert weights.of(edge) == pytest.approx(slope, rel=0.01, abs=1e-3)
        assert abs(slope) > 0.1


def heavy(weights):
    """Edges of both kinds and of early and late layers, each the heaviest of its kind."""
    ranked, last = weights.ranked(), len(weights.mlps) - 1
    kinds = ((False, range(last)), (False, (last,)), (True, range(last)), (True, (last,)))
    return [next(edge for edge in ranked if edge.is_mlp == mlp and edge.layer in layers) for mlp, layers in kinds]


def slope_of(gated, alignment, edge, means=None, step=1e-3):
    """The mean over texts of how the log-likelihood changes with the gates of one edge."""
    slope, dtype = 0.0, gated.model.dtype
    for number, text in enumerate(alignment.texts):
        kinds, size = (alignment.pair_ids(number)[None], alignment.role_ids(number)[None]), len(text.tokens)
        found = []
        for value in (1 + step, 1 - step):
            gates = Gates(means=means, kinds=kinds)
            if edge.is_mlp:
                gates.mlps[edge.layer] = torch.ones(1, size, dtype=dtype)
                gates.mlps[edge.layer][kinds[1] == alignment.roles.index(edge.to)] = value
            else:
                gates.attention[edge.layer] = torch.ones(1, gated.heads, size, size, dtype=dtype)
                mine = kinds[0][0] == alignment.pairs.index((edge.source, edge.to))
                gates.attention[edge.layer][0, edge.head][mine] = value
            with torch.no_grad():
                found.append(float(log_likelihoods(gated, alignment, [number], gates)))
        slope += (found[0] - found[1]) / (2 * step) / len(alignment.texts)
    return slope


def test_taken_out_one_by_one_equals_cut(texts):
    """The exact weight of an edge, and what is lost when it alone is cut, are computed by two ways."""
    gated, alignment = doubled("qwen2"), Alignment(texts)
    edges = [Edge(2, 5, "subject.last", "last"), Edge(4, -1, "last", "last"), Edge(0, 0, "before -1", "subject.last")]
    for means in (None, mean_outputs(gated, alignment)):
        whole = carried(gated, alignment, [], means, keep=False)
        lost = [sum(whole) - sum(carried(gated, alignment, [edge], means, keep=False)) for edge in edges]
        # Passes of a single row, and passes of many.
        for most in (1, 1024):
            found = exact_weights(gated, alignment, edges, means, most=most)
            assert found == pytest.approx([each / len(texts) for each in lost])
        assert min(map(abs, lost)) > 1e-9


def test_one_edge_is_linear_where_the_model_is(texts):
    """Of the MLP of the last layer, gradient and exact weight differ by the norm and the softmax alone: of an edge
    made small they agree."""
    gated, alignment = doubled(), Alignment(texts[:1])
    with torch.no_grad():
        gated.parts.mlps[4].down_proj.weight.mul_(1e-4)
    edge = Edge(4, -1, "last", "last")
    [exact] = exact_weights(gated, alignment, [edge])
    assert gradient_weights(gated, alignment).of(edge) == pytest.approx(exact, rel=1e-2)


def test_outputs_add_up_to_what_attention_adds(texts):
    """All edges into a token, over heads and sources, are what the attention module gives."""
    gated, alignment = doubled("mistral"), Alignment(texts[:1])
    caught = []
    handle = gated.parts.attentions[3].register_forward_hook(lambda module, args, out: caught.append(out[0]))
    with torch.no_grad():
        log_likelihoods(gated, alignment, [0])
    handle.remove()
    edges = [Edge(3, head, source, to) for head in range(gated.heads) for source, to in alignment.pairs if to == "last"]
    found = sum(out.vectors for out in outputs(gated, alignment, edges))
    torch.testing.assert_close(found[0], caught[0][0, texts[0].roles.index("last")].float())


def test_the_variance_of_outputs():
    same = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    assert variance(same) == pytest.approx(0)
    # By hand: mean (1, 1), its square 2; mean of squares 4; 2 / 1 of 1 - 2 / 4.
    assert variance(torch.tensor([[2.0, 0.0], [0.0, 2.0]])) == pytest.approx(1)
    assert math.isnan(variance(torch.tensor([[1.0, 2.0]])))
    assert math.isnan(variance(torch.zeros(3, 2)))
    generator = torch.Generator().manual_seed(1)
    assert variance(torch.randn(300, 11, generator=generator)) == pytest.approx(1, abs=0.02)


def test_inputs_equal_a_slope(texts):
    """The share of a role: how an edge's activation changes with the length of its tokens' embeddings."""
    gated, alignment = doubled(), Alignment(texts[:1])
    edges = [Edge(2, 1, "subject.last", "last"), Edge(1, -1, "last", "last")]
    for edge, found in zip(edges, inputs(gated, alignment, edges), strict=True):
        slopes = {}
        for place, role in enumerate(texts[0].roles):
            ends = []
            for factor in (1.001, 0.999):

                def longer(module, args, out, place=place, factor=factor):
                    out = out.clone()
                    out[:, place] *= factor
                    return out

                seen, handle = Seen(), gated.model.model.embed_tokens.register_forward_hook(longer)
                with torch.no_grad():
                    log_likelihoods(gated, alignment, [0], None, seen)
                handle.remove()
                to, source = texts[0].roles.index(edge.to), texts[0].roles.index(edge.source)
                ends.append(float(seen.mlps[1][0, to].norm() if edge.is_mlp else seen.scores[2][0, 1, to, source]))
            slopes[role] = slopes.get(role, 0) + abs(ends[0] - ends[1])
        total = sum(slopes.values())
        assert list(found.values()) == sorted(found.values(), reverse=True)
        for role, share in found.items():
            assert share == pytest.approx(slopes[role] / total, rel=0.02, abs=1e-3)


# ---- texts ---------------------------------------------------------------------------------------------------------------


def test_roles_of_a_text():
    tokenizer = tiny_tokenizer()
    text = asked_text(tokenizer, Asked("The engineer of the old bridge was", " near the sea", "engineer of the"))
    assert text.roles[0] == "front"
    assert text.roles.count("subject.first") == text.roles.count("subject.last") == text.roles.count("last") == 1
    last = text.roles.index("last")
    assert text.roles[last - 1] == "relation -1"
    assert text.roles[text.roles.index("subject.first") - 1] == "before -1"
    # Every token of the answer is a target, and all but the last are fed.
    assert [place for place, _ in text.targets] == list(range(last, len(text.tokens)))
    assert [token for _, token in text.targets][:-1] == list(text.tokens[last + 1 :])
    assert tokenizer.decode([token for _, token in text.targets]) == " near the sea"
    assert text.roles[last + 1 :] == tuple(f"answer {n + 1}" for n in range(len(text.targets) - 1))
    bare = asked_text(tokenizer, Asked("The bridge was", " near"))
    assert (bare.roles[1], bare.roles[-1] if len(bare.targets) == 1 else "last") == ("token 1", "last")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("The river rises in the", " sea", "lake"), "'lake' is not in the prompt"),
        (Asked("The river", " "), "the answer is empty"),
        (Asked(" ", " sea"), "the prompt is empty"),
        (Asked("The river rises in t", "he"), "merges the answer 'he'"),
        (Asked("The old town the" + " town" * 300, " sea"), "shorten it"),
        (Asked("x" * 20_000, " sea"), "more than 16,384 characters"),
    ],
)
def test_texts_that_cannot_be_looked_into(asked, said):
    with pytest.raises(InputError, match=said):
        asked_text(tiny_tokenizer(), asked)


def test_special_tokens_in_a_text_are_text():
    tokenizer = tiny_tokenizer()
    text = asked_text(tokenizer, Asked("The </s> bridge was", " built", "bridge"))
    assert tokenizer.eos_token_id not in text.tokens


def test_repeated_texts_and_the_names_of_their_edges():
    [text] = repeated_texts([5, 6, 7, 8], [1, 2], 1, 3, seed=2)
    first, second, third = text.tokens[2:5]
    assert text.tokens == (1, 2, first, second, third, first, second)
    assert text.targets == ((5, second), (6, third))
    assert [text.edge(source, 5) for source in range(6)] == [
        ("front", "again"),
        ("front", "again"),
        ("earlier copy", "again"),
        ("matched", "again"),
        ("previous", "again"),
        ("itself", "again"),
    ]
    assert text.edge(2, 4) == ("others", "once")
    for vocabulary, period in (([5, 6, 7], 2), ([5, 6], 3), (range(500), 200)):
        with pytest.raises(InputError, match="give"):
            repeated_texts(vocabulary, [], 1, period)


def test_texts_of_one_shape_are_read_together(texts):
    alignment = Alignment([*texts, texts[0]])
    assert [0, 3] in alignment.batches()
    assert sorted(n for batch in alignment.batches() for n in batch) == [0, 1, 2, 3]
    assert [0] in alignment.batches(most=1)


# ---- what is found -------------------------------------------------------------------------------------------------------


def test_a_report(texts, monkeypatch):
    gated = GatedModel(tiny_model(seed=2))
    report, weights = find_circuit(gated, tiny_tokenizer(), texts, edges=7, exact=5)
    assert len(report["edges"]) == 7
    json.dumps(report, allow_nan=False)
    circuit, alignment = report["circuit"], weights.alignment
    means = mean_outputs(gated, alignment)
    assert circuit["all edges"] == pytest.approx(sum(carried(gated, alignment, [], keep=False)) / 3)
    assert circuit["kept alone"] == pytest.approx(sum(carried(gated, alignment, weights.ranked(7), means, keep=True)) / 3)
    share = (circuit["kept alone"] - circuit["no edge"]) / (circuit["all edges"] - circuit["no edge"])
    assert circuit["share"] == pytest.approx(share)
    assert report["gradient against exact"]["edges"] == 10
    sizes = [abs(edge["weight"]) for edge in report["edges"]]
    assert sizes == sorted(sizes, reverse=True)
    everything = [Edge(n, h, *p) for n in range(5) for h in range(6) for p in alignment.pairs]
    everything += [Edge(n, -1, r, r) for n in range(5) for r in alignment.roles]
    assert len(everything) == weights.count == report["edges in all"]
    torch.testing.assert_close(
        said_alone(gated, alignment, everything)[1],
        torch.log_softmax(gated.model(torch.tensor([texts[1].tokens])).logits[0, texts[1].targets[0][0]], -1),
    )
    with pytest.raises(ConfigError, match="'median' is unknown"):
        find_circuit(gated, tiny_tokenizer(), texts, baseline="median")
    with pytest.raises(InputError, match="a mean of one is that text"):
        find_circuit(gated, tiny_tokenizer(), texts[:1])
    with monkeypatch.context() as smaller:
        smaller.setattr("memory3.interpret.finding._MOST_BYTES", 1 << 20)
        with pytest.raises(InputError, match="give shorter texts, or name their subjects, or the baseline zero"):
            find_circuit(gated, tiny_tokenizer(), texts)
    same, _ = find_circuit(gated, tiny_tokenizer(), [texts[0], texts[0]], baseline="zero", edges=3, exact=0)
    assert (same["circuit"]["kind"], same["circuit"]["variance"]) == ("specific", pytest.approx(0, abs=1e-6))
    alone, _ = find_circuit(gated, tiny_tokenizer(), texts[:1], baseline="zero", edges=3, exact=0)
    assert alone["circuit"]["kind"] == "unknown"
    with torch.no_grad():
        gated.parts.mlps[2].down_proj.weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        find_circuit(gated, tiny_tokenizer(), texts)
    assert alone["gradient against exact"] == {"edges": 0, "of the circuit": 0}
    report["layers"] = 5
    drawn = picture(report, "$a < b$ & c")
    assert b"<svg" in drawn
    assert drawn == picture(report, "$a < b$ & c")
    assert picture(report, "x", "png").startswith(b"\x89PNG")


def test_rank_correlation_by_hand(texts):
    alignment = Alignment(texts[:1])
    pairs = len(alignment.pairs)
    attention = torch.zeros(1, 1, pairs)
    attention[0, 0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    weights = Weights(alignment, attention, torch.zeros(1, len(alignment.roles)))
    edges = weights.ranked(4)
    # Places 2 and 3 changed: 1 - 6 * 2 / (4 * 15).
    found = rank_correlation(weights, dict(zip(edges, [9.0, 5.0, 7.0, 1.0], strict=True)), edges[:1])
    assert found["all"] == pytest.approx(0.8)
    assert found["of the circuit"] == 1


def test_the_likeliest_texts_are_known(texts):
    gated = GatedModel(tiny_model())
    alignment = Alignment(texts)
    likely = carried(gated, alignment, [], keep=False)
    order = sorted(range(3), key=lambda n: -likely[n])
    assert known(gated, texts, 0, 2) == order[:2]
    assert known(gated, texts, math.exp(likely[order[1]]) * 0.999, 3) == order[:2]
    assert known(gated, texts, 1, 3) == []


# ---- other families ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo2", "phi3", "mixtral", "gpt_neox"])
def test_families_of_other_shapes(kind, texts):
    """Norms behind the MLP, a window, fused projections, experts, an MLP beside the attention."""
    model = family(kind, {"num_local_experts": 4} if kind == "mixtral" else {})
    gated = GatedModel(model if kind == "mixtral" else model.double())  # experts have no product of doubles
    alignment = Alignment(texts[:2])
    weights = gradient_weights(gated, alignment)
    for edge in heavy(weights):
        slope = slope_of(gated, alignment, edge)
        assert weights.of(edge) == pytest.approx(slope, rel=0.03, abs=0.02)
        assert abs(slope) > 0.1


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "llama4_text"])
def test_families_whose_edges_are_not_all_seen_are_refused(kind):
    with pytest.raises(UnsupportedModel):
        GatedModel(family(kind, {}))


def test_the_model_is_as_it_was_afterwards(texts):
    model = tiny_model()
    hooks = lambda: sum(len(module._forward_hooks) for module in model.modules())  # noqa: E731
    before, own = hooks(), model.config._attn_implementation
    gated = GatedModel(model)
    broken = Gates({0: torch.ones(1, 2, 3, 3)})
    with pytest.raises(RuntimeError):
        gated.logits(torch.tensor([texts[0].tokens]), [0], broken)
    inputs(gated, Alignment(texts), [Edge(0, -1, "last", "last")])
    assert (hooks(), model.config._attn_implementation) == (before, own)


# ---- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_the_command_finds_a_circuit(folder, tmp_path):
    lines = [{"prompt": each.prompt, "answer": each.answer.strip(), "subject": each.subject} for each in ASKED]
    lines.append({"prompt": "The bridge was near the", "answer": "sea", "subject": "lake"})
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = ["--model", folder, "--least", "0", "--exact", "2", "--edges", "3"]
    result = run(
        "circuit", "find", tmp_path / "texts.jsonl", *common, "--figure", tmp_path / "a.svg", "--out", tmp_path / "a.json"
    )
    assert "3 texts" in result.stdout
    assert "1 text left out" in result.stderr
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["texts"], len(report["edges"]), report["first texts"][0][:10]) == (3, 3, "The bridge")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    table = "prompt\tsubject\tanswer\n" + "\n".join(f"{each.prompt}\t{each.subject}\t{each.answer.strip()}" for each in ASKED)
    (tmp_path / "texts.tsv").write_text(table)
    again = run_json("circuit", "find", tmp_path / "texts.tsv", *common)
    assert again["edges"] == report["edges"]
    found = run_json(
        "circuit", "induction", "--model", folder, "--texts", "2", "--period", "5", "--exact", "0", "--edges", "2"
    )
    assert len(found["induction"]["heads"]) == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has 0 texts"),
        ("[1]", "line 1 is no JSON object"),
        ('{"prompt": 3, "answer": "a"}', "line 1: prompt is 3"),
        ('{"prompt": "a", "answer": "' + "b" * 600 + '"}', "1 to 500 characters"),
        ('{"prompt": "The bridge was", "answer": "sea", "answer": "sea"}', "is not JSON"),
    ],
)
def test_files_of_strangers_are_refused(tmp_path, content, said):
    (tmp_path / "texts.jsonl").write_text(content)
    result = run("circuit", "find", tmp_path / "texts.jsonl", code=1)
    assert said in " ".join(result.stderr.split())


def test_wrong_usage(folder, tmp_path):
    (tmp_path / "texts.tsv").write_text("question\tanswer\na\tb\n")
    assert "must name prompt and answer" in run("circuit", "find", tmp_path / "texts.tsv", code=1).stderr
    assert "is a .svg or a .png" in run("circuit", "induction", "--figure", "a.pdf", code=2).stderr
    (tmp_path / "texts.jsonl").write_text('{"prompt": "The bridge was near the", "answer": "sea"}')
    refused = run("circuit", "find", tmp_path / "texts.jsonl", "--model", folder, "--least", "1", code=1)
    assert "lower --least" in " ".join(refused.stderr.split())


def test_means_are_taken_of_texts_that_have_the_edge(texts):
    alignment = Alignment(texts)
    means = mean_outputs(doubled(), alignment)
    assert isinstance(means, Means)
    assert all(bool(part.isfinite().all()) for part in (*means.attention, *means.mlps))
