"""`memory3 check`: parity, budgets, packing and speed on a user's own documents, and the verdict."""

from __future__ import annotations

import inspect
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from command_line import error, run, run_json
from families import family

import memory3.models.geometry
import memory3.proof
from memory3.bank.codebooks import new_codec
from memory3.calibration import codec as codec_calibration
from memory3.calibration.codec import calibrate
from memory3.checking.check import check, check_refused
from memory3.checking.pages import html_page, sections
from memory3.checking.questions import Item, items_of, sampled
from memory3.checking.reading import MOST, allowed, grain, measure_parity, share
from memory3.checking.selection import (
    ALL,
    NONE,
    PACKED,
    PACKED_TWO,
    TEXT,
    TEXT_TWO,
    Outcome,
    arms_of,
    kept_share,
    measure,
    summed_up,
)
from memory3.checking.verdict import DONT, MORE, USE, judge
from memory3.codec import RawCodec
from memory3.config import Budget, MemoryConfig
from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.parity import ParityText, from_memories, from_text
from memory3.recall.held import Held
from memory3.types import Document

#: Angles of another kind beyond 210 positions: what attaching looks at is shorter, and a reference with its question is not.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 7,
    "long_factor": [4.0] * 7,
    "original_max_position_embeddings": 210,
    "factor": 2.0,
}
SMALL: dict[str, Any] = {"reference_length": 48, "memory_temperature": 1.0, "dtype": "float32"}


def nothing(done: int, total: int) -> None:
    """Nobody is told."""


def towns(number: int) -> list[Document]:
    names = ["Arbon", "Bremen", "Colmar", "Dijon", "Erfurt", "Fulda", "Gera", "Husum", "Ilmenau", "Jena", "Kassel"]
    return [
        Document(
            f"town{n}",
            f"The bridge over the river was built by the engineer {names[n % 11]} in {1700 + 7 * n}. "
            f"It stands near the old town of {names[(n + 3) % 11]} and {n} boats pass it.",
        )
        for n in range(number)
    ]


def attach(model: Any = None, **settings: Any) -> Memory3:
    return Memory3(model or tiny.tiny_model(), tiny.tiny_chat_tokenizer(), MemoryConfig(**(SMALL | settings)), name="tiny")


def asked(m3: Memory3, number: int = 13) -> list[Item]:
    return items_of(sampled(m3, towns(31), number), number)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory3.proof, "_PROVEN", {})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "texts"
    made.mkdir()
    for document in towns(31):
        (made / f"{document.id}.txt").write_text(document.text)
    return made


# ---- questions -----------------------------------------------------------------------------------------------------------


