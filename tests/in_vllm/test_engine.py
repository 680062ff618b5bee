"""`VllmEngine` under `memory3 serve`'s own surface: jobs, events, the official client."""

from __future__ import annotations

import random
import threading
import time
from functools import partial

import pytest
import served
from vllm.distributed.kv_transfer import get_kv_transfer_group

from memory3.decoding import decoding
from memory3.errors import ConfigError, EngineBusy, InputError
from memory3.serving.job import Cited, Failed, Finished, Job, Text
from memory3.vllm.engine import VllmEngine


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    small = {"max_model_len": 1024, "max_num_batched_tokens": 64, "block_size": 32}
    engine_of = partial(VllmEngine, folder=folder / "model", cache_bytes=64 << 20, settings=small)
    with served.server(folder, m3=served.tiny_memory3(head_dim=32), engine_of=engine_of, waiting=600) as server:
        yield server


def job(server, question, bank=None, mode="memory", length=23, **options):
    m3 = server.state.m3
    settings, _ = decoding(m3.model, length, options.pop("decoding", {}))
    return Job(question, settings, mode if bank else "none", bank, m3.retrieval(None, None, None), **options)


def shares(citations):
    return {one.reference_id: one.share for one in citations}


def bank_of(server):
    return next(one.bank for one in server.state.banks if one.name == "docs")


QUESTIONS = ("Who built it?", "Where does the river rise, and where does it reach the sea near the old town? " * 2, "Keys?")


def test_many_at_once_from_many_threads(running):
    """Every answer is the one `Memory3.generate` gives, whoever else asks; what is cancelled ends, and hurts nobody."""
    m3, bank, draw = running.state.m3, bank_of(running), random.Random(11)
    plan = [
        (
            draw.choice(QUESTIONS),
            draw.choice([bank, None]),
            draw.choice(["memory", "text"]),
            draw.choice([1, 9, 50]),
            draw.random(),
        )
        for _ in range(500)
    ]
    alone = {}
    for question, source, mode, length, _ in plan:
        key = (question, source is None, mode if source else "none", length)
        if key not in alone:
            alone[key] = m3.generate(question, source, mode=key[2], max_new_tokens=length)
    got = {}

    def ask(n):
        question, source, mode, length, chance = plan[n]
        time.sleep(chance)
        handle = running.state.engine.submit(job(running, question, source, mode, length))
        if chance < 0.1:
            time.sleep(chance / 2)
            handle.cancel()
        got[n] = handle.result()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(plan))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(got) == len(plan)
    for n, (question, source, mode, length, chance) in enumerate(plan):
        expected = alone[question, source is None, mode if source else "none", length]
        if got[n].reason == "cancelled":
            assert chance < 0.1
            assert got[n].token_ids == expected.token_ids[: len(got[n].token_ids)]
            continue
        assert got[n].token_ids == expected.token_ids, (question, mode, length)
        assert got[n].text == expected.text.strip()
        assert shares(got[n].citations) == pytest.approx(shares(expected.citations), abs=1e-3)
        assert (got[n].usage.recalls, got[n].usage.references) == (expected.usage.recalls, expected.usage.references)
    running.wait_until_idle()


def test_events_are_the_answer(running):
    handle = running.state.engine.submit(job(running, QUESTIONS[1], bank_of(running), length=40))
    events = list(handle)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert "".join(event.text for event in events if isinstance(event, Text)) == finished.text
    cited = [event for event in events if isinstance(event, Cited)]
    assert cited
    assert cited[-1].stretch.last <= len(finished.token_ids)
    assert finished.shares == "attention"
    twin = running.state.m3.generate(QUESTIONS[1], bank_of(running), max_new_tokens=40)
    assert shares(finished.citations) == pytest.approx(shares(twin.citations), abs=1e-3)
    assert all(sum(shares(one.citations).values()) == pytest.approx(1) for one in cited)
    assert 0 < finished.first_token <= finished.total


def test_sampling_draws(running):
    options = {"do_sample": True, "temperature": 1.5}
    handles = [running.state.engine.submit(job(running, QUESTIONS[0], bank_of(running), decoding=options)) for _ in range(5)]
    assert len({tuple(one.result().token_ids) for one in handles}) > 1


def test_logprobs_are_told(running):
    handle = running.state.engine.submit(job(running, QUESTIONS[0], bank_of(running), length=5, logprobs=3))
    choices = [event.choice for event in handle if isinstance(event, Text) and event.choice]
    assert all(len(one.likeliest) == 3 and one.likeliest[0][0] == one.token and one.logprob <= 0 for one in choices)


def test_what_cannot_be_answered_fails_alone(running):
    for bad, error in (
        (job(running, ""), InputError),
        (job(running, "word " * 5000), InputError),
        (job(running, "Who?", decoding={"no_repeat_ngram_size": 3}), ConfigError),
        (job(running, "Who?", seed=5, decoding={"do_sample": True}), ConfigError),
    ):
        *_, last = running.state.engine.submit(bad)
        assert isinstance(last, Failed)
        assert isinstance(last.error, error), last.error
    assert running.state.engine.submit(job(running, "Who?", bank_of(running))).result().token_ids


def test_time_is_kept_and_so_is_room(running):
    slow = job(running, "Who?", bank_of(running), length=900, seconds=0.3, ignore_eos=True)
    assert running.state.engine.submit(slow).result().reason == "time"
    handles = []

    def fill():
        for _ in range(700):
            handles.append(running.state.engine.submit(job(running, "Who?", length=300, ignore_eos=True)))

    with pytest.raises(EngineBusy):
        fill()
    for handle in handles:
        handle.cancel()
    assert {handle.result().reason for handle in handles} == {"cancelled"}
    running.wait_until_idle()


def test_nothing_is_kept_of_those_who_have_ended(running):
    """Also where nobody comes after them."""
    layouts = get_kv_transfer_group()._layouts
    handles = [running.state.engine.submit(job(running, one, bank_of(running), length=40)) for one in QUESTIONS]
    handles[0].cancel()
    assert all(handle.result() for handle in handles)
    running.wait_until_idle()
    planner = running.state.engine._inner.planner
    until = time.monotonic() + 10

    def kept():
        seats, pool, payments = layouts.seats, layouts._pool, layouts.payments
        return [
            seats._seats,
            seats._lanes._lanes,
            pool._reads,
            payments._leads,
            payments._paid,
            planner._readers,
            planner._ended,
        ]

    while time.monotonic() < until and any(kept()):
        time.sleep(0.01)
    assert not any(kept())


def test_the_official_client(running):
    client = running.client()
    messages = [{"role": "system", "content": "You are old."}, {"role": "user", "content": "Who built the bridge?"}]
    twin = running.state.m3.generate(messages, bank_of(running), max_new_tokens=30)
    said = client.chat.completions.create(model="tiny@docs", messages=messages, max_tokens=30)
    assert said.choices[0].message.content == twin.text.strip()
    assert said.usage.completion_tokens == len(twin.token_ids)
    about = said.choices[0].model_extra["memory3"]
    assert about["shares"] == "attention"
    assert {one["reference_id"] for one in about["citations"]} == {one.reference_id for one in twin.citations}
    stream = client.chat.completions.create(model="tiny@docs", messages=messages, max_tokens=30, stream=True)
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts) == twin.text.strip()
    plain = client.chat.completions.create(model="tiny", messages=messages, max_tokens=30)
    assert plain.choices[0].message.content == running.state.m3.generate(messages, mode="none", max_new_tokens=30).text.strip()
