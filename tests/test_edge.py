"""Answers from nothing, chats, dated templates, generation settings and errors at the command's edge."""

from __future__ import annotations

import errno

import pytest
import tiny
import torch
from bank_writer import HashingEmbedder
from ram_bank import RamBank
from transformers import DynamicCache, GenerationConfig
from typer.testing import CliRunner

from memory3 import Bank, Document, Memory3, MemoryConfig
from memory3.bank.store import Store
from memory3.cli.app import app
from memory3.cli.ask import _where
from memory3.cli.edge import sentence
from memory3.errors import ConfigError, InputError, ModelError, RecallError

SETTINGS = MemoryConfig(reference_length=31, references_per_chunk=2, dtype="float32")


def chat_model(template=tiny.CHAT_TEMPLATE):
    tokenizer = tiny.tiny_chat_tokenizer()
    tokenizer.chat_template = template
    return Memory3(tiny.tiny_model(), tokenizer, SETTINGS, name="tiny")


@pytest.fixture
def m3():
    return chat_model()


@pytest.fixture
def bank(m3, tmp_path):
    with Bank.open(tmp_path / "bank", m3, embedder=HashingEmbedder("hash")) as opened:
        copies = [Document(f"copy{n}", "The pilot of Lindholm is Ada.", metadata={"n": n}) for n in range(23)]
        opened.write([*copies, Document("orm", "The keeper of Lindholm is Orm.", metadata={"year": 1999, "open": True})])
        yield opened


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"where": {"yaer": [1999, "1999"]}}, "no reference has yaer=1999: answered without the bank. Did you mean year?"),
        ({"where": {"year": 2000}}, "no reference has year=2000: answered without the bank. Values of year: 1999"),
        ({"k": 0}, "0 references were asked for"),
        ({"references": []}, "no references were given"),
    ],
)
@pytest.mark.parametrize("mode", ["memory", "text"])
@pytest.mark.parametrize("prompt", ["Who is Orm?", [{"role": "user", "content": "Who is Orm?"}]])
def test_an_answer_from_nothing_says_so_and_is_the_closed_book_one(m3, bank, options, note, mode, prompt):
    closed = m3.generate(prompt, mode="none", max_new_tokens=9)
    answer = m3.generate(prompt, bank, mode=mode, max_new_tokens=9, **options)
    assert answer.note.startswith(note)
    assert (answer.token_ids, answer.usage.prompt_tokens) == (closed.token_ids, closed.usage.prompt_tokens)
    assert closed.note == m3.generate(prompt, bank, mode=mode, max_new_tokens=2).note == ""
    if "references" not in options:
        likely = m3.log_likelihood([prompt], ["Orm"], bank, mode=mode, **options)
        assert likely == m3.log_likelihood([prompt], ["Orm"], mode="none")


def test_rows_of_a_batch_with_and_without_references(m3, bank):
    asked = ["Who is Orm?", "Who is the pilot of the old town?"]
    both = m3.generate(asked, bank, references=[[], ["orm#0"]], max_new_tokens=9)
    assert both[0].token_ids == m3.generate(asked[0], mode="none", max_new_tokens=9).token_ids
    assert both[1].token_ids == m3.generate(asked[1], bank, references=["orm#0"], max_new_tokens=9).token_ids
    assert (bool(both[0].note), bool(both[1].note)) == (True, False)


@pytest.mark.parametrize("mode", ["memory", "text"])
@pytest.mark.parametrize("choice", [{"k": -1}, {"gap": -0.5}, {"gap": float("nan")}, {"gap": 3}])
def test_choices_that_would_read_nothing_are_refused(m3, bank, mode, choice):
    with pytest.raises(ConfigError, match=next(iter(choice))):
        m3.generate("Who?", bank, mode=mode, **choice)


def test_references_must_fit_the_rows(m3, bank):
    with pytest.raises(RecallError, match="2 prompts, but 3 rows"), m3.recall(bank, references=[["a#0"], ["b#0"]]):
        m3.model.generate(**m3.tokenizer(["Who?"] * 3, return_tensors="pt"), max_new_tokens=2, pad_token_id=0)


def test_identical_texts_are_read_once(bank):
    hits = bank.search(["The pilot of Lindholm is Ada."], 5)[0]
    assert [hit.document_id for hit in hits] == ["copy0", "orm"]
    assert [hit.document_id for hit in bank.search(["pilot"], 1, where={"n": 7})[0]] == ["copy7"]


def test_truth_in_any_letters():
    assert _where(["a=True", "b=FALSE", "c=nan"]) == {"a": ["True", True], "b": ["FALSE", False], "c": ["nan"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "give text"), ([{"type": "image"}], "part of type 'image'"), (7, "give text"), ([3], "part of type 'int'")],
)
def test_contents_that_are_no_text(m3, content, said):
    with pytest.raises(InputError, match=said):
        m3.generate([{"role": "user", "content": content}], mode="none")