def test_questions_are_of_different_references_and_answered_by_them() -> None:
    m3 = attach()
    items = asked(m3)
    assert len({item.reference.id for item in items}) == len(items) == 13
    assert all(item.answer in item.reference.text and item.answer not in item.question for item in items)
    assert asked(m3) == items
    twice = [*sampled(m3, towns(31), 13)] * 2
    assert len(items_of(twice, 1000)) == len(items_of(twice[: len(twice) // 2], 1000))  # a copy asks nothing new
    with pytest.raises(InputError, match="these documents give 0 questions, 12 are needed"):
        items_of(sampled(m3, [Document("d", "no names here. " * 50)], 13), 13)


# ---- parity --------------------------------------------------------------------------------------------------------------


def test_shares_the_slow_way() -> None:
    generator = torch.Generator().manual_seed(3)
    found, expected = (torch.randn(3, 7, generator=generator) for _ in range(2))
    spreads = []
    for row in expected.tolist():
        mean = sum(row) / 7
        spreads.append(math.sqrt(sum((x - mean) ** 2 for x in row) / 7))
    for n, given in enumerate(share(found, expected).tolist()):
        square = sum((a - b) ** 2 for a, b in zip(found[n].tolist(), expected[n].tolist(), strict=True)) / 7
        assert given == pytest.approx(math.sqrt(square) / (sum(spreads) / 3), rel=1e-5)


def test_what_rounding_may_be() -> None:
    """float32 has 24 bits, bfloat16 8; angles are float32 in both."""
    assert grain(torch.float32, 6, 100) == pytest.approx(2**-24 * 6 + 2**-24 * 100)
    assert grain(torch.bfloat16, 6, 100) == pytest.approx(2**-8 * 6 + 2**-24 * 100)
    assert allowed(1e-6, 1e-5) == 4e-5
    assert allowed(1e-4, 1e-5) == 4e-4
    assert allowed(1.0, 1e-5) == MOST


@pytest.mark.parametrize(("best", "second"), [(2, 3), (11, 5), (7, 7), (5, 11)])
def test_two_references_of_any_length_are_read_as_text_is(best: int, second: int) -> None:
    m3 = attach()
    ids = [(7 * n + 11) % 300 for n in range(best + second + 11)]
    text = ParityText(m3.frame.prefix, ids[:best], ids[best : best + second], ids[best + second :])
    longer, short, alone = from_memories(
        m3.model, m3.geometry, m3.tokenizer, text, [text.rows, [(text.question, ("best", "second"))]]
    )
    both, single = from_text(m3.model, m3.geometry, text)
    assert (longer.shape, short.shape) == (both.shape, single.shape)
    for found, expected in ((longer, both), (short, single), (alone, both)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    swapped = ParityText(text.prefix, text.second, text.best, text.question)
    assert (from_text(m3.model, m3.geometry, swapped)[0] - both).abs().max() > 0.01


@pytest.mark.parametrize(("kind", "dtype", "most"), [("llama", "float32", 1e-4), ("qwen3", "float32", 1e-4)])
def test_a_sound_model_is_within_round_off(kind: str, dtype: str, most: float) -> None:
    m3 = attach(tiny.tiny_model(kind))
    told: list[tuple[int, int]] = []
    found = measure_parity(m3, asked(m3)[:6], lambda *step: told.append(step))
    assert found["ok"]
    assert found["allowed"] < most
    assert max(each["difference"] for each in found["compared"].values()) < 1e-5
    assert all(each["same"] == 1 for each in found["compared"].values())
    assert (found["texts"], told) == (3, [(1, 3), (2, 3), (3, 3)])


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.bfloat16, 0.02, 0.2), (torch.float16, 0.002, 0.02)])
def test_a_coarse_format_is_held_to_its_own_grain(dtype: torch.dtype, low: float, high: float) -> None:
    m3 = attach(tiny.tiny_model().to(dtype))
    found = measure_parity(m3, asked(m3)[:6], nothing)
    assert found["ok"]
    assert low < found["allowed"] < high
    assert max(each["difference"] for each in found["compared"].values()) > 1e-4  # or it was no such format


def test_keys_turned_by_wrong_angles_are_found() -> None:
    m3 = attach()
    m3.geometry.angles = tuple(angles * 1.01 for angles in m3.geometry.angles)
    found = measure_parity(m3, asked(m3)[:6], nothing)
    assert not found["ok"]
    # One reference lies where it was written, the second is moved: only there do angles matter.
    assert found["compared"]["two"]["difference"] > 10 * found["allowed"]


# ---- what memories are worth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"biases": True, "codec": "raw"}, {"selector": "attention", "layers": "1:4"}])
def test_one_pass_spends_every_budget_as_a_pass_of_its_own(settings: dict[str, Any]) -> None:
    m3 = attach(**settings)
    references = [item.reference for item in asked(m3)[:5]]
    budgets = [Budget.parse(text) for text in ("adaptive:1/8", "uniform:3", "adaptive:0.5", "all")]
    for budget, found in zip(budgets, m3.encoder.encode_at(references, budgets), strict=True):
        expected = attach(m3.model, **settings, budget=budget).encode(references)
        for one, other in zip(found, expected, strict=True):
            assert (one.counts == other.counts).all()
            assert (one.positions == other.positions).all()
            torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-4)
            assert one.provenance == other.provenance
            if one.biases is not None and other.biases is not None:
                torch.testing.assert_close(one.biases, other.biases, rtol=1e-3, atol=1e-3)


