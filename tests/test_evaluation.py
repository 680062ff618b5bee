"""Evaluation: every shortcut against the long way round, on tiny random models; folders of results against crashes."""

import json
import math
import random
import re

import numpy as np
import pytest
import torch
from bank_writer import HashingEmbedder
from small_questions import QUESTIONS, TEXTS
from tiny import tiny_chat_tokenizer, tiny_model, tiny_tokenizer

from memory3.bank import Bank
from memory3.config import MemoryConfig
from memory3.errors import ConfigError, InputError
from memory3.evaluation.batching import Batcher
from memory3.evaluation.causes import causes
from memory3.evaluation.folder import ResultsFolder, settings_key
from memory3.evaluation.generation import generate_rows
from memory3.evaluation.guard import Guard
from memory3.evaluation.intervals import aggregate_interval, interval
from memory3.evaluation.lookup import Lookup
from memory3.evaluation.metrics import auroc, contains, exact_match, f1
from memory3.evaluation.modes import parse_modes
from memory3.evaluation.plots import plots
from memory3.evaluation.qa import AbstainTask, QaTask
from memory3.evaluation.report import read_results, write_report
from memory3.evaluation.runner import EvaluationPlan, run_task
from memory3.evaluation.task import Item
from memory3.llm import Memory3
from memory3.types import Document
from research.report import write_summary


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chat"])
def m3(request):
    # Without an end of text, so that random weights do not end answers at once.
    model = tiny_model()
    model.generation_config.eos_token_id = None
    return Memory3(
        model, tiny_chat_tokenizer() if request.param else tiny_tokenizer(), MemoryConfig(references_per_chunk=2), name="tiny"
    )


@pytest.fixture(scope="module")
def bank(m3, tmp_path_factory):
    with Bank.open(tmp_path_factory.mktemp("banks") / "bank", m3, embedder=HashingEmbedder()) as bank:
        bank.write(Document(name, text) for name, text in TEXTS.items())
        yield bank


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "wiki"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return folder


NAMES = [["bridge#0", "sea#0"], ["river#0"], []]
CHOICES = [["the engineer", "a", "nobody at all"], ["in the mountains", "the sea"], ["keys"]]


# ---- likelihoods and answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["memory", "text", "none"])
def test_choices_behind_one_prompt_are_those_of_rows_of_their_own(m3, bank, read):
    asked = [q["question"] for q in QUESTIONS[:3]]
    rows = [m3.prompts.row(m3.prompts.ids(q), read, names, bank) for q, names in zip(asked, NAMES, strict=True)]
    ids = [[m3.prompts.ids(choice) for choice in choices] for choices in CHOICES]
    found = m3.scorer.score(rows, ids, bank)
    for question, names, choices, got in zip(asked, NAMES, CHOICES, found, strict=True):
        mode = read if names else "none"
        wanted = m3.log_likelihood([question] * len(choices), choices, bank, mode=mode, references=[names] * len(choices))
        assert [g.total for g in got] == pytest.approx([total for total, _ in wanted], abs=1e-3)
        assert [g.tokens for g in got] == [count for _, count in wanted]


@pytest.mark.parametrize("read", ["memory", "text", "none"])
@pytest.mark.parametrize("style", ["chat", "plain"])
def test_answers_and_the_wanted_answer_from_one_reading(m3, bank, read, style):
    """In a batch, with prompts of different lengths; against `generate` alone and a likelihood alone."""
    asked = [q["question"] for q in QUESTIONS[:3]]
    rows = [m3.prompts.row(m3.prompts.ids(q), read, names, bank, style=style) for q, names in zip(asked, NAMES, strict=True)]
    wanted = [m3.prompts.ids(choices[0]) for choices in CHOICES]
    together = generate_rows(m3, bank, rows, max_new_tokens=7, wanted=wanted)
    for row, ids, got, question, names in zip(rows, wanted, together, asked, NAMES, strict=True):
        alone = generate_rows(m3, bank, [row], max_new_tokens=7)[0]
        assert got.token_ids == alone.token_ids
        assert got.wanted.total == pytest.approx(m3.scorer.score([row], [[ids]], bank)[0][0].total, abs=1e-3)
        assert (got.attention is None) == (not row.references)
        if style == "chat":
            answer = m3.generate(question, bank, mode=read if names else "none", references=names or None, max_new_tokens=7)
            assert got.token_ids == answer.token_ids


