"""What deserves a memory: usage x gain, against the same computed one question at a time; resumption, logs of strangers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_chat_tokenizer, tiny_model

from memory3 import Document, Memory3, MemoryConfig
from memory3.errors import InputError
from memory3.planner.usage import DocumentUsage, read_usage
from memory3.training.cloze import cloze_questions
from memory3.usefulness import Gain, Gains, _seed_of, most_useful, usage_of

DOCUMENTS = [
    Document("bridge", "The old bridge of the town was built in 1874 by Ada Stone of Norwich. It is of grey granite."),
    Document("empty", "see also"),
    Document("river", "Below the market the river is called Orwell by those who live there. In 1902 it froze over."),
    Document("ferry", "Every day at noon the ferry of Captain Reed left for Harwich with the mail of the county."),
    Document("copy", "Every day at noon the ferry of Captain Reed left for Harwich with the mail of the county."),
]


@pytest.fixture(scope="module")
def m3():
    return Memory3(tiny_model(), tiny_chat_tokenizer(), config=MemoryConfig(budget="all"), batch_size=3)


@pytest.fixture(scope="module")
def references(m3):
    return [reference for document in DOCUMENTS for reference in m3.split(document)]


def total_nll(m3, prompt: list[int], answer: list[int]) -> float:
    """Of one answer behind one prompt: no batch, no padding."""
    logits = m3.model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0].double()
    found = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return -float(found[range(len(answer)), answer].sum())


@torch.no_grad()
def test_gains_the_slow_way(m3, references):
    found = Gains(m3, None, seed=7).of(references)
    assert found.keys() == {reference.id for reference in references}
    assert sum(gain.questions for gain in found.values()) >= 4
    by_id = {reference.id: reference for reference in references}

    class Texts:
        def references(self, ids):
            return [by_id[id_] for id_ in ids]

    for reference in references:
        differences = []
        for asked in cloze_questions([reference.text], 2, seed=_seed_of(reference.text, 7)):
            question, answer = m3.prompts.ids(asked.question), list(m3.prompts.ids(asked.answer))
            without = m3.prompts.row(question, "none", [], after=len(answer)).tokens
            beside = m3.prompts.row(question, "text", [reference.id], Texts(), after=len(answer)).tokens
            differences.append(total_nll(m3, list(without), answer) - total_nll(m3, list(beside), answer))
        mean = sum(differences) / len(differences) if differences else 0.0
        assert found[reference.id].questions == len(differences)
        assert found[reference.id].nats == pytest.approx(mean, abs=1e-4)
    assert found["empty#0"] == Gain(0.0, 0)
    assert found["ferry#0"] == found["copy#0"]


def test_interrupted_it_goes_on_to_the_same_bytes(m3, references, tmp_path, monkeypatch):
    monkeypatch.setattr("memory3.usefulness._PORTION", 2)
    whole = tmp_path / "whole.jsonl"
    expected = Gains(m3, whole).of(references)
    begun = tmp_path / "begun.jsonl"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Gains(m3, begun).of(references, stop)
    kept = begun.read_bytes()
    assert len(kept.splitlines()) == 1 + 2
    begun.write_bytes(kept + b'{"text": "cut o')
    again = Gains(m3, begun)
    measured: list[int] = []
    monkeypatch.setattr(again, "_measured", lambda some, measure=again._measured: measured.append(len(some)) or measure(some))
    assert again.of(references) == expected
    assert sum(measured) == len({reference.text for reference in references}) - 2
    assert begun.read_bytes() == whole.read_bytes()
    again.forget()
    assert not begun.exists()


def test_a_question_does_not_depend_on_what_stands_around_its_text(m3, references):
    alone = Gains(m3, None).of(references[-1:])[references[-1].id]
    among = Gains(m3, None).of(references)[references[-1].id]
    assert alone.questions == among.questions
    assert alone.nats == pytest.approx(among.nats, abs=1e-4)


@pytest.mark.parametrize(
    "content",
    [b"not json\n", b"[1]\n[2]\n", b'{"gains of": "x", "questions": 2, "seed": 0}\n', b'{}\n{"text": "a", "questions": 1}\n'],
)
def test_a_file_of_something_else_is_refused(m3, content, tmp_path):
    path = tmp_path / "gains.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"remove .* to measure anew"):
        Gains(m3, path)


def test_a_gain_that_is_no_number_is_refused(m3, tmp_path):
    path = tmp_path / "gains.jsonl"
    head = {"gains of": m3.fingerprint, "questions": 2, "seed": 0}
    path.write_text(json.dumps(head) + '\n{"text": "a", "nats": NaN, "questions": 1}\n')
    with pytest.raises(InputError, match="no number"):
        Gains(m3, path)
    with pytest.raises(InputError, match="0 questions"):
        Gains(m3, None, questions=0)


def test_usage_is_shared_out_and_nothing_is_worthless(m3, references):
    usage, unknown = usage_of([DocumentUsage("bridge", 6), DocumentUsage("river#0", 3), DocumentUsage("gone", 9)], references)
    assert unknown == ["gone"]
    parts = [reference.id for reference in references if reference.document_id == "bridge"]
    assert [usage[id_] for id_ in parts] == [1 + 6 / len(parts)] * len(parts)
    assert usage["river#0"] == 4
    assert usage["ferry#0"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("document,count\nnobody,3\n", "no id of the usage log is among these documents, neither 'nobody'"),
        ("document,count\nbridge,1e300\n", "nothing is recalled so often"),
        ("document,count\nbridge,-3\n", "give a whole number from 0"),
        ("document,count\nbridge,often\n", "give a whole number from 0"),
        ("\0\0\0", "columns"),
    ],
)
def test_a_strangers_log_is_refused_with_a_sentence(references, text, said, tmp_path: Path):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        usage_of(read_usage(tmp_path / "log.csv"), references)


def test_the_most_useful_by_hand():
    gains = {"a": Gain(2.0, 1), "b": Gain(1.0, 2), "c": Gain(-1.0, 2), "d": Gain(0.0, 0), "e": Gain(2.0, 1)}
    assert most_useful(gains, {}, 5) == ["a", "e", "b", "d", "c"]
    assert most_useful(gains, {"b": 5.0, "c": 9.0, "d": 100.0}, 2) == ["b", "a"]