def test_every_arm_the_slow_way() -> None:
    """Question by question, each budget in a model of its own, read by a recall."""
    m3 = attach(budget=Budget("uniform", 5))
    m3.batch_size = 5
    items, arms = asked(m3), arms_of(m3)
    assert [arm.name for arm in arms] == [NONE, TEXT, "uniform:5", "1/8", "1/4", "1/2", ALL, PACKED, TEXT_TWO, PACKED_TWO]
    found = measure(m3, items, arms, RawCodec(m3.shape), nothing)
    assert len(found.encoding) == len(found.packing) == 3
    order = sorted(range(13), key=lambda n: len(items[n].reference.token_ids), reverse=True)
    for arm in arms:
        own = attach(m3.model, budget=arm.budget or Budget("all"))
        for n, item in enumerate(items[:7]):
            read = [item.reference]
            if arm.two:  # batches of five, the longest first: the next one's, or behind the last the first one's
                batch = order[order.index(n) // 5 * 5 :][:5]
                read.append(items[batch[(batch.index(n) + 1) % len(batch)]].reference)
            held: Any = Held({one.id: own.encode([one])[0] for one in read}, {one.id: one for one in read})
            mode = {NONE: "none", TEXT: "text", TEXT_TWO: "text"}.get(arm.name, "memory")
            options: dict[str, Any] = {} if arm.name == NONE else {"references": [[one.id for one in read]]}
            bank = None if arm.name == NONE else held
            [(total, tokens)] = own.log_likelihood([item.question], [item.answer], bank, mode=mode, **options)
            assert found.nll[arm.name][n] == pytest.approx(-total / tokens, rel=1e-3)
    answer = found.nll[TEXT]
    assert max(abs(a - b) for a, b in zip(answer, found.nll[NONE], strict=True)) > 0.01


def test_a_budget_of_as_many_pairs_is_another_where_it_spends_them_otherwise() -> None:
    """6 of 48 tokens in every head are an eighth of the pairs, and not the best eighth."""

    def names(budget: str) -> list[tuple[str, bool]]:
        return [(arm.name, arm.configured) for arm in arms_of(attach(budget=Budget.parse(budget)))][2:-3]

    tried = [("1/8", False), ("1/4", False), ("1/2", False), (ALL, False)]
    assert sorted(names("uniform:6")) == sorted([("uniform:6", True), *tried])
    assert names("adaptive:60") == [("1/8", True), *tried[1:]]
    assert names("uniform:48") == names("all") == [*tried[:-1], (ALL, True)]


def test_items_read_one_by_one_have_another_beside_too() -> None:
    m3 = attach(budget=Budget("all"))
    m3.batch_size = 1
    items, arms = asked(m3), [arm for arm in arms_of(m3) if arm.name in (ALL, PACKED, PACKED_TWO)]
    found = measure(m3, items, arms, RawCodec(m3.shape), nothing)
    own, other = items[12].reference, items[0].reference
    held: Any = Held(
        dict(zip((own.id, other.id), m3.encode([own, other]), strict=True)), {one.id: one for one in (own, other)}
    )
    [(total, tokens)] = m3.log_likelihood([items[12].question], [items[12].answer], held, references=[[own.id, other.id]])
    assert found.nll[PACKED_TWO][12] == pytest.approx(-total / tokens, rel=1e-3)
    assert found.nll[PACKED_TWO] != found.nll[PACKED]


def test_packing_is_measured_on_what_a_bank_would_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_calibration, "_FEWEST", 7)
    monkeypatch.setattr(codec_calibration, "_MOST", 11)
    m3 = attach(codec="int4")
    calibrate(m3, towns(31))
    codec = new_codec(m3, None)[0].with_vectors(m3.token_vectors)
    items, arms = asked(m3), arms_of(m3)
    found = measure(m3, items, arms, codec, nothing)
    figures = summed_up(m3, arms, found, codec, 0.1)
    assert figures["packing"]["bytes"] == codec.record_size < 0.3 * figures["packing"]["raw_bytes"]
    raw, packed = found.nll["1/8"], found.nll[PACKED]
    assert figures["packing"]["costs"]["mean"] == pytest.approx(sum(packed) / 13 - sum(raw) / 13)
    assert raw != packed
    item = items[2]
    [memory] = codec.decode([bytearray(codec.encode(m3.encode([item.reference])[0]))])
    held: Any = Held({item.reference.id: memory}, {item.reference.id: item.reference})
    [(total, tokens)] = m3.log_likelihood([item.question], [item.answer], held, references=[[item.reference.id]])
    assert packed[2] == pytest.approx(-total / tokens, rel=1e-3)


