"""Banks that are damaged, rebuilt or deleted while vLLM's engine runs: requests that read them fail, with the reason, and the
engine goes on with the tokens of `Memory3.generate` for all others. A bank that answers late holds nobody up.
"""

from __future__ import annotations

import threading

import pytest
from forging import destroy, forge
from inside import Inside, said, text
from slow_bank import Slow

from memory3 import Bank, Document, Memory3
from memory3.codec import fit
from memory3.vllm import shelf as shelves


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    shelves._REFRESH = 0.0
    return Inside(tmp_path_factory.mktemp("inside"), num_gpu_blocks_override=60, max_num_batched_tokens=128)


def bank_of(inside, path, name):
    """A bank of its own, that the engine opens by itself."""
    bank = Bank.open(path, inside.m3)
    bank.write([Document(f"d{n}", text(n, 30 + n)) for n in range(9)])
    inside.connector.planner.shelf.offer({name: str(path)})
    return bank


def answers(inside, until=lambda outputs: False):
    """Steps until all have ended, or ``until`` says so. Returns what has ended, by name."""
    outputs = {}
    while inside.engine.has_unfinished_requests() and not until(outputs):
        for output in inside.engine.step():
            if output.finished:
                outputs[output.request_id.split("-")[0]] = output
    return outputs


def error_of(output):
    return output.kv_transfer_params["memory3"].get("error", "")


def twin(inside, bank, prompt, new, **memory):
    return inside.m3.generate(prompt, bank, max_new_tokens=new, min_new_tokens=new, **memory).token_ids


def test_a_record_that_cannot_be_decoded(inside, tmp_path):
    bank = bank_of(inside, tmp_path / "hurt", "hurt")
    forge(tmp_path / "hurt", "d3#0", codes=b"\xff" * bank.manifest.record_bytes)
    prompt = text(701, 9)
    inside.submit("bad", prompt, 60, {"bank": "hurt", "references": ["d2#0", "d3#0"]})
    inside.submit("good", prompt, 60, {"bank": "hurt", "references": ["d2#0"]})
    inside.submit("plain", prompt, 60, None)
    got = answers(inside)
    assert "record" in error_of(got["bad"])
    assert said(got["good"]) == twin(inside, bank, prompt, 60, references=["d2#0"])
    assert said(got["plain"]) == inside.twin(prompt, 60, None)


def test_a_bank_that_is_rebuilt_with_another_codec_and_then_for_another_model(inside, tmp_path):
    path, prompt = tmp_path / "rebuilt", text(702, 9)
    bank = bank_of(inside, path, "rebuilt")
    old = twin(inside, bank, prompt, 90)
    inside.submit("old", prompt, 90, {"bank": "rebuilt"})
    got = answers(inside, lambda _: len(inside.steps) % 10 == 9)
    memories = bank.memories([f"d{n}#0" for n in range(9)])
    m3, config = inside.m3, inside.m3.config
    book = fit("int8", memories * 30, m3.shape, fingerprint=m3.fingerprint, positions=config.reference_length)
    Bank.rebuild(path, Memory3(m3.model, m3.tokenizer, config.replace(codec="int8"), name="tiny"), code_book=book)
    inside.submit("new", prompt, 90, {"bank": "rebuilt"})
    got |= answers(inside, lambda _: len(inside.steps) % 40 == 39)
    Bank.rebuild(path, Memory3(m3.model, m3.tokenizer, config.replace(reference_length=31), name="tiny"))
    inside.submit("foreign", prompt, 90, {"bank": "rebuilt"})
    inside.submit("other", prompt, 90, {})
    got |= answers(inside)
    assert said(got["old"]) == old
    assert "reference_length is 31 in the bank and 37 now" in error_of(got["foreign"])
    assert said(got["other"]) == inside.twin(prompt, 90, {})
    assert error_of(got["new"]) == ""
    assert len({form.key for step in inside.steps for form in step.forms}) == 2


def reads_anew(inside, prompt, new):
    """Whether a renewal reads what the prompt has not."""
    inside.submit("probe", prompt, new, {"bank": "kept", "k": 1})
    (reader,) = inside.connector.planner._readers.values()
    answers(inside, lambda _: reader.is_salted)
    before = len(reader.packed)
    answers(inside)
    return len(reader.packed) > before


def test_a_bank_that_is_deleted(inside, tmp_path):
    path = tmp_path / "gone"
    bank_of(inside, path, "gone")
    bank_of(inside, tmp_path / "kept", "kept")
    prompt = next(one for one in (text(n, 5) for n in range(710, 760)) if reads_anew(inside, one, 80))
    inside.submit("gone", prompt, 80, {"bank": "gone", "k": 1})
    inside.submit("other", prompt, 80, {"bank": "kept", "k": 1})
    steps = len(inside.steps)
    got = answers(inside, lambda _: len(inside.steps) > steps + 6)
    destroy(path)
    inside.submit("late", prompt, 80, {"bank": "gone"})
    got |= answers(inside)
    assert "gone" in error_of(got["gone"])
    assert 0 < len(said(got["gone"])) < 80
    assert "no bank" in error_of(got["late"])
    kept = Bank.open(tmp_path / "kept", inside.m3)
    assert said(got["other"]) == twin(inside, kept, prompt, 80, k=1)


def test_a_bank_that_answers_late_holds_nobody_up(inside):
    gate, prompt = threading.Event(), text(703, 9)
    gate.set()
    slow = Slow(inside.bank.pin(), gate)
    inside.connector.planner.shelf.put("slow", slow)
    inside.submit("late", prompt, 80, {"bank": "slow"})
    steps = len(inside.steps)
    answers(inside, lambda _: any(row.request.startswith("late") for row in inside.steps[-1].rows))
    gate.clear()
    inside.submit("plain", prompt, 70, {"references": ["d2#0"]})
    got = answers(inside, lambda outputs: "plain" in outputs)
    rows = [row for step in inside.steps[steps:] for row in step.rows if row.request.startswith("late")]
    prompt_tokens = len(inside.m3.prompts.build(prompt, "memory"))
    assert rows[-1].end == prompt_tokens + inside.m3.config.chunk_length  # the next token would read what is not found
    gate.set()
    got |= answers(inside)
    assert said(got["late"]) == inside.twin(prompt, 80, {})
    assert said(got["plain"]) == inside.twin(prompt, 70, {"references": ["d2#0"]})


def test_those_who_ask_the_same_at_once_read_blocks_that_are_being_written(inside):
    """Found in one go, they begin in one step: vLLM gives the second the blocks that the first fills in it, and where a single
    token is left to compute, its context is not there when the step begins.
    """
    prompts = (text(720, n) for n in range(20, 90))
    prompt = next(one for one in prompts if len(inside.m3.prompts.build(one, "memory")) % 32 == 1)
    gate = threading.Event()
    slow = Slow(inside.bank.pin(), gate)
    inside.connector.planner.shelf.put("slow", slow)
    inside.submit("before", text(721, 5), 5, {"bank": "slow"})
    inside.engine.step()
    for name in ("first", "second", "third"):
        inside.submit(name, prompt, 40, {})
    steps = len(inside.steps)
    gate.set()
    for reader in inside.connector.planner._readers.values():  # all of them, before the next step
        reader.finding.result(60)
    got = answers(inside)
    assert {said(got[name]) == inside.twin(prompt, 40, {}) for name in ("first", "second", "third")} == {True}
    late = {row.request.split("-")[0] for step in inside.steps[steps:] for row in step.rows if row.is_late}
    assert late == {"second", "third"}