def test_greedy_is_what_the_model_writes(m3, bank):
    row = m3.prompts.row(m3.prompts.ids("Who built it?"), "memory", ["bridge#0"], bank)
    written = generate_rows(m3, bank, [row], max_new_tokens=5)[0].token_ids
    other = [*written[:-1], (written[-1] + 1) % 300]
    first, second = m3.scorer.score([row], [[written, other]], bank)[0]
    assert first.greedy
    assert not second.greedy


def test_stop_texts_end_an_answer(m3, bank):
    row = m3.prompts.row(m3.prompts.ids("Who built it?"), "none", [], bank)
    whole = generate_rows(m3, bank, [row], max_new_tokens=23)[0]
    full = m3.tokenizer.decode(whole.token_ids)
    stop = full[len(full) // 2 : len(full) // 2 + 2]
    cut = generate_rows(m3, bank, [row], max_new_tokens=23, stop=[stop])[0]
    assert cut.text == full[: full.index(stop)].strip()
    assert len(cut.token_ids) < len(whole.token_ids)


def test_attention_is_that_of_the_attention_maps(m3, bank):
    """The share of attention on memories, against the softmax of all logits written out for every layer, head and token."""
    row = m3.prompts.row(m3.prompts.ids("Who built it?"), "memory", ["bridge#0", "sea#0"], bank)
    from memory3.attention import reading

    seen, real = [], reading.attend

    def weights(query, keys, memory_keys, memory_bias, owner, bias, causal, scale):
        group = query.shape[1] // keys.shape[1]
        every = torch.cat([memory_keys, keys], 2).repeat_interleave(group, 1)
        scores = query @ every.transpose(-1, -2) * scale
        padding = torch.zeros(memory_keys.shape[:3]) if memory_bias is None else memory_bias[:, :, 0]
        scores[..., : memory_keys.shape[2]] += padding.repeat_interleave(group, 1)[:, :, None]
        if bias is not None:
            scores[..., memory_keys.shape[2] :] += bias
        if causal:
            blocked = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool).triu(1)
            scores[..., memory_keys.shape[2] :].masked_fill_(blocked, -torch.inf)
        share = torch.softmax(scores, -1)[..., : memory_keys.shape[2]]
        return (share * (owner >= 0).repeat_interleave(group, 1)[:, :, None]).sum(-1)  # [1, A, T]

    def watched(query, key, value, bias, memory, tokens=None, *, causal=False, scale):
        seen.append(weights(query, key, memory.keys, memory.bias, memory.owner, bias, causal, scale)[0, :, -1])
        return real(query, key, value, bias, memory, tokens, causal=causal, scale=scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "attend", watched)
        patch.setattr(reading.GrowingLayer, "holds", lambda self, key: False)  # decode by `attend`, too
        got = generate_rows(m3, bank, [row], max_new_tokens=3)[0]
    # The prompt's last token, and each answer token that was read again.
    assert got.attention == pytest.approx(float(torch.stack(seen).mean()), abs=1e-4)
    assert 0.01 < got.attention < 0.99


# ---- metrics and intervals -----------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    assert exact_match("The engineer.", ["engineer", "x"]) == 1.0
    assert exact_match("the engineer did", ["engineer"]) == 0.0
    assert contains("It was the engineer, I think", ["Engineer"]) == 1.0
    assert contains("engineering", ["engineer"]) == 0.0
    assert f1("red green", ["green blue blue"]) == pytest.approx(2 * 1 / 5)
    assert auroc([3, 2], [1, 2, 0]) == pytest.approx((3 + 2.5) / 6)
    assert math.isnan(auroc([], [1.0]))


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 7, 23), rng.integers(0, 5, 11)
    pairs = [(a > b) + (a == b) / 2 for a in high for b in low]
    assert auroc(high, low) == pytest.approx(np.mean(pairs))


def test_intervals_cover_and_agree():
    rng = np.random.default_rng(1)
    values = rng.normal(0.3, 1.0, 211)
    low, high = interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert interval(values) == [low, high]
    assert aggregate_interval(list(values), lambda some: float(np.mean(some))) == pytest.approx([low, high], abs=0.05)


# ---- modes, guard, lookup ------------------------------------------------------------------------------------------------


def test_modes():
    assert [str(m) for m in parse_modes(["memory", " text:7 ", "none", "gold", "memory:5"], 5)] == [
        "memory:5",
        "text:7",
        "none",
        "gold",
    ]
    for wrong in ("memories", "text:0", "none:3", "gold:2", "text:x"):
        with pytest.raises(ConfigError, match=wrong):
            parse_modes([wrong], 5)
    with pytest.raises(ConfigError, match="no mode"):
        parse_modes([""], 5)