def outcome(**nll: float) -> Outcome:
    """Eleven questions whose figures differ, but not from arm to arm."""
    names = {"nothing": NONE, "text": TEXT, "eighth": "1/8", "quarter": "1/4", "half": "1/2", "all": ALL, "packed": PACKED}
    names |= {"text_two": TEXT_TWO, "packed_two": PACKED_TWO}
    nll = {"text_two": nll["text"], "packed_two": nll["packed"], **nll}
    each = {names[name]: [value + 0.1 * n for n in range(11)] for name, value in nll.items()}
    return Outcome(each, {name: [0.0] * 11 for name in each}, [0.2, 0.4, 0.3], [0.1], {})


SOUND = {"ok": True, "allowed": 1e-4, "compared": {"one": {"difference": 1e-6}}}


def judged(**nll: float) -> tuple[dict[str, Any], Any]:
    m3 = attach()
    figures = summed_up(m3, arms_of(m3), outcome(**nll), RawCodec(m3.shape), 0.1)
    return figures, judge(SOUND, figures)


def test_a_model_may_be_used() -> None:
    figures, verdict = judged(nothing=4, text=2, eighth=2.15, quarter=2.1, half=2.05, all=2.0, packed=2.2)
    assert (verdict.choice, verdict.ok, verdict.settings) == (USE, True, {})
    assert figures["margin_nats"] == pytest.approx(0.2)
    assert figures["recommended"] == figures["configured"] == "1/8"
    assert figures["writing"]["encoding_seconds"] == 0.3
    assert "gain 90% [" in verdict.sentence  # (4 - 2.19) / (4 - 2)


def test_a_model_may_be_used_with_more_bytes() -> None:
    figures, verdict = judged(nothing=4, text=2, eighth=2.5, quarter=2.3, half=2.15, all=2.0, packed=2.6)
    assert (verdict.choice, figures["recommended"]) == (MORE, "1/2")
    assert verdict.settings == {"budget": "adaptive:0.5"}
    assert "the smallest budget" in verdict.sentence
    assert "adaptive:0.5" in verdict.sentence
    # 5 layers x 2 heads x 48 tokens / 2 = 240 pairs of 2 x 14 float32
    assert next(arm for arm in figures["arms"] if arm["name"] == "1/2")["pairs"] == 240
    figures, _ = judged(nothing=4, text=2, eighth=2.1, quarter=2.3, half=2.1, all=2.0, packed=2.1)
    assert figures["recommended"] == "1/2"  # the eighth was lucky
    _, verdict = judged(nothing=4, text=2, eighth=2.1, quarter=2.1, half=2.1, all=2.0, packed=2.35)
    assert (verdict.choice, verdict.settings) == (MORE, {"codec": "raw"})
    assert "costs 0.25 nats [0.25, 0.25] more" in verdict.sentence


