"""What goes wrong with a bank inside vLLM ends the request that reads it, and no other: in a stand-in for vLLM's engine, whose
worker knows what the scheduler has told it and nothing else.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import served
import tiny
import torch
from forging import destroy, forge
from paged import Asked, PagedEngine, text
from slow_bank import Slow

from memory3 import Bank, Document, Memory3, MemoryConfig
from memory3.codec import fit
from memory3.codec.raw import decode_record, encode_record
from memory3.errors import ConfigError
from memory3.vllm import shelf as shelves
from memory3.vllm.card import make_folder
from memory3.vllm.decoder import Decoder
from memory3.vllm.pool import Pool
from memory3.vllm.shelf import Shelf
from memory3.vllm.step import Form, Packed, Row, Span, Step

CONFIG = MemoryConfig(reference_length=29, chunk_length=11, references_per_chunk=3, budget="adaptive:1/3", codec="raw")
DOCUMENTS = [Document(f"d{n}", text(n, 20 + n)) for n in range(13)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    m3 = Memory3(tiny.tiny_model(), tiny.tiny_chat_tokenizer(), CONFIG, name="tiny")
    return SimpleNamespace(m3=m3, card=make_folder(m3, folder / "model"))


@pytest.fixture
def made(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shelves, "_REFRESH", 0.0)
    path = tmp_path / "bank"
    Bank.open(path, model.m3).write(DOCUMENTS)
    shelf = Shelf(str(model.card))
    bank = Bank.open(path, model.m3)
    shelf.put("b", bank)
    engine = PagedEngine(model.m3, shelf, blocks=400)
    yield SimpleNamespace(m3=model.m3, path=path, shelf=shelf, bank=bank, engine=engine)
    engine.planner.close()


def request(made, name, prompt, new, bank="b", **memory):
    return Asked(name, made.m3.prompts.build(prompt, "memory"), {"memory3": {"bank": bank, **memory}}, new)


def run(engine, requests, steps=10_000):
    """Until all have their answers, all of them in every step; what each was told, by name."""
    running, told = list(requests), {}
    while running and steps:
        steps -= 1
        engine.step([(one, len(one.all_token_ids) - one.computed) for one in running])
        for one in [one for one in running if len(one.answer) >= one.max_tokens]:
            running.remove(one)
            told[one.request_id] = engine.end(one)["memory3"]
    return told


def twin(made, prompt, new, bank=None, **memory):
    return made.m3.generate(prompt, bank or made.bank, max_new_tokens=new, min_new_tokens=new, **memory).token_ids


def bad_record(made, kind):
    shape = made.bank.manifest.shape
    (record,) = made.bank.records(["d1#0"])
    if kind == "counts":
        return b"\xff" * len(record.data)
    memory = decode_record(record.data, shape)
    memory.keys[0, 0] = torch.nan
    return encode_record(memory, shape)


@pytest.mark.parametrize("kind", ["counts", "not a number"])
def test_a_record_that_cannot_be_decoded_fails_its_request_alone(made, kind):
    forge(made.path, "d1#0", codes=bad_record(made, kind))
    made.bank.refresh()
    prompt = text(301, 9)
    bad = request(made, "bad", prompt, 30, references=["d2#0", "d1#0"])
    good = request(made, "good", prompt, 30, references=["d2#0"])
    other = request(made, "other", prompt, 30)
    for one in (bad, good, other):
        made.engine.add(one)
    told = run(made.engine, [bad, good, other])
    assert "d1#0" in told["bad"]["error"] or "record" in told["bad"]["error"]
    assert len(bad.answer) == 1
    assert good.answer == twin(made, prompt, 30, references=["d2#0"])
    assert "error" not in told["good"]
    assert other.answer == twin(made, prompt, 30) or "record" in told["other"].get("error", "")


def test_a_record_of_random_numbers_is_refused_or_read_and_ends_nothing(made):
    """Whoever makes a bank makes its checksums, too: of any bytes, or nearly right ones."""
    draw = np.random.default_rng(5)
    shape = made.bank.manifest.shape
    (record,) = made.bank.records(["d1#0"])
    refused, decoder = 0, made.shelf.decoder
    form = decoder.form_of(made.bank.pin())
    for n in range(200):
        data = bytearray(record.data)
        some = draw.integers(0, len(data), int(draw.choice([1, 8, len(data)])))
        for place in some:
            data[place] = draw.integers(256)
        packed = Packed(("b", str(n), "d1#0"), SimpleNamespace(**{**vars(record), "data": bytes(data)}), form.key)
        pool = Pool(1 << 20, decoder.decode)
        failed = pool.take([packed])
        refused += bool(failed)
        if not failed:
            made.engine.layouts._pool = pool
            batch = made.engine.layouts.of([((packed.name,), -7, 0)])
            assert all(layer.keys.shape[1] == shape.kv_heads for layer in batch.layers.values())
    assert 0 < refused < 200


def codebook(m3, bank, codec):
    memories = bank.memories([f"{one.id}#0" for one in DOCUMENTS])
    return fit(codec, memories * 20, m3.shape, fingerprint=m3.fingerprint, positions=CONFIG.reference_length)


def test_a_bank_may_be_rebuilt_with_another_codec_while_it_is_read(made):
    prompt, made.shelf._lent = text(302, 9), {}
    made.shelf.offer({"b": str(made.path)})
    old = twin(made, prompt, 40)
    running = request(made, "running", prompt, 40)
    made.engine.add(running)
    run(made.engine, [running], steps=5)
    assert len(running.answer) == 5
    other = Memory3(made.m3.model, made.m3.tokenizer, CONFIG.replace(codec="int8"), name="tiny")
    Bank.rebuild(made.path, other, code_book=codebook(made.m3, made.bank, "int8"))
    new = request(made, "new", prompt, 40)
    made.engine.add(new)
    told = run(made.engine, [running, new])
    assert not any("error" in one for one in told.values())
    assert running.answer == old  # as the bank was when it came
    with Bank.open(made.path, made.m3) as bank:
        assert bank.manifest.codec == "int8"
        assert new.answer == twin(made, prompt, 40, bank)
    assert len(made.engine.planner._forms) == 2


def test_a_bank_that_is_rebuilt_for_another_model_is_refused_from_then_on(made):
    prompt, made.shelf._lent = text(303, 9), {}
    made.shelf.offer({"b": str(made.path)})
    running = request(made, "running", prompt, 40)
    made.engine.add(running)
    run(made.engine, [running], steps=5)
    other = Memory3(made.m3.model, made.m3.tokenizer, CONFIG.replace(reference_length=23), name="tiny")
    Bank.rebuild(made.path, other)
    new = request(made, "new", prompt, 40)
    made.engine.add(new)
    told = run(made.engine, [running, new])
    assert "reference_length is 23 in the bank and 29 now" in told["new"]["error"]
    assert running.answer == twin(made, prompt, 40)
    lent = request(made, "lent", prompt, 40, bank="theirs")
    bank = Bank.open(made.path, other)
    made.shelf.put("theirs", bank)
    made.engine.add(lent)
    assert "reference_length" in run(made.engine, [lent])["lent"]["error"]


def reads_anew(made, bank, prompt, new):
    """Whether a renewal reads what the prompt has not."""
    one = request(made, "probe", prompt, new, bank=bank, k=1)
    made.engine.add(one)
    reader = made.engine.planner._readers["probe"]
    before = len(reader.packed)
    run(made.engine, [one])
    return len(reader.packed) > before


def test_a_bank_that_is_deleted_fails_those_who_read_it_and_no_other(made, model, tmp_path):
    kept = Bank.open(tmp_path / "kept", model.m3)
    kept.write(DOCUMENTS)
    made.shelf.put("kept", kept)
    made.shelf._lent.pop("b")
    made.shelf.offer({"b": str(made.path)})
    prompt = next(one for one in (text(n, 5) for n in range(710, 760)) if reads_anew(made, "kept", one, 40))
    requests = [request(made, name, prompt, 40, bank=name, k=1) for name in ("b", "kept")]
    for one in requests:
        made.engine.add(one)
    run(made.engine, requests, steps=5)
    destroy(made.path)
    told = run(made.engine, requests)
    assert str(made.path) in told["b"]["error"]
    assert 5 < len(requests[0].answer) < 40
    assert "error" not in told["kept"]
    assert requests[1].answer == twin(made, prompt, 40, kept, k=1)
    late = request(made, "late", prompt, 4)
    made.engine.add(late)
    assert "no bank" in run(made.engine, [late])["late"]["error"]


def test_a_bank_of_another_machine_is_read(made, tmp_path):
    with served.server(tmp_path / "served", m3=made.m3, banks={"docs": DOCUMENTS}) as server:
        bank = Bank.open(f"{server.address}/banks/docs", made.m3)
        made.shelf.put("remote", bank)
        one = request(made, "one", text(304, 9), 40, bank="remote")
        made.engine.add(one)
        assert "error" not in run(made.engine, [one])["one"]
        assert one.answer == twin(made, text(304, 9), 40, bank)
        bank.close()


# ---- a worker for which the scheduler's word is wrong all the same ----------------------------------------------------------


def test_what_a_worker_cannot_decode_is_left_out_and_told(made):
    form = made.shelf.decoder.form_of(made.bank.pin())
    names = [("b", "v", f"d{n}#0") for n in (1, 2)]
    packed = [Packed(name, made.bank.records([name[2]])[0], form.key) for name in names]
    worker = Decoder(made.shelf.card)
    assert isinstance(Pool(1 << 20, worker.decode).take(packed)[names[0]], ConfigError)  # nobody told it the form
    worker.learn(form)
    bad = Packed(names[0], SimpleNamespace(**{**vars(packed[0].record), "data": b"\xff" * 40}), form.key)
    pool = Pool(1 << 20, worker.decode)
    failed = pool.take([bad, packed[1]])
    assert list(failed) == [names[0]]
    assert len(pool) == 1
    rows = [Row(r, 0, 7, 8, 3, 0, 0, 0, (Span(7, 8, tuple(read)),)) for r, read in (("both", names), ("one", names[1:]))]
    step = Step(rows=rows, packed=[bad, packed[1]], reads={"both": tuple(names), "one": (names[1],)})
    left, wrong = step.without(failed.keys())
    assert wrong == {"both"}
    assert [row.spans[0].names for row in left.rows] == [(names[1],)] * 2
    assert left.reads == {"both": (names[1],), "one": (names[1],)}


def test_what_a_worker_could_not_read_is_refused_and_its_blocks_are_no_ones(made):
    one, other = (request(made, name, text(305, 9), 30) for name in ("one", "other"))
    for each in (one, other):
        made.engine.add(each)
    run(made.engine, [one, other], steps=3)
    made.engine.planner.refuse({"one": "no memory left on the device"})
    assert made.engine.planner.spoiled() == {one.blocks[(one.computed - 1) // made.engine.block]}
    told = run(made.engine, [one, other])
    assert "no memory left" in told["one"]["error"]
    assert len(one.answer) == 4
    assert other.answer == twin(made, text(305, 9), 30)


def test_a_form_of_another_model_is_not_learned(made):
    other = Memory3(made.m3.model, made.m3.tokenizer, CONFIG.replace(reference_length=23), name="tiny")
    form = made.shelf.decoder.form_of(made.bank.pin())
    foreign = Form("x", form.manifest.replace(made.m3.fingerprint, other.fingerprint), b"")
    with pytest.raises(Exception, match="memories of"):
        Decoder(made.shelf.card).learn(foreign)


# ---- memories that take long to find ----------------------------------------------------------------------------------------


def test_a_request_whose_next_memories_are_not_there_yet_holds_nobody_up(made):
    gate = threading.Event()
    gate.set()
    slow = Slow(made.bank.pin(), gate)
    made.shelf.put("slow", slow)
    late = request(made, "late", text(306, 9), 40, bank="slow")
    plain = request(made, "plain", text(307, 9), 60, references=["d2#0"])
    for one in (late, plain):
        made.engine.add(one)
    gate.clear()
    began = time.perf_counter()
    run(made.engine, [late, plain], steps=50)
    assert time.perf_counter() - began < 15
    assert len(late.answer) == CONFIG.chunk_length + 1  # then it would read what is not found yet
    assert len(plain.answer) == 50
    gate.set()
    told = run(made.engine, [late, plain])
    assert not any("error" in one for one in told.values())
    assert late.answer == twin(made, text(306, 9), 40)
    assert plain.answer == twin(made, text(307, 9), 60, references=["d2#0"])


def test_while_all_wait_steps_are_few(made):
    gate = threading.Event()
    gate.set()
    slow = Slow(made.bank.pin(), gate)
    made.shelf.put("slow", slow)
    late = request(made, "late", text(308, 9), 40, bank="slow")
    made.engine.add(late)
    gate.clear()
    threading.Timer(0.5, gate.set).start()
    run(made.engine, [late])
    assert late.answer == twin(made, text(308, 9), 40)
    assert made.engine.steps < 40 + 120


def test_lookups_are_counted(made):
    counted = []
    made.engine.planner.finder.told = lambda seconds, requests: counted.append((seconds, requests))
    one, other = request(made, "one", text(309, 9), 40), request(made, "other", text(309, 5), 20)
    for each in (one, other):
        made.engine.add(each)
    told = run(made.engine, [one, other])
    renewals = sum((new - 2) // CONFIG.chunk_length for new in (40, 20))
    assert sum(requests for _, requests in counted) == 2 + renewals
    assert all(seconds > 0 for seconds, _ in counted)
    answer = made.m3.generate(text(309, 9), made.bank, max_new_tokens=40, min_new_tokens=40)
    assert (told["one"]["recalls"], told["one"]["bytes_read"]) == (answer.usage.recalls, answer.usage.bytes_read)
