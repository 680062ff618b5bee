"""Whether a text can stand for a fact: what is asked, what is read, and how it is counted, each a second way."""

from __future__ import annotations

import gzip
import json
import math

import pytest
import torch
from command_line import _stand_in, run, run_json  # noqa: F401 (a fixture)
from tiny import save_tiny, tiny_model, tiny_tokenizer

from memory3 import Memory3, MemoryConfig
from memory3.errors import InputError
from memory3.interpret.asked import asked_of
from memory3.interpret.facts import Fact, Relation, read_facts
from memory3.interpret.imitable import (
    KNOWN,
    UNKNOWN,
    Tried,
    ask_closed,
    settings_for,
    summary,
    try_facts,
    try_relations,
    usable,
    written_by,
)
from memory3.interpret.rates import Rate, separation
from memory3.scoring import Score

RELATION = Relation(
    "built",
    ("[X] was built in [Y] .", "[Y] is when [X] was built.", "The year of [X] is [Y]."),
    (Fact("The bridge", "1874"), Fact("The old town", "1234"), Fact("The sea", "the river")),
)


@pytest.fixture(scope="module")
def m3():
    tokenizer = tiny_tokenizer(adds_bos=False)
    return Memory3(tiny_model(), tokenizer, settings_for(tokenizer, MemoryConfig(budget="all", memory_temperature=1.0)))


# ---- facts and their texts -----------------------------------------------------------------------------------------------


def test_patterns_become_prompts_and_texts():
    assert RELATION.asked == ("[X] was built in [Y] .", "The year of [X] is [Y].")
    fact = RELATION.facts[0]
    assert [RELATION.text(pattern, fact) for pattern in RELATION.patterns] == [
        "The bridge was built in 1874.",
        "1874 is when The bridge was built.",
        "The year of The bridge is 1874.",
    ]
    assert RELATION.prompt(RELATION.asked[0], fact) == "The bridge was built in"
    # What a fact is called is no pattern.
    assert RELATION.text("[X] is [Y]", Fact("[Y]", "[X]")) == "[Y] is [X]."
    assert not Relation("r", ("[X][Y]", "[Y] of [X]", "[X] and [Y] are twins"), ()).asked