def test_a_model_may_not_be_used() -> None:
    _, verdict = judged(nothing=4, text=4.1, eighth=4, quarter=4, half=4, all=4, packed=4)
    assert verdict.choice == DONT
    assert "nothing to gain" in verdict.sentence
    _, verdict = judged(nothing=4, text=2, eighth=3, quarter=3, half=3, all=3, packed=3)
    assert verdict.choice == DONT
    assert "memories of all pairs gain only 50%" in verdict.sentence


def test_what_a_second_reference_costs_is_told() -> None:
    usable = {"nothing": 4.0, "text": 2.0, "eighth": 2.1, "quarter": 2.1, "half": 2.1, "all": 2.0, "packed": 2.1}
    figures, verdict = judged(**usable, text_two=2.3, packed_two=2.7)
    assert figures["second"]["text"]["mean"] == pytest.approx(0.3)
    assert figures["second"]["memory"]["mean"] == pytest.approx(0.6)
    assert figures["second"]["more"]["mean"] == pytest.approx(0.3)
    assert verdict.choice == USE
    assert "read the best alone" in verdict.sentence
    _, verdict = judged(**usable, text_two=2.3, packed_two=2.5)
    assert "read the best alone" not in verdict.sentence


def test_a_model_that_does_not_read_its_text_is_doubted() -> None:
    """A rotation that its config forgets, say: memory does as well as text, which is badly."""
    found = outcome(nothing=4, text=2, eighth=2, quarter=2, half=2, all=2, packed=2)
    m3 = attach()
    for right, doubted in (([1.0] + 10 * [0.0], True), ([1.0, 1.0] + 9 * [0.0], False)):
        found.right[TEXT] = right
        verdict = judge(SOUND, summed_up(m3, arms_of(m3), found, RawCodec(m3.shape), 0.1))
        assert verdict.choice == USE
        assert ("of them right from the text itself: is it loaded as it was trained?" in verdict.sentence) is doubted


def test_an_interval_that_reaches_over_the_margin_is_not_within_it() -> None:
    found = outcome(nothing=4, text=2, eighth=2, quarter=2, half=2, all=2, packed=2)
    found.nll["1/8"] = [value + (1 if n % 2 else -1) for n, value in enumerate(found.nll["1/8"])]
    m3 = attach()
    figures = summed_up(m3, arms_of(m3), found, RawCodec(m3.shape), 0.1)
    eighth = next(arm for arm in figures["arms"] if arm["name"] == "1/8")
    assert eighth["above_all"]["mean"] < figures["margin_nats"] < eighth["above_all"]["interval"][1]
    assert figures["recommended"] == "1/4"


def test_the_share_that_is_kept() -> None:
    assert kept_share([(4, 2, 3), (6, 5, 5)]) == pytest.approx((4 + 6 - 3 - 5) / (4 + 6 - 2 - 5))


# ---- the whole -----------------------------------------------------------------------------------------------------------