def test_guard_thresholds():
    question, reference = [1, 2, 3, 4], [9, 1, 2, 3, 9, 9]
    assert [Guard.parse(t).drops(question, reference) for t in ("none", "2/3", "0.4", "50%")] == [False, False, True, False]
    assert Guard.parse("2/3", "question").drops(question, reference)  # 3 of 4
    assert Guard.parse("80%", "either").drops([1, 2, 3], [1, 2, 3])
    for wrong in ("much", "1/0", "120%"):
        with pytest.raises(ConfigError):
            Guard.parse(wrong)
    with pytest.raises(ConfigError, match="'both' is unknown"):
        Guard(of="both")


@pytest.fixture
def task(data):
    return QaTask.load(data, "test", knowledge="wiki", max_new_tokens=5)


def found_by(m3, bank, task, mode, guard=None, seed=0):
    lookup = Lookup(m3, bank, task, k=2, seed=seed)
    return lookup, dict(
        zip((i.id for i in task.items), lookup.find(task.items, parse_modes([mode], 2)[0], guard or Guard(None)), strict=True)
    )


def test_lookup_of_each_mode(m3, bank, task):
    searched = bank.search([item.query for item in task.items], 2)
    lookup, memory = found_by(m3, bank, task, "memory")
    assert [memory[i.id].references for i in task.items] == [[h.reference_id for h in hits] for hits in searched]
    right = {q["id"]: f"{q['references'][0]}#0" for q in QUESTIONS}
    assert {name: found.references for name, found in found_by(m3, bank, task, "gold")[1].items()} == {
        n: [r] for n, r in right.items()
    }
    for mode in ("random", "other", "absent"):
        mine = found_by(m3, bank, task, mode)[1]
        assert all(right[name] not in found.references for name, found in mine.items()), mode
        assert all(len(found.references) > 0 for found in mine.values()), mode
    assert found_by(m3, bank, task, "random")[1] == found_by(m3, bank, task, "random")[1]
    assert found_by(m3, bank, task, "random")[1] != found_by(m3, bank, task, "random", seed=1)[1]
    hits = [right[item.id] in memory[item.id].references for item in task.items]
    assert lookup.recall_at(task.items, 2) == pytest.approx(np.mean(hits))


def test_controls_do_not_depend_on_the_limit(m3, bank, task):
    lookup, whole = found_by(m3, bank, task, "other")
    assert [f.references for f in lookup.find(task.items[2:3], parse_modes(["other"], 2)[0], Guard(None))] == [
        whole["q3"].references
    ]


def test_the_guard_drops_and_counts(m3, bank, task):
    task.items = [Item("copy", TEXTS["river"]), *task.items]
    lookup, found = found_by(m3, bank, task, "memory", Guard(2 / 3))
    assert found["copy"].dropped == 1
    assert "river#0" not in found["copy"].references
    drops = lookup.overlapping(task.items, 2, [Guard(None), Guard(0.8), Guard(2 / 3)])
    assert drops[0] == (0, 0)
    assert drops[1] == (1, 1)
    assert drops[2][0] >= drops[1][0]


# ---- folders of results --------------------------------------------------------------------------------------------------


def test_a_torn_batch_is_cut_off(tmp_path):
    key = settings_key({"a": 1})
    with ResultsFolder(tmp_path) as folder:
        folder.append(key, [{"id": "1", "x": "line\u2028separator"}, {"id": "2", "x": float("nan")}])
        folder.append(key, [{"id": "3", "x": 5}])
    file = tmp_path / "items.jsonl"
    whole = file.read_bytes()
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        with ResultsFolder(tmp_path) as folder:
            lines = whole[:cut].count(b"\n")
            assert sorted(folder.rows(key)) == ["1", "2", "3"][:lines]
            folder.append(key, [{"id": "new"}])
        with ResultsFolder(tmp_path) as folder:
            assert len(folder.rows(key)) == lines + 1


def test_other_settings_never_mix(tmp_path):
    with ResultsFolder(tmp_path) as folder:
        folder.append(settings_key({"k": 5}), [{"id": "1", "x": 1}])
        assert folder.rows(settings_key({"k": 3})) == {}
    with ResultsFolder(tmp_path / "second", [tmp_path]) as folder:
        assert folder.rows(settings_key({"k": 5})) == {"1": {"id": "1", "x": 1}}
    with pytest.raises(InputError, match="nothing to reuse"):
        ResultsFolder(tmp_path / "third", [tmp_path / "second"])
    with ResultsFolder(tmp_path) as folder, pytest.raises(ConfigError, match="another evaluation"), ResultsFolder(tmp_path):
        pass
    (tmp_path / "items.jsonl").write_text("no json\n")
    with pytest.raises(InputError, match="line 1"), ResultsFolder(tmp_path):
        pass


