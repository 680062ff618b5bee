"""``memory3 plan`` and the policy options of ``memory3 write``, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from command_line import _stand_in, docs_folder, error, run, run_json, written_bank  # noqa: F401 (fixtures)

from memory3.bank import Bank
from memory3.cli.plan.views import binary, digits
from memory3.planner.library import EMBEDDERS
from memory3.planner.machine import MACHINES

PAPER = ["plan", "--model", "memory3-2.4b"]


@pytest.fixture
def log():
    lines = [f"doc{n},{10_000 // (n + 1) ** 2}" for n in range(30)]
    Path("log.csv").write_text("document,count\n" + "\n".join(lines) + "\n")
    return "log.csv"


# ---- costs and storage ---------------------------------------------------------------------------------------------------


def test_the_papers_figures_are_printed():
    said = run(*PAPER).stdout
    rows = {line.split("  ")[0]: line.split() for line in said.split("As this library")[0].splitlines()}
    assert rows["weights"][-2:] == ["2.24", "0"]
    assert rows["explicit memory"][-2:] == ["0.308", "1.44e-4"]
    assert rows["text (RAG)"][-2:] == ["0", "0.624"]
    assert "(0.494, 13400)" in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_same_as_json():
    said = run_json(*PAPER, "--references", "1.12e8", "--figure", "costs.png")
    paper = said["costs"]["paper"]
    assert paper["explicit"]["write"] == pytest.approx(sum(paper["explicit"]["write_terms"].values()))
    assert paper["memory_is_cheapest_between"] == pytest.approx([0.4938, 13388.4], rel=1e-4)
    assert said["storage"]["references"] == 112_000_000
    assert Path("costs.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_sizes_are_printed():
    said = run(*PAPER, "--references", "1.12e8").stdout
    assert all(figure in said for figure in ("7.17 PiB", "45.9 TiB", "4.02 TiB"))


def test_settings_and_codec_change_the_librarys_costs():
    default, paper, coded = (
        run_json(*PAPER, "--references", "1000", "--figure", "a.png", *options)
        for options in ([], ["--preset", "paper"], ["--codec", "product"])
    )
    assert paper["costs"]["library"]["explicit"]["write"] < default["costs"]["library"]["explicit"]["write"]
    assert coded["storage"]["library"]["memory"]["per_reference"] < default["storage"]["library"]["memory"]["per_reference"]
    assert paper["config"]["selector"] == "attention"


def test_a_model_by_its_folder(tmp_path):
    tiny.tiny_model().config.save_pretrained(tmp_path / "tiny")
    assert run_json("plan", "--model", tmp_path / "tiny")["costs"]["shape"]["kv_heads"] == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (2.2385, "2.24"), (13388.4, "13,400"), (1.4418e-4, "1.44e-4"), (100.0, "100"), (0.3, "0.300"), (9.999, "10.0")],
)
def test_three_digits(value, said):
    assert digits(value) == said


def test_binary_sizes():
    assert [binary(n) for n in (1000, 1024, 7.17 * 2**50)] == ["1,000 bytes", "1.00 KiB", "7.17 PiB"]


# ---- capacity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_capacity_from_1e4_to_1e9(name):
    said = run(*PAPER, "--machine", name).stdout
    assert "1e+09" in said
    assert "weights: train" in said
    assert max(map(len, said.splitlines())) <= 80


def test_capacity_for_a_number_of_references_and_a_price():
    said = run_json(*PAPER, "--machine", "h100", "--price", "2.5", "--references", "1e6")["capacity"]
    (only,) = said["plans"]
    assert only["price"] == pytest.approx(2.5 * only["write_hours"])
    assert (only["references"], said["machine"]["price"]) == (10**6, 2.5)
    assert only["recall_seconds"] == pytest.approx(sum(only["recall"].values()))


def test_documents_are_counted_as_they_would_be_written(docs, bank, tiny_model_path):
    written = run_json("info", "--bank", bank)["references"]
    said = run_json("plan", "--model", tiny_model_path, "--path", docs, "--machine", "cpu-16")
    assert said["storage"]["references"] == said["capacity"]["plans"][0]["references"] == written
    assert 0 < said["capacity"]["corpus"]["tokens"] <= 128
    assert said["capacity"]["corpus"]["text_bytes"] * written == sum(path.stat().st_size for path in docs.iterdir())


# ---- usage ---------------------------------------------------------------------------------------------------------------


def test_allocation_from_a_log(log):
    said = run_json("plan", "--usage", log, "--figure", "allocation.png")
    made, totals = said["allocation"], said["allocation"]["total_flops"]
    assert totals["cheapest"] == min(totals.values())
    assert made["formats"]["doc0"] == "implicit"
    assert made["formats"]["doc9"] == "explicit"
    assert sum(made["in_format"].values()) == made["documents"] == 30
    assert Path("allocation.png").read_bytes().startswith(b"\x89PNG")
    online = said["traffic"]["policies"]
    assert all(outcome["of_optimum"] >= 1 for outcome in online.values())
    assert online["auto, at recall 3 (break-even)"]["of_optimum"] <= 2
    assert "cheapest for each" in run("plan", "--usage", log).stdout


def test_made_up_traffic_within_a_budget():
    options = ["plan", "--zipf", "1", "--recalls", "2e4", "--references", "3000"]
    free, tight = run_json(*options)["traffic"], run_json(*options, "--disk", "100MB")["traffic"]
    assert free["capacity"] is None
    assert tight["capacity"] == 10**8 // 47_956
    assert all(outcome["stored"] <= tight["capacity"] for outcome in tight["policies"].values())
    assert free["policies"]["auto, at recall 3 (break-even)"]["of_optimum"] <= 2


def test_a_bank_is_allocated_by_its_own_statistics(docs, tiny_model_path):
    run("write", docs, "--bank", "bank", "--model", tiny_model_path, "--auto", "--after", 2)
    said = run_json("info", "--bank", "bank")
    assert said["cold"] == said["references"]
    assert said["policy"] == {"write": "auto", "after": 2, "disk_bytes": None}
    assert "at recall 2" in run("info", "--bank", "bank").stdout
    for _ in range(2):
        run("ask", "who?", "--bank", "bank", "--k", 100, "--max-new-tokens", 2)
    assert run_json("info", "--bank", "bank")["cold"] == 0
    said = run_json("plan", "--bank", "bank")["allocation"]
    assert said["recalls"] == 2 * Bank.describe("bank").references
    assert set(said["formats"]) == {"bridge.md", "memory.txt"}


@pytest.fixture
def _few(monkeypatch, tmp_path):
    """Codecs are fitted to few references, and kept in a cache of the test's own."""
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("memory3.calibration.codec._FEWEST", 7)
    monkeypatch.setattr("memory3.calibration.codec._MOST", 11)


