"""Verdicts of `memory3 check` are kept, and whoever writes memories that were never checked, or found wanting, is told."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
from bank_writer import HashingEmbedder
from command_line import app, run
from typer.testing import CliRunner

import memory3.proof
from memory3 import Bank, Budget, Memory3, MemoryConfig
from memory3.bank import trust
from memory3.bank.trust import advice, scope_of
from memory3.checking import choosing
from memory3.checking.check import check
from memory3.checking.choosing import choose, compared
from memory3.checking.verdict import DONT, MORE, USE
from memory3.errors import ModelError
from memory3.models.calibrated import own_calibrated
from memory3.models.chosen import keep_settings, settings_of
from memory3.models.verdicts import KeptVerdict, VerdictScope, find_verdict, has_verdicts, keep_verdict
from memory3.types import Document

SMALL: dict[str, Any] = {"reference_length": 48, "memory_temperature": 1.0, "dtype": "float32", "codec": "raw"}
NAMES = ("Arbon", "Bremen", "Colmar", "Dijon", "Erfurt", "Fulda", "Gera")
TOWNS = [
    Document(f"town{n}", f"The bridge of {NAMES[n % 7]} was built by {NAMES[(n + 3) % 7]} in {1700 + 7 * n}.")
    for n in range(29)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory3.proof, "_PROVEN", {})
    monkeypatch.setattr(trust, "_SAID", set())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "texts"
    made.mkdir()
    for document in TOWNS:
        (made / f"{document.id}.txt").write_text(document.text)
    return made


def attach(**settings: Any) -> Memory3:
    return Memory3(tiny.tiny_model(), tiny.tiny_chat_tokenizer(), MemoryConfig(**(SMALL | settings)), name="tiny")


def scope(m3: Memory3, codec: str = "raw") -> VerdictScope:
    found = scope_of(m3, codec, "")
    assert found is not None
    return found


def kept(of: VerdictScope, choice: str = USE, **settings: str) -> KeptVerdict:
    verdict = KeptVerdict(
        of, "tiny", "float32", "all", "first", choice, choice != DONT, f"Said: {choice}.", settings, 13, "2026-11-30", "0.1.0"
    )
    keep_verdict(verdict)
    return verdict


# ---- kept and found ------------------------------------------------------------------------------------------------------


def test_a_verdict_is_found_for_exactly_what_it_is_for() -> None:
    m3 = attach()
    of = scope(m3)
    assert find_verdict(of) is None
    assert not has_verdicts(of.model)
    verdict = kept(of)
    assert find_verdict(of) == verdict
    assert has_verdicts(of.model)
    changed = {"memories": attach(budget="uniform:3").fingerprint, "codec": "int8", "code_book": "2" * 32, "temperature": 0.9}
    for name, value in changed.items():
        assert find_verdict(dataclasses.replace(of, **{name: value})) is None
    assert find_verdict(scope(Memory3(tiny.tiny_model(seed=3), m3.tokenizer, m3.config))) is None


def test_the_check_keeps_its_verdict_for_every_number_format(tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    tiny.save_tiny(Path(path), chat=True)
    m3 = Memory3.from_pretrained(path, config=MemoryConfig(**SMALL))
    references = [reference for document in TOWNS for reference in m3.split(document)]
    found = check(m3, references, questions=13)
    verdict = find_verdict(scope(m3))
    assert verdict is not None
    assert found["scope"] == dataclasses.asdict(verdict.scope)
    assert (verdict.sentence, verdict.questions, verdict.dtype) == (found["verdict"]["sentence"], 13, "float32")
    coarse = Memory3.from_pretrained(path, config=MemoryConfig(**SMALL), dtype="bfloat16")
    assert find_verdict(scope(coarse)) == verdict


def test_a_verdict_that_cannot_be_kept_is_told_all_the_same(tmp_path: Path) -> None:
    m3 = attach()
    references = [reference for document in TOWNS for reference in m3.split(document)]
    own_calibrated().mkdir(parents=True, exist_ok=True)
    own_calibrated("verdicts").write_text("a file where a folder should be")
    found = check(m3, references, questions=12)
    assert found["verdict"]["choice"] == DONT
    assert "verdicts" in found["not_kept"]


def test_a_file_that_cannot_be_used_is_named() -> None:
    of = scope(attach())
    kept(of)
    (path,) = own_calibrated("verdicts", of.model).iterdir()
    whole = json.loads(path.read_text())
    other = {**whole, "scope": {**whole["scope"], "temperature": 0.5}}
    for broken in ({**whole, "kept": 2}, {**whole, "ok": "yes"}, {**whole, "settings": {"budget": 3}}, other, [], {"kept": 1}):
        path.write_text(json.dumps(broken))
        with pytest.raises(ModelError, match="delete it, or check the model anew"):
            find_verdict(of)
    path.write_text('{"kept": 1' + " " * (1 << 16))
    with pytest.raises(ModelError, match="has more than 65,536 bytes"):
        find_verdict(of)


# ---- told ----------------------------------------------------------------------------------------------------------------


def test_python_says_it_once_for_each_model_and_settings(caplog: pytest.LogCaptureFixture) -> None:
    m3 = attach()
    with caplog.at_level(logging.WARNING), Bank.open("bank", m3, embedder=HashingEmbedder()) as bank:
        bank.write(TOWNS[:2])
        bank.write(TOWNS[:3])
        (line,) = caplog.records
    assert line.getMessage() == (
        f"memories of tiny were never checked against its text: `memory3 check --bank {bank._store.path}` says whether they "
        "can be trusted"
    )
    kept(scope(m3))
    other = attach(budget="uniform:3")
    caplog.clear()
    with Bank.open("other", other, embedder=HashingEmbedder()) as bank:
        bank.write(TOWNS[:2])
    assert "were never checked with these settings and this codec" in caplog.text


@pytest.mark.parametrize(
    ("choice", "settings", "said"),
    [
        (USE, {}, None),
        (MORE, {"budget": "all"}, "Said: use with more bytes. A new bank with `--budget all` follows it."),
        (DONT, {}, "Said: don't use. They are written and read all the same."),
    ],
)
def test_what_was_found_is_told(choice: str, settings: dict[str, str], said: str | None) -> None:
    m3 = attach()
    kept(scope(m3), choice, **settings)
    with Bank.open("bank", m3, embedder=HashingEmbedder()) as bank:
        found = bank.advice()
        assert bank.advice() is None
    assert (found and found.text) == (said and f"memory3 check found of memories of tiny: {said}")
    assert found is None or found.refuted == (choice == DONT)


def test_the_remedy_for_a_bank_elsewhere_names_the_model() -> None:
    m3 = attach()
    with Bank.open("bank", m3, embedder=HashingEmbedder()) as bank:
        found = advice(m3, bank.manifest, "s3://bucket/bank")
    assert found is not None
    assert "`memory3 check --model tiny` says" in found.text


def test_the_command_says_it_of_new_banks_and_what_was_refuted_always(folder: Path, tiny_model_path: str) -> None:
    first = run("write", folder / "town1.txt", "--bank", "bank", "--model", tiny_model_path)
    assert "note: memories of" in first.stderr
    assert "were never checked against its text: `memory3 check --bank" in " ".join(first.stderr.split())
    assert "checked" not in run("write", folder / "town2.txt", "--bank", "bank").stderr
    kept(scope(Memory3.from_pretrained(tiny_model_path)), DONT)
    for number in (3, 4):
        trust._SAID.clear()  # another process
        said = " ".join(run("write", folder / f"town{number}.txt", "--bank", "bank").stderr.split())
        assert "warning: memory3 check found of memories of" in said
        assert "Said: don't use. They are written and read all the same." in said


# ---- settings that are chosen --------------------------------------------------------------------------------------------


def test_settings_are_kept_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    tiny.save_tiny(path)
    assert settings_of(str(path)) is None
    config = MemoryConfig(budget="uniform:3", reference_length=24, dtype="float32")
    keep_settings(str(path), config)
    monkeypatch.chdir(path.parent)
    assert settings_of("model") == config
    assert Memory3.from_pretrained("model").config == config
    (file,) = own_calibrated("settings").iterdir()
    file.write_text("{}")
    with pytest.raises(ModelError, match="delete it, or choose anew"):
        settings_of("model")


def test_only_what_is_surely_better_is_taken() -> None:
    first = [2 + 0.1 * (7 * n % 11) for n in range(11)]
    sure = [value - 0.2 for value in first]
    surer = [value - 0.3 - 0.01 * n for n, value in enumerate(first)]
    unsure = [value + (1.0 if n == 3 else -0.2) for n, value in enumerate(first)]  # better for ten of eleven, and not in sum
    lucky = [value - (5.0 if n == 3 else 0.0) for n, value in enumerate(first)]  # the best mean, by one question
    taken, steps = compared({1.0: first, 0.9: sure, 0.8: surer})
    assert (taken, [step["taken"] for step in steps]) == (0.8, [False, False, True])
    assert steps[1]["difference"] == pytest.approx(-0.2)
    assert steps[0]["interval"] == [0, 0]
    assert compared({1.0: first, 0.9: unsure, 0.8: lucky})[0] == 1.0
    assert compared({"a": first, "b": lucky, "c": sure})[0] == "c"


def test_choosing_judges_by_other_questions_than_it_chose_by(monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = attach(selector="reconstruction")
    asked: dict[str, set[str]] = {"chose": set(), "judged": set()}
    plain_measure, plain_check = choosing.measure, choosing.check

    def measured(variant: Memory3, items: Any, *rest: Any) -> Any:
        asked["chose"] |= {item.reference.id for item in items}
        return plain_measure(variant, items, *rest)

    def checked(variant: Memory3, references: Any, **options: Any) -> Any:
        asked["judged"] |= {reference.id for reference in references}
        return plain_check(variant, references, **options)

    monkeypatch.setattr(choosing, "measure", measured)
    monkeypatch.setattr(choosing, "check", checked)
    found = choose(m3, lambda: TOWNS, choosing=12, questions=13)
    assert (len(asked["chose"]), len(asked["judged"])) == (12, 13)
    assert not asked["chose"] & asked["judged"]
    tried = [(step["setting"], step["value"]) for step in found["steps"]]
    assert tried == [("selector", "reconstruction"), *(("memory_temperature", value) for value in (1.0, 0.9, 0.8))]
    assert found["check"]["verdict"]["choice"] == DONT  # a random model gains nothing
    assert found["kept"] is None
    assert settings_of("tiny") is None


def test_the_command_chooses_and_writes_with_what_was_chosen(folder: Path, tiny_model_path: str) -> None:
    """A random model: what the verdict is, is no matter."""
    given = ("calibrate", "--model", tiny_model_path, "--choose", "--codec", "raw", "--data", folder, "--json")
    result = CliRunner().invoke(app, [str(each) for each in given])
    found = json.loads(result.stdout)
    verdict = found["check"]["verdict"]
    assert result.exit_code == int(not verdict["ok"])
    assert bool(found["kept"]) == (verdict["choice"] == USE)
    tried = [step["value"] for step in found["steps"] if step["setting"] == "memory_temperature"]
    assert tried == [0.9, 1.0, 0.8]
    keep_settings(tiny_model_path, MemoryConfig(budget="uniform:3", reference_length=24, codec="raw"))
    run("write", folder / "town1.txt", "--bank", "bank", "--model", tiny_model_path)
    assert Bank.describe("bank").config.budget == Budget("uniform", 3)
    run("write", folder / "town1.txt", "--bank", "other", "--model", tiny_model_path, "--budget", "uniform:5")
    assert Bank.describe("other").config.replace(budget="uniform:3") == Bank.describe("bank").config