def test_batches_shrink():
    items, sizes = list(range(200)), []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 11:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
        return batch

    seen = [
        item for batch, result in Batcher().run(items, work, lambda item: 1 + item % 7) for item in result if batch == result
    ]
    assert [1 + item % 7 for item in seen] == sorted((1 + item % 7 for item in seen), reverse=True)
    assert sorted(seen) == items
    assert sizes[:3] == [32, 16, 8]
    assert set(sizes[2:]) == {8}

    def broken(batch):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="else"):
        list(Batcher().run(items, broken, lambda item: 1))


# ---- the whole -----------------------------------------------------------------------------------------------------------

MODES = "memory,text,none,random,other,gold,gold_text"


def test_run_resume_and_report(m3, bank, task, tmp_path):
    plan = EvaluationPlan(parse_modes(MODES.split(","), 2), limit=5, seed=3, batch_size=4)
    calls = []
    answer = task.answer
    task.answer = lambda *a: calls.append(len(a[3])) or answer(*a)

    class Interrupted(Exception):
        pass

    def stop(text, done, total):
        if text.endswith("text:2") and done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted), ResultsFolder(tmp_path / "out") as folder:
        run_task(task, m3, bank, plan, folder, stop)
    first = sum(calls)
    with ResultsFolder(tmp_path / "out") as folder:
        summary = run_task(task, m3, bank, plan, folder)
    assert first == 5 + 4
    assert sum(calls) == 5 * 7  # nothing twice
    with ResultsFolder(tmp_path / "whole") as folder:
        straight = run_task(task, m3, bank, plan, folder)

    def figures(found):
        return {mode: {n: m["value"] for n, m in f["metrics"].items()} for mode, f in found["modes"].items()}

    for mode, wanted in figures(straight).items():
        assert figures(summary)[mode] == pytest.approx(wanted, abs=1e-3), mode
    assert summary["count"] == 5
    assert summary["retrieval_recall"]["2"] is not None

    results = {
        "suite": "qa",
        "model": "tiny",
        "seed": 3,
        "limit": 5,
        "finished": "now",
        "modes": list(summary["modes"]),
        "tasks": {task.name: summary},
        "machine": {"versions": {"memory3": "0"}, "commit": "", "cores": 2, "device": "cpu"},
    }
    out = tmp_path / "out"
    (out / "results.json").write_text(json.dumps(results))
    write_report(out, results)
    text = (out / "report.md").read_text()
    for mode in summary["modes"]:
        assert f"| {mode} |" in text
    nll = summary["modes"]["none"]["metrics"]["nll"]
    assert f"{nll['value']:.2f} [{nll['interval'][0]:.2f}, {nll['interval'][1]:.2f}]" in text
    wrong = summary["causes"][0]["memory_wrong"]
    assert wrong["all"] == sum(wrong.values()) - wrong["all"] == round(5 * (1 - figures(summary)["memory:2"]["contains"]))
    assert f"| all | {wrong['all']} (" in text
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 1 == len(plots(results)[task.name])
    assert re.search(r"<td>gold_text</td>", page)
    write_summary(tmp_path / "docs" / "results.md", [read_results(out)])
    assert re.match(r"# Results\n\n.*\n\n## qa: tiny", (tmp_path / "docs" / "results.md").read_text(), re.DOTALL)
    with pytest.raises(InputError, match=r"no readable results\.json"):
        read_results(tmp_path)


def test_more_items_add_to_what_is_there(m3, bank, task, tmp_path):
    calls = []
    answer = task.answer
    task.answer = lambda *a: calls.extend(i.id for i in a[3]) or answer(*a)
    for limit in (2, 5, None):
        with ResultsFolder(tmp_path / "out") as folder:
            summary = run_task(task, m3, bank, EvaluationPlan(parse_modes(["none"], 2), limit=limit), folder)
        assert summary["count"] == (limit or 7)
    assert sorted(calls) == [q["id"] for q in QUESTIONS]