def test_all_of_it_is_told_and_plain_json() -> None:
    m3, told = attach(), []
    found = check(m3, sampled(m3, towns(31), 13), questions=13, progress=lambda done, what: told.append((done, what)))
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["speed"]["text"]["prompt_tokens"] > found["speed"]["none"]["prompt_tokens"]
    assert found["speed"]["memory"]["first_token"] > 0
    assert [section.title for section in sections(found)][1:] == ["Parity", "Selection", "Packing", "Speed"]


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], set(), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_runs_nothing_and_needs_no_other_file() -> None:
    name = "<script>alert('model')</script>\"><img src=x onerror=alert(1)>"
    m3 = attach()
    found = check(m3, sampled(m3, towns(31), 13), questions=13) | {"model": name}
    for page in (html_page(found), html_page(check_refused(name, f"{name} cannot be read"))):
        read = Tags(page)
        assert not {"script", "img", "link", "iframe", "object", "a"} & set(read.tags)
        assert read.attributes <= {"lang", "charset", "name", "content", "class"}
        assert "<script>alert('model')</script>" in read.text
        assert not re.search(r"https?://|url\(|@import", page)


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_a_rotation_that_memory_cannot_move_is_found_and_the_command_says_dont(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RoPE whose angles depend on the length of the text. It is refused by its name; here it goes by as if it were another,
    and attaching, whose texts are short, sees nothing.
    """
    path = tmp_path / "long"
    tiny.tiny_model(rope_parameters=LONG).save_pretrained(path)
    tiny.tiny_chat_tokenizer().save_pretrained(path)
    refused = run_json("check", "--model", path, "--data", folder, "--questions", 13, code=1)
    assert refused["verdict"]["choice"] == DONT
    assert "'longrope', whose angles change with the length of the text" in refused["verdict"]["sentence"]
    assert refused["parity"] is refused["selection"] is None
    monkeypatch.setattr(memory3.models.geometry, "STATIC_ROPE", (*memory3.models.geometry.STATIC_ROPE, "longrope"))
    page = tmp_path / "check.html"
    found = run_json("check", "--model", path, "--data", folder, "--questions", 13, "--html", page, code=1)
    assert found["verdict"]["choice"] == DONT
    assert "does not compute from memory what it computes from text" in found["verdict"]["sentence"]
    assert found["parity"]["compared"]["two"]["difference"] > 0.5
    assert found["selection"] is None
    assert "does not compute from memory" in Tags(page.read_text()).text
    shown = run("check", "--model", path, "--data", folder, "--questions", 13, code=1)
    assert "does not compute from memory" in " ".join(shown.stdout.split())


def test_a_model_that_attaching_refuses_gets_a_verdict(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "two-attentions"
    family("diffllama", {}).save_pretrained(path)
    tiny.tiny_tokenizer().save_pretrained(path)
    found = run_json("check", "--model", path, "--data", folder, code=1)
    assert found["verdict"]["ok"] is False
    assert "does not read from memories what it reads from the same text" in found["verdict"]["sentence"]


def test_a_bank_is_checked_with_its_own_texts_settings_and_codec(tiny_model_path: str, folder: Path) -> None:
    """A random model gains nothing from text, and that is its verdict."""
    run("write", folder, "--bank", "bank", "--model", tiny_model_path, "--budget", "uniform:7")
    found = run_json("check", "--bank", "bank", "--questions", 12, code=1)
    assert "nothing to gain" in found["verdict"]["sentence"]
    assert found["parity"]["ok"]
    assert found["selection"]["questions"] == 12
    assert found["selection"]["configured"] == "uniform:7"
    assert found["settings"]["budget"] == "uniform:7.0"
    shown = run("check", "--bank", "bank", "--questions", 12, code=1).stdout
    for word in ("Parity", "Selection", "Packing", "Speed", "writes it", "uniform:7", "tokens/s"):
        assert word in shown


def test_wrong_usage_is_told_before_a_model_is_loaded(tiny_model_path: str, folder: Path) -> None:
    assert "leave out either --bank or --data, --budget" in error(
        "check", "--bank", "bank", "--data", folder, "--budget", "all", code=2
    )
    assert "there is no folder" in error("check", "--html", "nowhere/check.html", code=2)
    (folder / "plain.md").write_text("no names here")
    said = error("check", "--model", tiny_model_path, "--data", folder / "plain.md")
    assert "these documents give 0 questions, 12 are needed" in said


def test_the_command_asks_as_much_as_the_function():
    """The command line says the numbers again, since it loads no torch to show its help."""
    from memory3.checking.check import MARGIN, QUESTIONS
    from memory3.cli.check import check as command

    defaults = inspect.signature(command).parameters
    assert (defaults["questions"].default, defaults["margin"].default) == (QUESTIONS, MARGIN)