def test_parts_of_text_are_joined(m3):
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "is Orm?"}]
    joined, whole = ([{"role": "user", "content": c}] for c in (parts, "Who is Orm?"))
    assert m3.prompts.chat(joined) == m3.prompts.chat(whole)
    with pytest.raises(InputError, match="the last message is the assistant's"):
        m3.prompts.chat([*whole, {"role": "assistant", "content": "Yes"}])


SYSTEM = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Who?"}]


def test_templates_that_refuse_or_leave_out_the_system_turn():
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + tiny.CHAT_TEMPLATE
    with pytest.raises(InputError, match="refuses the system role: leave the system message out") as caught:
        chat_model(refuse).prompts.chat(SYSTEM)
    assert sentence(caught.value).endswith("refuses the system role: leave --system out")
    silent = tiny.CHAT_TEMPLATE.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    with pytest.raises(InputError, match="leaves out the message of the role system"):
        chat_model(silent).prompts.chat(SYSTEM)


def test_a_template_that_writes_another_text_each_time():
    with pytest.raises(ModelError, match="another text each time"):
        chat_model("{{ range(9999) | list | random }}" + tiny.CHAT_TEMPLATE)


def test_settings_of_a_generation(m3):
    def answers(**options):
        import torch

        found = set()
        for seed in range(6):
            torch.manual_seed(seed)
            found.add(tuple(m3.generate("Who?", mode="none", max_new_tokens=7, **options).token_ids))
        return len(found)

    hot = GenerationConfig(do_sample=True, temperature=3.0)
    assert answers(generation_config=hot) > 1
    assert answers(generation_config=hot, do_sample=False) == 1
    own = m3.model.generation_config
    own.do_sample, own.temperature, own.cache_implementation, own.stop_strings = True, 3.0, "static", ["zzzz"]
    assert answers() == 1
    bank = RamBank(m3, ["The river rises."])
    assert m3.generate("Who?", bank, max_new_tokens=3).citations
    limit = GenerationConfig(max_new_tokens=4, min_new_tokens=4)
    assert len(m3.generate("Who?", mode="none", generation_config=limit, suppress_tokens=[0, 1, 2]).token_ids) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": -3}, "max_new_tokens=-3: an answer has at least 1 token"),
        ({"num_return_sequences": 2}, "these options cannot be used"),
        ({"tempreature": 2.0}, "no option 'tempreature'. Did you mean 'temperature'"),
        ({"custom_generate": "some/repository"}, "refused: memory3 runs no code"),
    ],
)
def test_options_that_cannot_be(m3, options, said):
    with pytest.raises(ConfigError, match=said):
        m3.generate("Who?", mode="none", **options)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "x", "bank/a"), "bank/a: too many files are open: raise the limit"),
        (OSError(errno.ENOSPC, "x", "bank/b"), "bank/b: no space is left"),
        (PermissionError(errno.EACCES, "x", "c"), "c: permission is denied"),
        (MemoryError(), "out of memory: use a smaller model"),
        (RecursionError("x"), "nested too deeply"),
        (TypeError("an int\nand more"), "failed unexpectedly: TypeError: an int. Run again with --debug and report it"),
    ],
)
def test_an_error_is_one_sentence(error, said, monkeypatch):
    assert said in sentence(error)

    def fails(path):
        raise error

    monkeypatch.setattr(Store, "snapshot", fails)
    for arguments in (["info", "--bank", "x"], ["--debug", "info", "--bank", "x"], ["info", "--bank", "x", "--debug"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert said.split(":")[0] in result.stderr.replace("\n", " ")
        assert ("Traceback" in result.stderr) == ("--debug" in arguments)


@pytest.mark.parametrize("mode", ["none", "text", "memory"])
def test_what_is_asked_inside_a_recall_is_answered_as_outside(m3, bank, mode):
    asked = {"bank": bank, "mode": mode, "k": 1}
    alone = m3.generate("Who?", **asked, max_new_tokens=5), m3.log_likelihood(["Who?"], ["Orm"], **asked)
    with m3.recall(bank, references=[["copy0#0"]]) as recall:
        inside = m3.generate("Who?", **asked, max_new_tokens=5), m3.log_likelihood(["Who?"], ["Orm"], **asked)
    assert (inside[0].token_ids, inside[1]) == (alone[0].token_ids, alone[1])
    assert recall.statistics.recalls == 0


def test_two_prompts_are_not_mixed_in_one_recall(m3, bank):
    ids = [m3.tokenizer(text, return_tensors="pt")["input_ids"][:, :7] for text in ("Who keeps it?", "Who built it?")]
    assert ids[0].shape == ids[1].shape
    with m3.recall(bank), torch.no_grad():
        caches = [DynamicCache(), DynamicCache()]
        for prompt, cache in zip(ids, caches, strict=True):
            m3.model(prompt, past_key_values=cache)
        with pytest.raises(RecallError, match="one prompt before the next"):
            m3.model(ids[0][:, -1:], past_key_values=caches[0])