class Scripted(QaTask):
    """Scores made up by mode, to see what the sums make of them."""

    def answer(self, m3, bank, mode, items, references):
        good = {"memory": 0.9, "none": 0.1, "random": self.random, "other": 0.1, "text": 0.5}[mode.kind]
        score = [float(random.Random(f"{mode.name} {item.id}").random() < good) for item in items]
        return [{"metrics": {"exact": s, "contains": s, "f1": s, "nll": -s}} for s in score]


@pytest.mark.parametrize(("random_score", "flagged"), [(0.1, False), (0.9, True)])
def test_a_gain_that_random_memories_give_is_flagged(m3, bank, data, tmp_path, random_score, flagged):
    task = Scripted.load(data, "test", knowledge="wiki")
    task.random = random_score
    task.items = [Item(str(n), "Who?", ("bridge",), ["x"]) for n in range(101)]
    with ResultsFolder(tmp_path / "out") as folder:
        summary = run_task(
            task, m3, bank, EvaluationPlan(parse_modes(["memory", "text", "none", "random", "other"], 2)), folder
        )
    assert {(f["metric"], f["control"]) for f in summary["flags"]} == (
        {(m, "random:2") for m in task.metrics} if flagged else set()
    )
    difference = next(
        d for d in summary["differences"] if (d["mode"], d["against"], d["metric"]) == ("memory:2", "text:2", "nll")
    )
    assert difference["interval"][1] < 0 < summary["modes"]["memory:2"]["metrics"]["f1"]["interval"][0]


def test_causes_of_wrong_answers_by_hand():
    def rows(*right, references=()):
        some = references or [["r"]] * len(right)
        return [
            {"item": str(n), "references": each, "metrics": {"contains": float(ok)}}
            for n, (ok, each) in enumerate(zip(right, some, strict=True))
        ]

    read = [["r", "x"], ["r"], ["x"], ["x", "r"], ["r", "x"], ["r", "y"], ["y"]]
    found = causes(
        {
            "memory:2": rows(1, 0, 0, 0, 1, 0, 1, references=read),
            "text:2": rows(1, 1, 1, 0, 0, 0, 0, references=read),
            "gold": rows(1, 0, 1, 1, 1, 1, 1),
            "gold_text": rows(1, 1, 1, 0, 1, 1, 0),
        },
        {str(n): ["r", "z"] for n in range(7)},
    )
    assert found == [
        {
            "memory": "memory:2",
            "text": "text:2",
            "count": 7,
            "memory_wrong": {"all": 4, "not_read": 1, "alone": 1, "several": 2},
            "text_wrong": {"all": 4, "not_read": 1, "alone": 1, "several": 2},
            "lost": {"all": 2, "not_read": 1, "alone": 1, "several": 0},
            "won": {"all": 2, "not_read": 1, "alone": 0, "several": 1},
        }
    ]
    assert causes({"memory:2": rows(1), "text:2": rows(0)}, {}) == []


def test_abstain(m3, bank, data, tmp_path):
    task = AbstainTask.load(data, "test", knowledge="wiki", max_new_tokens=5)
    rows = {}
    summed = task.summary
    task.summary = lambda found: rows.update({m: {r["item"]: r for r in some} for m, some in found.items()}) or summed(found)
    with ResultsFolder(tmp_path / "out") as folder:
        summary = run_task(task, m3, bank, EvaluationPlan(parse_modes(["memory", "absent"], 2)), folder)
    right = {q["id"]: f"{q['references'][0]}#0" for q in QUESTIONS}
    assert not any(right[name] in row["references"] for name, row in rows["absent:2"].items())
    row = rows["memory:2"]["q1"]
    prompt = m3.prompts.row(m3.prompts.ids(QUESTIONS[0]["question"]), "none", [], bank)
    with_memory = m3.prompts.row(m3.prompts.ids(QUESTIONS[0]["question"]), "memory", row["references"], bank)
    said = generate_rows(m3, bank, [with_memory], max_new_tokens=5)[0].token_ids
    likely = [m3.scorer.score([p], [[said]], bank)[0][0].total / len(said) for p in (with_memory, prompt)]
    assert row["metrics"]["gain"] == pytest.approx(likely[0] - likely[1], abs=1e-3)
    areas = summary["auroc"]
    assert set(areas) == {"attention", "gain", "likelihood", "cosine"}
    scores = [[r["metrics"]["gain"] for r in rows[mode].values()] for mode in ("memory:2", "absent:2")]
    assert areas["gain"]["auroc"] == pytest.approx(auroc(*scores))
    assert areas["cosine"]["auroc"] > 0.5  # words of the right paragraph are in the question
