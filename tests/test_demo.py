"""The demo: what it knows, what it asks, and that a second run finds everything done."""

import re
from pydoc_data.topics import topics

import pytest
import tiny
from command_line import _stand_in, error, run, run_json  # noqa: F401 (a fixture)

from memory3 import demo
from memory3.cli.progress import Metered
from memory3.llm import MODES

SMALL = ("pass", "break", "global")


@pytest.fixture(scope="session")
def roomy_model(tmp_path_factory):
    """A tiny model whose context has room for five passages."""
    folder = tmp_path_factory.mktemp("roomy-llama")
    tiny.tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny.tiny_chat_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "PART", SMALL)
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 4)
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))


def test_each_topic_is_a_document():
    part = demo.documents()
    assert [(document.id, document.source) for document in part] == [(name, f"pydoc_data.topics/{name}") for name in SMALL]
    assert part[0].text == topics["pass"]
    assert len(demo.documents(everything=True)) == len(topics)


def test_first_and_second_run(roomy_model, tmp_path, monkeypatch):
    first = run_json("demo", "--model", roomy_model)
    assert first["write"]["written"] == first["documents"] == len(SMALL)
    assert first["bank"].startswith(str(tmp_path / "cache" / "demo"))
    assert [(found["question"], found["mode"]) for found in first["answers"]] == [
        (question, mode) for question in demo.QUESTIONS for mode in MODES
    ]
    for found in first["answers"]:
        assert bool(found["citations"]) == (found["mode"] != "none")
        assert found["usage"]["answer_tokens"] <= 4
    monkeypatch.setattr(Metered, "encode", lambda *_: pytest.fail("encoded again"))
    second = run_json("demo", "--model", roomy_model)
    assert (second["write"]["written"], second["write"]["unchanged"]) == (0, len(SMALL))
    assert [found["answer"] for found in second["answers"]] == [found["answer"] for found in first["answers"]]


def test_the_table(roomy_model, tmp_path):
    result = run("demo", "--model", roomy_model, "--bank", tmp_path / "mine", env={"COLUMNS": "120"})
    for question in demo.QUESTIONS:
        assert question in result.stdout
    assert len(re.findall(r"│ (?:memory|text|none) ", result.stdout)) == 9
    assert result.stdout.count("pydoc_data.topics/") >= 6
    assert "questions were chosen" in result.stdout
    assert "references" in result.stderr
    assert run_json("info", "--bank", tmp_path / "mine")["documents"] == len(SMALL)


def test_an_interrupted_demo_says_how_to_go_on(roomy_model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Metered, "encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert "run the same command again" in error("demo", "--model", roomy_model, code=130)
    assert run_json("demo", "--model", roomy_model)["write"]["written"] == len(SMALL)


@pytest.mark.real
def test_the_part_is_large_enough_and_holds_the_answers(default_model_path, monkeypatch):
    """At least 400 references with the default model's tokenizer."""
    from transformers import AutoTokenizer

    from memory3.text.splitting import split

    monkeypatch.undo()
    tokenizer = AutoTokenizer.from_pretrained(default_model_path)
    references = [reference for document in demo.documents() for reference in split(document, tokenizer, 128)]
    assert 400 <= len(references) < 600