def test_facts_of_a_file(tmp_path):
    records = [
        {"file": "data/P36.jsonl", "sub_label": "France", "obj_label": "Paris"},
        {"relation": "P36", "pattern": "The capital of [X] is [Y]."},
        {"relation": "P36", "subject": "France", "answer": "Paris"},  # once more
        {"relation": "P19", "subject": "Dickens", "answer": "Portsmouth"},
    ]
    (tmp_path / "facts.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    found = read_facts(tmp_path / "facts.jsonl.gz")
    assert found["P36"] == Relation("P36", ("The capital of [X] is [Y].",), (Fact("France", "Paris"),))
    assert usable(list(found.values())) == [found["P36"]]
    with pytest.raises(InputError, match="whose \\[Y\\] stands at its end"):
        usable([found["P19"]])
    assert asked_of(found["P36"])[1][0].prompt == "The capital of France is"
    assert asked_of(found["P19"], "[X] is from [Y].")[1][0].answer == " Portsmouth"
    for relation, pattern in ((found["P19"], None), (found["P36"], "[Y] is of [X]")):
        with pytest.raises(InputError, match="no pattern"):
            asked_of(relation, pattern)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"relation": "r", "pattern": "[X] is"}', "must have \\[X\\] and \\[Y\\] once each"),
        (b'{"relation": "r", "pattern": "[X] is [Y]"}', "no facts"),
        (b'{"relation": "r", "subject": "a", "answer": "b"}', "no patterns"),
        (b'{"relation": "r", "subject": 1, "answer": "b"}', "subject is 1"),
        (b'{"relation": "r", "subject": "a", "answer": "' + b"b" * 501 + b'"}', "1 to 500 characters"),
        (b'{"a": ' * 20_000, "nested too deeply|not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "no JSON object"),
    ],
)
def test_files_that_are_no_facts(tmp_path, content, said):
    (tmp_path / "facts.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_facts(tmp_path / "facts.jsonl")


def test_a_zipped_file_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("memory3.interpret.facts._MOST_LINES", 3)
    (tmp_path / "facts.jsonl.gz").write_bytes(gzip.compress(b"\n" * 1000))
    with pytest.raises(InputError, match="or 3 lines"):
        read_facts(tmp_path / "facts.jsonl.gz")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(InputError, match="cannot be read"):
        read_facts(tmp_path / "cut.jsonl.gz")
    with pytest.raises(InputError, match="cannot be read"):
        read_facts(tmp_path)


# ---- what is seen --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def least_likely(m3, front, prompt, answer):
    """The probability of the least likely token of an answer, by the model's own pass over one row."""
    ids = m3.prompts.ids
    head = [m3.tokenizer.bos_token_id, *ids(front)] if front else [m3.tokenizer.bos_token_id]
    asked, whole = ids(f" {prompt}"), ids(f" {prompt} {answer}")
    logits = m3.model(torch.tensor([head + whole])).logits[0]
    places = range(len(head) + len(asked) - 1, len(head) + len(whole) - 1)
    return min(float(torch.softmax(logits[at], -1)[token]) for at, token in zip(places, whole[len(asked) :], strict=True))


def test_what_is_seen_equals_the_models_own_pass(m3):
    tried = ask_closed(m3, RELATION, RELATION.facts)
    try_facts(m3, RELATION, tried, others=2, written={RELATION.facts[0]: "It is 1874 for sure."})
    for each in tried:
        prompt = RELATION.prompt(RELATION.asked[0], each.fact)
        assert least_likely(m3, "", prompt, each.fact.answer) == pytest.approx(each.found["none"], rel=1e-3)
        for name, text in each.texts.items():
            assert each.found[name] == pytest.approx(least_likely(m3, text, prompt, each.fact.answer), rel=1e-3)
        said = [RELATION.text(pattern, each.fact) for pattern in RELATION.patterns]
        assert each.texts["text, same pattern"] == said[0]
        assert {each.texts["other 0"], each.texts["other 1"]} == set(said[1:])
        assert each.texts["text, all patterns at once"].startswith(f"{said[0]} {each.texts['other 0']} ")
        assert each.fact.answer not in each.texts["text, another fact"]
        assert sorted(each.texts["text, shuffled"].split()) == sorted(each.texts["other 0"].split())
        together = each.found["text, all patterns at once"]
        others = each.found["other 0"], each.found["other 1"]
        assert each.found["text, every other pattern"] == min(others)
        assert each.found["text, some pattern"] == max(*others, together, each.found["text, same pattern"])
        assert math.exp(each.closed.least) == pytest.approx(each.found["none"])
    assert tried[0].texts["text, another model's"] == "It is 1874 for sure."
    assert "text, another model's" not in tried[1].found


@torch.no_grad()
def test_a_memory_is_the_text_at_a_distance(m3):
    """A memory of all pairs is read as the text in front of the prompt, whose positions begin a reference's length later."""
    tried = ask_closed(m3, RELATION, RELATION.facts[:1])
    try_facts(m3, RELATION, tried, others=1)
    text, prompt = "The bridge was built in 1874.", " The bridge was built in"
    ids = m3.prompts.ids
    front, asked, whole = [m3.tokenizer.bos_token_id, *ids(text)], ids(prompt), ids(f"{prompt} 1874")
    places = [*range(len(front)), *(1 + m3.config.reference_length + n for n in range(len(whole)))]
    tokens = torch.tensor([front + whole])
    # Without a mask, transformers may take a step in the positions for the start of another text.
    logits = m3.model(tokens, position_ids=torch.tensor([places]), attention_mask=torch.ones_like(tokens)).logits[0]
    rows = range(len(front) + len(asked) - 1, len(places) - 1)
    expected = min(float(torch.softmax(logits[at], -1)[token]) for at, token in zip(rows, whole[len(asked) :], strict=True))
    assert tried[0].found["memory, same pattern"] == pytest.approx(expected, rel=0.02)


def test_answers_that_merge_with_their_prompt_are_left_out(m3):
    class Gluing:
        """Prompts whose answer takes a token of the prompt."""

        def ids(self, text):
            return [5, 6] if text.endswith("1874") else [5, 7] if text.endswith("in") else [8]

    real, m3.prompts.ids = m3.prompts.ids, Gluing().ids
    try:
        assert ask_closed(m3, RELATION, RELATION.facts[:1]) == []
    finally:
        m3.prompts.ids = real


def test_another_models_text_must_say_the_answer(m3):
    facts = [Fact("The bridge", ""), Fact("The bridge", "no such answer at all")]
    found = written_by(m3, RELATION, facts)
    assert set(found) == {facts[0]}  # any text has nothing in it
    assert found[facts[0]].startswith("The year of The bridge is ")
    assert "\n" not in found[facts[0]]


def test_relations_are_tried_one_after_the_other(m3):
    seen = list(try_relations(m3, [RELATION, Relation("empty", (), ())], asked=2, tried=1, others=1))
    assert [len(mine) for mine in seen] == [2]
    assert sum(len(each.found) > 1 for each in seen[0]) == 1
    with pytest.raises(InputError, match=r"known is 0\.5: give a probability of more than 0\.5"):
        next(try_relations(m3, [RELATION], known=0.5))
    again = list(try_relations(m3, [RELATION], asked=2, tried=1, others=1))
    assert [each.found for each in again[0]] == [each.found for each in seen[0]]


def test_settings_keep_what_is_given_and_need_a_first_token():
    tokenizer = tiny_tokenizer()
    assert settings_for(tokenizer, MemoryConfig(memory_temperature=0.7)).memory_temperature == 0.7
    assert settings_for(tokenizer).prefix == "<bos>"
    tokenizer.bos_token = None
    assert settings_for(tokenizer).prefix == tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="no special token"):
        settings_for(tokenizer)


