"""The command line, mostly in this process with a tiny model and a stand-in embedder, once for real in processes of its
own.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import pytest
import tiny
import torch
from command_line import BRIDGE, _stand_in, docs_folder, error, run, run_json, written_bank  # noqa: F401 (fixtures)

from memory3 import benchmarks
from memory3.bank.store import Store
from memory3.benchmarks import measure
from memory3.cli.app import app
from memory3.cli.ask import _where
from memory3.cli.output import duration, err, first_line, printable, size
from memory3.cli.progress import Metered, WriteMeter

COMMANDS = (
    "prepare",
    "write",
    "ask",
    "info",
    "verify",
    "delete",
    "compact",
    "rebuild",
    "calibrate",
    "check",
    "plan",
    "demo",
    "mcp",
    "serve",
    "eval",
    "report",
    "bench",
    "lm-eval",
)
GROUPS = ("train", "circuit")


@pytest.fixture
def other_model(tmp_path):
    return tiny.save_tiny(tmp_path / "other", chat=True, seed=1)


# ---- help and usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPS])
def test_every_command_has_help(command):
    assert command in run(command, "--help").stdout


def test_the_table_of_commands_is_complete():
    assert [command.name or command.callback.__name__ for command in app.registered_commands] == list(COMMANDS)
    assert [group.typer_instance.info.name for group in app.registered_groups] == list(GROUPS)


def test_version():
    assert re.fullmatch(r"memory3 \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["aks"], "Did you mean 'ask'?"),
        (["write", "docs"], "--bank"),
        (["write", "--bank", "bank"], "PATH"),
        (["write", "docs", "--bank", "bank", "--preset", "papre"], "'papre' is unknown: use one of default, paper, full"),
        (["write", "docs", "--bank", "bank", "--budget", "lots"], "'lots' is not understood: write uniform:8"),
        (["write", "docs", "--bank", "bank", "--layers", "1,1"], "names a layer twice"),
        (["write", "docs", "--bank", "bank", "--reference-length", "0"], "from 1 to 4096, not 0"),
        (["write", "docs", "--bank", "bank", "--dtype", "int8"], "'int8' is unknown: use one of float32"),
        (["write", "docs", "--bank", "bank", "--batch-size", "0"], "'--batch-size'"),
        (["write", "docs", "--bank", "bank", "--wait", "-1"], "'--wait'"),
        (["ask", "why?"], "mode memory needs a bank: give --bank DIR, or --mode none"),
        (["ask", "why?", "--bank", "bank", "--mode", "telepathy"], "'telepathy'"),
        (["ask", "why?", "--bank", "bank", "--k", "-1"], "'--k'"),
        (["ask", "why?", "--bank", "bank", "--max-new-tokens", "0"], "'--max-new-tokens'"),
        (["ask", "why?", "--bank", "bank", "--where", "year"], "'year' is not a condition: write --where key=value"),
        (["ask", "why?", "--bank", "bank", "--where", "=2020"], "'=2020' is not a condition"),
        (["ask", "why?", "--bank", "bank", "--temperature", "0.7"], "need --sample"),
        (["ask", "why?", "--bank", "bank", "--seed", "7"], "need --sample"),
        (["ask", "why?", "--bank", "bank", "--stream", "--json"], "without --json"),
        (["ask", "why?", "--bank", "bank", "--stream", "--mode", "all"], "one mode"),
        (["ask", "why?", "--bank", "bank", "--mode", "text", "--explain", "page.html"], "mode text has none to show"),
        (["ask", "why?", "--bank", "bank", "--explain", "nowhere/page.html"], "a file in a folder that is there"),
        (["delete", "--bank", "bank"], "ID"),
    ],
)
def test_wrong_usage_is_exit_status_2(arguments, said, docs):
    assert said in error(*arguments, code=2)
    assert not Path("bank").exists()


# ---- write ---------------------------------------------------------------------------------------------------------------


def test_write_tells_what_it_did(docs, tiny_model_path):
    (docs / "empty.txt").touch()
    said = run_json("write", docs, "--bank", "bank", "--model", tiny_model_path)
    assert (said["written"], said["unchanged"], said["removed"]) == (2, 0, 0)
    assert said["skipped"] == [{"place": str(docs / "empty.txt"), "reason": "is empty"}]
    assert said["references"] > 2
    assert said["bytes_per_reference"] == round(said["bytes"] / said["references"])
    assert (said["bank"], said["model"]) == ("bank", tiny_model_path)


def test_writing_again_encodes_nothing_and_needs_only_the_bank(docs, bank, monkeypatch):
    monkeypatch.setattr(Metered, "encode", lambda *_: pytest.fail("encoded again"))
    said = run_json("write", docs, "--bank", bank)
    assert (said["written"], said["unchanged"], said["references"], said["bytes_per_reference"]) == (0, 2, 0, 0)


def test_changed_documents_are_replaced_and_missing_ones_stay_without_prune(docs, bank):
    (docs / "bridge.md").write_text("The bridge is closed.")
    (docs / "memory.txt").unlink()
    said = run_json("write", docs, "--bank", bank)
    assert (said["written"], said["unchanged"], said["removed"]) == (1, 0, 0)
    said = run_json("write", docs, "--bank", bank, "--prune")
    assert (said["written"], said["unchanged"], said["removed"]) == (0, 1, 1)
    assert run_json("info", "--bank", bank)["documents"] == 1


def test_the_summary_for_people(docs, tiny_model_path):
    (docs / "empty.txt").touch()
    result = run("write", docs, "--bank", "bank", "--model", tiny_model_path)
    assert "2 documents written, 0 unchanged, 1 skipped or altered\n" in result.stdout
    assert re.search(r"\d+ references, [\d.]+ KB each, in [\d.]+ s \([\d.]+/s\)", result.stdout)
    assert "note: " in result.stderr
    assert "is empty" in result.stderr


def test_many_skipped_files_are_counted(docs, tiny_model_path):
    for n in range(25):
        (docs / f"empty{n}.txt").touch()
    stderr = run("write", docs, "--bank", "bank", "--model", tiny_model_path).stderr
    assert stderr.count("is empty") == 20
    assert "5 more; --json lists all" in stderr


def test_standard_input(tiny_model_path):
    said = run_json("write", "-", "--bank", "bank", "--model", tiny_model_path, input=BRIDGE)
    assert said["written"] == 1
    assert run_json("info", "--bank", "bank", "--documents")["document_list"][0]["id"].startswith("stdin-")


def test_records_and_their_fields(tiny_model_path):
    rows = [{"key": f"q{n}", "body": BRIDGE, "note": f"This is answer {n}.", "year": 2020 + n} for n in range(3)]
    Path("faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--text-field", "note", "--id-field", "key", "--bank", "bank", "--model", tiny_model_path]
    assert run_json("write", "faq.jsonl", *options)["written"] == 3
    listed = run_json("info", "--bank", "bank", "--documents")["document_list"]
    assert [entry["id"] for entry in listed] == ["q0", "q1", "q2"]
    said = run_json("ask", "Which answer?", "--bank", "bank", "--where", "year=2021", "--max-new-tokens", 3)
    assert {citation["document_id"] for citation in said["citations"]} == {"q1"}
    both = ["--where", "year=2021", "--where", "year=2022"]
    said = run_json("ask", "Which answer?", "--bank", "bank", *both, "--max-new-tokens", 3, "--gap", 2)
    assert {citation["document_id"] for citation in said["citations"]} == {"q1", "q2"}


def test_settings_are_remembered(docs, tiny_model_path):
    settings = ["--preset", "paper", "--layers", "1,3", "--budget", "uniform:3", "--reference-length", 50]
    run("write", docs, "--bank", "bank", "--model", tiny_model_path, *settings)
    said = run_json("info", "--bank", "bank")
    assert said["config"]["layers"] == [1, 3]
    assert (said["config"]["budget"], said["config"]["selector"]) == ("uniform:3.0", "attention")
    assert said["shape"]["pairs"] == 2 * 2 * 3
    assert run_json("write", docs, "--bank", "bank", "--budget", "uniform:3")["unchanged"] == 2
    assert run_json("ask", "why?", "--bank", "bank", "--max-new-tokens", 2)["citations"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "uniform:4"], "budget 'adaptive:0.125', not 'uniform:4.0'"),
        (["--preset", "paper"], "layers 'all', not 'first_half'; budget 'adaptive:0.125', not 'uniform:8"),
        (["--reference-length", "64"], "reference_length 128, not 64"),
        (["--embedder", "all-mpnet"], "embeddings are by all-minilm-l6-v2 (11 numbers), not all-mpnet"),
    ],
)
def test_contradicting_the_bank_names_both_values(docs, bank, options, said):
    assert said in error("write", docs, "--bank", bank, *options)
    assert run_json("write", docs, "--bank", bank)["unchanged"] == 2


def test_contradicting_the_banks_model_names_both(docs, bank, tiny_model_path, other_model):
    said = error("write", docs, "--bank", bank, "--model", other_model)
    assert tiny_model_path in said
    assert other_model in said
    assert "memory3 rebuild" in said


def test_a_model_folder_is_remembered_by_its_full_path(docs, tmp_path, monkeypatch):
    tiny.save_tiny(tmp_path / "mine")
    run("write", docs, "--bank", "bank", "--model", "mine")
    assert run_json("info", "--bank", "bank")["model"] == str(tmp_path / "mine")
    monkeypatch.chdir("/")
    run("ask", "why?", "--bank", tmp_path / "bank", "--max-new-tokens", 2)


def test_cold_memories_are_encoded_when_asked_for(docs, tiny_model_path):
    said = run_json("write", docs, "--bank", "bank", "--model", tiny_model_path, "--cold")
    assert run_json("info", "--bank", "bank")["cold"] == said["references"]
    assert "text only" in run("info", "--bank", "bank").stdout
    run("ask", "who?", "--bank", "bank", "--max-new-tokens", 2, "--gap", 2)
    assert run_json("info", "--bank", "bank")["cold"] == 0


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("missing.txt", None, "missing.txt does not exist: check the path"),
        ("folder", None, "the folder folder holds no files"),
        ("empty.txt", b"", "no document was read. First reason: empty.txt: is empty"),
        ("blank.txt", b" \n\t\n", "no document was read"),
        ("program.txt", b"\x7fELF\0\0\0\1" * 50, "program.txt:"),
        ("*.md", None, "no file matches"),
    ],
)
def test_nothing_to_read_leaves_no_bank_behind(path, content, said, tiny_model_path):
    if path == "folder":
        Path(path).mkdir()
    elif content is not None:
        Path(path).write_bytes(content)
    assert said in error("write", path, "--bank", "bank", "--model", tiny_model_path)
    assert not Path("bank").exists()


def test_an_unknown_model_is_named(docs, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = error("write", docs, "--bank", "bank", "--model", "smollm2-135m")
    assert "'smollm2-135m' cannot be loaded" in said
    assert "Did you mean 'smollm2-135m-instruct'?" in said


def test_layers_that_the_model_does_not_have(docs, tiny_model_path):
    assert "layers [99]" in error("write", docs, "--bank", "bank", "--model", tiny_model_path, "--layers", "99")


def test_a_folder_with_other_files_is_not_made_a_bank(docs, tiny_model_path):
    assert "give a new or an empty folder" in error("write", docs, "--bank", docs, "--model", tiny_model_path)


def test_a_busy_bank(docs, bank):
    (docs / "new.txt").write_text("News.")
    with Store(bank).lock():
        assert "another process is writing this bank" in error("write", docs, "--bank", bank)
        assert "another process is writing this bank" in error("delete", "memory.txt", "--bank", bank)
        assert run_json("info", "--bank", bank)["documents"] == 2


def test_an_interrupted_write_says_how_to_go_on(docs, tiny_model_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Metered, "encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        said = error("write", docs, "--bank", "bank", "--model", tiny_model_path, code=130)
    assert "What was committed is kept" in said
    assert "run the same command again" in said
    assert run_json("write", docs, "--bank", "bank")["written"] == 2
    assert run_json("verify", "--bank", "bank")["ok"]


# ---- ask -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["memory", "text", "none"])
def test_an_answer_as_json(bank, tiny_model_path, mode):
    said = run_json("ask", "Who built the bridge?", "--bank", bank, "--mode", mode, "--max-new-tokens", 5)
    assert (said["question"], said["mode"], said["bank"]) == ("Who built the bridge?", mode, "bank")
    assert said["model"] == tiny_model_path
    assert isinstance(said["answer"], str)
    assert said["usage"]["prompt_tokens"] > 0
    assert said["timings"]["first_token"] > 0
    assert bool(said["citations"]) == (mode != "none")
    if said["citations"]:
        assert sum(citation["share"] for citation in said["citations"]) == pytest.approx(1)
        assert (said["usage"]["references"], said["usage"]["bytes_read"] > 0) == (len(said["citations"]), True)
        assert all(len(citation["text"]) == citation["end"] - citation["start"] for citation in said["citations"])


def test_an_answer_for_people(bank):
    stdout = run("ask", "Who built the bridge?", "--bank", bank, "--max-new-tokens", 5, "--gap", 2).stdout
    assert re.search(r" \[1\]  \d+%  \S*docs/bridge\.md:\d+-\d+\n +The bridge was built", stdout)
    assert re.search(r"first token [\d.]+ s, [\d.]+ tokens/s, \d+ prompt tokens, \d references, [\d.]+ KB read\n", stdout)


def test_an_explained_answer(bank, tmp_path):
    arguments = ["ask", "Who built the bridge?", "--bank", bank, "--max-new-tokens", 5, "--gap", 2]
    said = run_json(*arguments, "--explain", tmp_path / "page.html")
    assert said["explained"] == str(tmp_path / "page.html")
    found = said["explanation"]
    assert len(found["answer"]) == said["usage"]["answer_tokens"]
    assert [passage["id"] for passage in found["passages"]] == [c["reference_id"] for c in said["citations"]]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<h1>Who built the bridge?</h1>" in page
    assert page.count('<section class="passage"') == len(said["citations"])
    assert "explanation" not in run_json(*arguments)


def test_what_is_not_in_the_bank_is_said(bank, tmp_path, monkeypatch):
    """With a score of this embedder and search, which counts words alone."""
    asked = [
        ["ask", question, "--bank", bank, "--k", 2, "--max-new-tokens", 2] for question in ("Who built the bridge?", "Why?")
    ]
    assert run_json(*asked[0])["found"] is None
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache/presence").mkdir(parents=True)
    search = {"embedder": "all-minilm-l6-v2", "dimension": 11, "reference_length": 128, "k": 2, "gap": 2.0}
    fitted = {
        "mean": [0, 0, 0.5, 0, 0],
        "spread": [1] * 5,
        "weights": [0, 0, 3, 0, 0],
        "bias": 0,
        "threshold": 0.5,
        "about": {},
    }
    signals = ["cosine", "margin", "words", "missed", "pairs"]
    said = {"version": 1, "signals": signals, **search, **fitted}
    (tmp_path / "cache/presence/all-minilm-l6-v2.json").write_text(json.dumps(said))
    there, absent = (run_json(*arguments) for arguments in asked)
    assert (there["found"], there["found_score"]) == (True, pytest.approx(1 / (1 + math.exp(-1.5))))
    assert (absent["found"], absent["found_score"]) == (False, pytest.approx(1 / (1 + math.exp(1.5))))
    assert "not found in the bank" not in run(*asked[0]).stderr
    assert "probably not found in the bank: the answer may be made up" in run(*asked[1]).stderr


def test_all_modes_side_by_side(bank):
    stdout = run("ask", "Who built it?", "--bank", bank, "--mode", "all", "--max-new-tokens", 5).stdout
    assert re.search("memory.*text.*none", stdout)
    said = run_json("ask", "Who built it?", "--bank", bank, "--mode", "all", "--max-new-tokens", 5)
    assert [answer["mode"] for answer in said["answers"]] == ["memory", "text", "none"]


def test_streamed_words_are_the_answer(bank):
    arguments = ["ask", "Who built the bridge?", "--bank", bank, "--max-new-tokens", 12]
    streamed, whole = (run(*arguments, option).stdout for option in ("--stream", "--no-stream"))
    assert streamed.split("\n\n")[0].strip() == whole.split("\n\n")[0].strip()


def test_one_seed_one_answer(bank):
    def answer(seed):
        sampling = ["--sample", "--temperature", "1.5", "--seed", seed]
        return run_json("ask", "Who?", "--bank", bank, "--max-new-tokens", 20, *sampling)["answer"]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_no_bank_is_needed_for_a_closed_book(tiny_model_path):
    said = run_json("ask", "Who?", "--mode", "none", "--model", tiny_model_path, "--max-new-tokens", 3)
    assert (said["bank"], said["citations"]) == (None, [])


def test_how_many_references_are_read(bank):
    held = run_json("info", "--bank", bank)["references"]
    for k, read in (("0", 0), ("1", 1), ("100", held)):
        said = run_json("ask", "Who?", "--bank", bank, "--k", k, "--max-new-tokens", 3)
        assert said["usage"]["references"] == read


def test_a_filter_that_leaves_nothing(bank):
    assert run_json("ask", "Who?", "--bank", bank, "--where", "year=1874", "--max-new-tokens", 3)["citations"] == []


def test_a_system_text(bank):
    run("ask", "Who?", "--bank", bank, "--system", "Answer in verse.", "--max-new-tokens", 3)


def test_the_question_from_standard_input_and_the_bank_from_the_environment(bank, monkeypatch):
    monkeypatch.setenv("MEMORY3_BANK", bank)
    said = run_json("ask", "-", "--max-new-tokens", 3, input="Wer baute die Br\u00fccke?\n".encode() + b"\xff")
    assert said["question"] == "Wer baute die Brücke?\n\ufffd"


def test_text_that_is_no_unicode(bank):
    said = run_json("ask", "Why \udcff?", "--bank", bank, "--max-new-tokens", 3)
    assert said["question"] == "Why \ufffd?"


@pytest.mark.parametrize(
    "arguments",
    [["write", "docs"], ["info"], ["verify"], ["serve"], ["delete", "a"], ["plan"], ["demo"], ["eval"]],
)
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_an_address_is_no_folder(docs, arguments, scheme):
    """It would be written to a folder of the name http:, beside the bank that was meant."""
    bank = f"{scheme}://127.0.0.1:1/banks/docs"
    said = error(*arguments, "--bank", f"x={bank}" if arguments == ["serve"] else bank, code=2)
    assert "is an address" in said
    assert not Path(f"{scheme}:").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "  ", "--bank", "bank"], "the question is empty"),
        (["ask", "-", "--bank", "bank"], "the question is empty"),
        (["ask", "bridge " * 600, "--bank", "bank"], "Shorten the question"),
        (["ask", "Who?", "--bank", "nowhere"], "nowhere"),
        (["ask", "Who?", "--bank", "docs"], "docs"),
        (["info", "--bank", "nowhere"], "nowhere"),
        (["verify", "--bank", "nowhere"], "nowhere"),
        (["compact", "--bank", "nowhere"], "nowhere"),
        (["delete", "a", "--bank", "nowhere"], "nowhere"),
        (["rebuild", "--bank", "nowhere"], "nowhere"),
    ],
)
def test_errors_are_exit_status_1(bank, arguments, said):
    message = error(*arguments)
    assert message.startswith("error: ")
    assert said in message
    assert not Path("nowhere").exists()


def test_a_bank_of_another_model(bank, other_model):
    assert "memory3 rebuild" in error("ask", "Who?", "--bank", bank, "--model", other_model)


def test_conditions_match_text_and_numbers():
    assert _where(["a=x", "b=2020", "b=1.5", "c=true", "d=", "e=a=b"]) == {
        "a": ["x"],
        "b": ["2020", 2020, "1.5", 1.5],
        "c": ["true", True],
        "d": [""],
        "e": ["a=b"],
    }


# ---- looking after a bank ------------------------------------------------------------------------------------------------


def test_info(bank, tiny_model_path):
    said = run_json("info", "--bank", bank, "--documents")
    assert (said["documents"], said["cold"], said["index"]) == (2, 0, "exact")
    assert said["references"] == sum(entry["references"] for entry in said["document_list"])
    assert [entry["id"] for entry in said["document_list"]] == ["bridge.md", "memory.txt"]
    assert said["model"] == tiny_model_path
    stdout = run("info", "--bank", bank, "--documents").stdout
    assert "2 documents" in stdout
    assert "memory.txt" in stdout


def test_looking_after_a_bank_loads_no_model(bank, monkeypatch):
    monkeypatch.setattr("memory3.llm.Memory3.from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    for command in (["info"], ["verify"], ["compact"], ["delete", "bridge.md"]):
        run(*command, "--bank", bank)


def test_delete(bank):
    said = run_json("delete", "bridge.md", "--bank", bank)
    assert said == {"bank": "bank", "deleted": 1, "missing": [], "documents": 1}
    result = run("delete", "bridge.md", "memory.txt", "--bank", bank, code=1)
    assert result.stdout == "1 document deleted\n"
    assert "no document 'bridge.md'" in result.stderr
    assert run_json("info", "--bank", bank)["documents"] == 0


def test_verify_names_the_damage_and_fails(bank):
    assert run_json("verify", "--bank", bank)["ok"]
    assert "all sound" in run("verify", "--bank", bank).stdout
    name = next(Path(bank).glob("references-*.lance")).stem
    lancedb.connect(bank).open_table(name).update(where="reference_id = 'bridge.md#0'", values={"text": "forged"})
    result = run("verify", "--bank", bank, "--json", code=1)
    assert json.loads(result.stdout)["bad"] == ["bridge.md#0"]
    result = run("verify", "--bank", bank, code=1)
    assert "bridge.md#0" in result.stderr


def test_a_damaged_file_is_an_error_not_a_traceback(bank):
    for path in Path(bank).rglob("*.lance"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run("verify", "--bank", bank, code=1)
    assert error("ask", "Who?", "--bank", bank).startswith("error: ")


def test_compact(docs, bank):
    (docs / "new.txt").write_text("News.")
    run("write", docs, "--bank", bank)
    said = run_json("compact", "--bank", bank)
    assert said["fragments"] == 1
    assert said["fragments_before"] == 2
    assert " to " in run("compact", "--bank", bank).stdout


def test_rebuild_for_another_model_and_for_other_settings(bank, other_model):
    before = run_json("info", "--bank", bank)
    said = run_json("rebuild", "--bank", bank, "--model", other_model)
    assert said["written"] == 2
    after = run_json("info", "--bank", bank)
    assert after["model"] == other_model
    assert after["fingerprint"] != before["fingerprint"]
    run("rebuild", "--bank", bank, "--budget", "uniform:2")
    assert run_json("info", "--bank", bank)["config"]["budget"] == "uniform:2.0"
    assert run_json("ask", "Who?", "--bank", bank, "--max-new-tokens", 3)["citations"]


# ---- bench ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _benchmarks(monkeypatch):
    """Benchmarks that measure nothing and return their options."""
    known = {"decode": "tokens per second", "write": "references per second"}
    monkeypatch.setattr(benchmarks, "BENCHMARKS", known)
    monkeypatch.setattr(benchmarks, "run", lambda name, options: {"name": name, "options": options, "ratio": 0.98765})


@pytest.mark.usefixtures("_benchmarks")
def test_bench():
    assert "references per second" in run("bench").stdout
    assert run_json("bench") == {"decode": "tokens per second", "write": "references per second"}
    said = run_json("bench", "decode", "--batch", "8", "--max-length=12", "--out", "figures.json")
    assert said == {"name": "decode", "options": {"batch": "8", "max_length": "12"}, "ratio": 0.98765}
    assert json.loads(Path("figures.json").read_text()) == said
    assert re.search(r"options.batch +8 *\nratio +0\.9877", run("bench", "decode", "--batch", "8").stdout)


def test_help_behind_the_name_of_a_benchmark_is_about_that_one():
    for arguments in (("bench", "serve", "--help"), ("bench", "serve", "--clients", "4", "--help")):
        said = run(*arguments).stdout
        assert "A server under load" in said
        assert re.search(r"--clients +text, default 1,4,8,16", said)
        assert re.search(r"--tokens-out +whole number, default 64", said)
    assert "--clients" not in run("bench", "--help").stdout


@pytest.mark.usefixtures("_benchmarks")
def test_a_benchmark_says_in_a_log_that_it_goes_on(monkeypatch):
    monkeypatch.setattr("memory3.cli.progress._LOG_EVERY", 0.05)
    monkeypatch.setattr(benchmarks, "run", lambda name, options: time.sleep(0.3) or {"ratio": 0.5})
    said = run("bench", "decode", "--json")
    assert json.loads(said.stdout) == {"ratio": 0.5}
    assert said.stderr.count("measuring decode: 0.") >= 2


def test_turns_of_a_benchmark_are_told_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(measure, "LINE_SECONDS", 0.0)
    assert len(measure.alternate({"a": lambda: 1.0}, 3)["a"]) == 3
    assert [line for line in capsys.readouterr().err.splitlines() if line] == [f"measuring: {n} of 3" for n in (1, 2, 3)]


@pytest.mark.usefixtures("_benchmarks")
def test_bench_refuses():
    assert "use one of decode, write" in error("bench", "deocde", code=2)
    assert "--batch needs a value" in error("bench", "decode", "--batch", code=2)
    assert "--name value" in error("bench", "decode", "8", code=2)
    assert "folder does not exist" in error("bench", "decode", "--out", "nowhere/figures.json")


# ---- output --------------------------------------------------------------------------------------------------------------


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[31mb\r\nc\td\x07\x9b") == "a\\x1b[31mb\nc\td\\x07\\x9b"
    assert first_line("\n  \n  first \n second") == "first"
    assert first_line("") == ""


def test_numbers_as_people_say_them():
    assert [size(n) for n in (0, 999, 1000, 368_640, 158_146_560)] == [
        "0 bytes",
        "999 bytes",
        "1.0 KB",
        "368.6 KB",
        "158.1 MB",
    ]
    assert [duration(s) for s in (0.214, 12.3, 245, 7800)] == ["0.21 s", "12 s", "4 min 05 s", "2 h 10 min"]


@pytest.mark.parametrize("cold", [False, True])
def test_the_meter_counts_what_is_encoded_and_what_was_there(docs, bank, cold):
    """Bytes done reach the total, whether documents are encoded, unchanged or cold."""
    from memory3.bank import Bank
    from memory3.llm import Memory3
    from memory3.text.readers import read_documents

    (docs / "new.txt").write_text(BRIDGE * 7)
    total = sum(path.stat().st_size for path in docs.iterdir())
    meter = WriteMeter(Memory3.from_pretrained(Bank.describe(bank).model), total, lazy=cold)
    seen = []

    def progress(state):
        meter(state)
        seen.append(meter.status(state))

    with Bank.open(bank, meter.writer) as opened:
        opened.write(meter.reading(read_documents(docs)), cold=cold, progress=progress)
    assert meter.done == total
    assert f"{size(total)} of {size(total)}" in seen[-1]
    assert seen[-1].endswith("left")
    assert all("left" not in line for line in seen[:2])  # the unchanged ones say nothing about the rest


def test_progress_is_a_line_in_a_log_and_a_bar_on_a_terminal(docs, tiny_model_path, monkeypatch):
    monkeypatch.setattr("memory3.cli.progress._LOG_EVERY", 0.0)
    arguments = ["write", docs, "--model", tiny_model_path, "--json", "--bank"]
    line = r"\d+ references, [\d.]+/s, [\d.]+ (bytes|KB) of [\d.]+ (bytes|KB), .* left"
    result = run(*arguments, "log")
    assert re.search(f"^{line}$", result.stderr, re.MULTILINE)
    assert json.loads(result.stdout)["written"] == 2
    monkeypatch.setattr(err, "_force_terminal", True)
    monkeypatch.setattr(err, "is_interactive", True)
    result = run(*arguments, "terminal", env={"COLUMNS": "80", "TERM": "xterm"})
    assert "\x1b[" in result.stderr
    assert re.search(line, result.stderr)
    assert json.loads(result.stdout)["written"] == 2


# ---- as users run it -----------------------------------------------------------------------------------------------------


def memory3(*arguments, **options):
    """Run the installed command as a process."""
    command = [sys.executable, "-c", "from memory3.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"} | options.pop("env", {})
    return subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False, **options)


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from memory3.cli import main; sys.argv = ['memory3', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'lancedb', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("command", [["serve"], ["mcp", "--bank", "bank"]])
def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(command, bank):
    code = (
        "import sys; from memory3.cli import main; sys.argv = ['memory3', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "print(code, sorted({'torch', 'transformers', 'lancedb', 'uvicorn'} & set(sys.modules)))"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = [sys.executable, "-c", code, *command, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1 []\n"
    assert "it is taken" in done.stderr


@pytest.mark.real
def test_processes_print_one_document_and_no_noise(docs, tiny_model_path, default_embedder_path):
    """With the default embedder. Loading bars and hints of the libraries below must reach neither stream."""
    done = memory3("write", docs, "--bank", "bank", "--model", tiny_model_path, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["written"] == 2
    done = memory3("ask", "Who built the \udcff bridge?", "--bank", "bank", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"bridge.md" in done.stdout


def test_errors_of_processes():
    done = memory3("ask", "Who?", "--bank", "nowhere")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


def test_a_reader_that_stops_listening_is_no_error():
    command = [sys.executable, "-c", "from memory3.cli import main; main()", "write", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) in (0, 1, -signal.SIGPIPE)


def test_the_seed_of_the_process_is_left_alone_without_sampling(bank):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run("ask", "Who?", "--bank", bank, "--max-new-tokens", 3)
    assert torch.equal(before, torch.random.get_rng_state())