@pytest.mark.usefixtures("_few")
def test_predictions_are_checked_with_the_codec_that_was_planned(docs, tiny_model_path):
    options = ["--model", tiny_model_path, "--codec", "int8"]
    run("calibrate", *options, "--data", docs)
    said = run_json("plan", *options, "--references", "5", "--check")
    assert all(each["ratio"] == each["predicted"] / each["measured"] for each in said["check"].values())
    stored, measured = said["storage"]["library"]["memory"]["per_reference"], said["check"]["bytes a reference"]["measured"]
    assert stored < measured < 1.5 * stored


@pytest.mark.usefixtures("_few")
def test_predictions_are_checked_raw_where_the_default_codec_is_not_fitted(tiny_model_path):
    said = run_json("plan", "--model", tiny_model_path, "--references", "5", "--check")
    assert said["config"]["codec"].startswith("foretold:")
    wanted = 4 * said["storage"]["library"]["memory"]["per_reference"]  # raw is far larger
    assert said["check"]["bytes a reference"]["measured"] > wanted
    assert said["check"]["bytes a reference"]["predicted"] > wanted


@pytest.mark.usefixtures("_few")
def test_a_banks_codec_and_embedder_are_planned_with(docs, tiny_model_path):
    options = ["--model", tiny_model_path, "--codec", "int8", "--embedder", "BAAI/bge-m3"]
    run("write", docs, "--bank", "bank", *options)
    said = run_json("plan", "--bank", "bank", "--references", "5", "--figure", "a.png")
    assert said["config"]["codec"] == "int8"
    stored, manifest = said["storage"]["library"], Bank.describe("bank")
    assert stored["memory"]["per_reference"] == manifest.record_bytes
    assert stored["embedding"]["per_reference"] == 4 * EMBEDDERS["BAAI/bge-m3"].dimension
    other = run_json("plan", "--bank", "bank", "--references", "5", "--codec", "raw", "--embedder", "all-minilm-l6-v2")
    assert other["storage"]["library"]["memory"]["per_reference"] > manifest.record_bytes
    assert other["storage"]["library"]["embedding"]["per_reference"] == 4 * 384


def test_the_policy_is_kept_by_later_writes(docs, tiny_model_path):
    run("write", docs, "--bank", "bank", "--model", tiny_model_path, "--disk", "1MB")
    (docs / "new.txt").write_text("News.")
    run("write", docs, "--bank", "bank")
    said = run_json("info", "--bank", "bank")
    assert said["cold"] == said["references"]
    assert json.loads(Path("bank/policy.json").read_text())["disk_bytes"] == 10**6


# ---- nonsense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--model", "memory3-2.4"], "the shape of model 'memory3-2.4' is unknown. Did you mean 'memory3-2.4b'?", 1),
        (["--references", "-3"], "-3 references cannot be planned for", 1),
        (["--references", "lots"], "lots references cannot be planned for", 1),
        (["--codec", "zip"], "codec 'zip' is unknown: use one of int4, int8, predicted", 2),
        (["--codec", "product:RQ3x4"], "codec 'product:RQ3x4' is unknown to the planner: use one of int4, int8", 1),
        (["--embedder", "ada"], "embedder 'ada' is unknown", 1),
        (["--machine", "abacus"], "machine 'abacus' is unknown: use one of h100", 1),
        (["--machine", "h100", "--price", "-1"], "machine 'h100': price is -1.0", 1),
        (["--machine", "h100", "--hours", "0"], "within 0.0 hours", 1),
        (["--path", "nowhere"], "nowhere does not exist", 1),
        (["--usage", "nowhere.csv"], "nowhere.csv", 1),
        (["--bank", "nowhere"], "no bank at", 1),
        (["--zipf", "-1"], "a Zipf exponent of -1.0", 1),
        (["--zipf", "1", "--recalls", "0"], "0 references cannot be planned for", 1),
        (["--figure", "no/costs.png"], "no/costs.png: cannot be written", 1),
        (["--machine", "h100", "--measure"], "measured or named, not both", 2),
        (["--references", "5", "--path", "docs"], "given or counted, not both", 2),
        (["--price", "3"], "needs --machine or --measure", 2),
        (["--disk", "1GB"], "a budget is spent on what is recalled", 2),
        (["--zipf", "1", "--disk", "much"], "'much' is no size: write 500MB", 2),
        (["--zipf", "1", "--recalls", "1e9"], "at most 10,000,000", 2),
        (["--budget", "lots"], "'lots' is not understood", 2),
        (["--usage", "a.csv", "--bank", "bank"], "give --usage or --bank", 2),
    ],
)
def test_nonsense_is_refused_with_the_reason(arguments, said, code, docs):
    assert said in error("plan", *arguments, code=code)