# ---- how it is counted ---------------------------------------------------------------------------------------------------


def test_wilsons_interval_by_its_formula():
    for hits, of in ((0, 7), (3, 11), (5, 5)):
        z, p = 1.959963984540054, hits / of
        middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
        expected = [(middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)]
        assert list(Rate(hits, of).interval) == pytest.approx(expected, abs=1e-9)


def test_separation_counts_pairs():
    found = separation([{"a": 3.0}, {"a": 1.0}], [{"a": 1.0}, {"a": 0.0}, {"a": 2.0}])
    # Of six pairs the first is larger in 3 and 1, and equal in one.
    assert found["a"] == {"failures": 2.0, "others": 1.0, "auroc": pytest.approx(4.5 / 6)}
    assert separation([], [{"a": 1.0}]) == {}


def test_a_summary_by_hand():
    def tried(relation, none, behind):
        found = {"none": none} | ({} if behind is None else {"text, every other pattern": behind, "other 0": behind})
        return Tried(
            relation, Fact("a bridge", "bridge"), Score(math.log(none), False, 2, math.log(none)), found, {"size": behind or 0}
        )

    facts = [tried("a", 0.2, 0.95), tried("a", 0.5, 0.4), tried("b", 0.1, 0.9), tried("b", 0.95, 0.1), tried("a", 0.7, 0.99)]
    facts += [tried("a", 0.3, None)]
    found = summary(facts)
    assert found["facts"] == {"asked": 6, "known": 1, "unknown": 4}
    assert (KNOWN, UNKNOWN) == (0.9, 0.5)
    rate = found["unknown"]["arms"]["text, every other pattern"]
    assert (rate["hits"], rate["of"], rate["median probability"]) == (2, 3, 0.9)
    assert found["unknown"]["relations"]["a"]["arms"]["text, every other pattern"]["of"] == 2
    assert found["known"]["arms"]["text, every other pattern"]["hits"] == 0
    told = found["unknown"]["what tells failures"]["text, every other pattern"]
    assert told["size"] == {"failures": 0.4, "others": pytest.approx(0.925), "auroc": 0.0}
    assert told["answer is in the subject"]["failures"] == 1
    json.dumps(found, allow_nan=False)
    # At a weaker threshold more facts are known. What is said is counted at both.
    weaker = summary(facts, 0.6)
    assert weaker["facts"] == {"asked": 6, "known": 2, "unknown": 4}
    assert weaker["thresholds"] == {"says it": 0.9, "known": 0.6, "unknown": 0.5}
    rate = weaker["known"]["arms"]["none"]
    assert (rate["hits"], rate["as if known"]["hits"], rate["of"]) == (1, 2, 2)
    assert weaker["unknown"]["arms"]["text, every other pattern"]["as if known"]["hits"] == 2


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    folder = save_tiny(tmp_path / "model")
    records = [{"relation": "built", "pattern": pattern} for pattern in RELATION.patterns]
    records += [{"relation": "built", "subject": fact.subject, "answer": fact.answer} for fact in RELATION.facts]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, records)))
    facts = tmp_path / "facts.jsonl"
    common = ["--model", folder, "--tried", "2"]
    found = run_json("circuit", "imitable", facts, *common, "--other-model", folder, "--out", "claim.json")
    assert (found["facts"]["asked"], found["unknown"]["facts"]) == (3, 2)
    assert found["memory"]["beginning"] == "<bos>"
    assert json.loads((tmp_path / "claim.json").read_text()) == found
    shown = run("circuit", "imitable", facts, *common, "--relations", "built").stdout
    assert "P >= 0.6" not in shown
    assert "P >= 0.6" in run("circuit", "imitable", facts, *common, "--known", "0.6").stdout
    assert "3 facts asked: 0 known, 3 not known" in shown
    assert "'P1': it has built" in run("circuit", "imitable", facts, "--relations", "P1", code=2).stderr
