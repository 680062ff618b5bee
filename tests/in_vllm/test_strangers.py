"""What `memory3 serve` does with strangers, over vLLM's engine: clients that go away, full queues, hostile bodies, banks that
are deleted while they are served.
"""

from __future__ import annotations

import shutil
import time
from functools import partial

import pytest
import served
from strangers import *  # noqa: F403 (pytest runs its tests with the server of this file)
from strangers import CHAT, many_clients

from memory3.decoding import decoding
from memory3.serving.job import Finished, Job, Text
from memory3.serving.limits import Limits
from memory3.vllm.engine import VllmEngine


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    small = {"max_num_batched_tokens": 64, "block_size": 32}
    engine_of = partial(VllmEngine, folder=folder / "model", cache_bytes=64 << 20, settings=small)
    limits = Limits(body_bytes=20_000, body_seconds=1.0, header_seconds=1.0, seconds=60, connections=48)
    m3 = served.tiny_memory3(head_dim=32)
    with served.server(folder, m3=m3, engine_of=engine_of, limits=limits, slots=2, waiting=2) as running:
        running.folder = folder
        yield running


def test_who_is_cancelled_takes_part_in_no_further_step(strict):
    engine, m3 = strict.state.engine, strict.state.m3
    bank = strict.state.banks.get("docs", strict.state.keys.tenant(None)).bank
    settings, _ = decoding(m3.model, 3000, {})
    steps, events = [], []
    step = engine._inner.step

    def counted():
        outputs = step()
        steps.append({number for number, _ in outputs})
        return outputs

    engine._inner.step = counted
    try:
        job = Job("Who built it?", settings, "memory", bank, m3.retrieval(None, None, None), ignore_eos=True)
        handle = engine.submit(job, events.append)
        while sum(isinstance(event, Text) for event in events) < 5:
            time.sleep(0.001)
        at = len(steps)
        handle.cancel()
        while not isinstance(events[-1], Finished):
            time.sleep(0.001)
        assert events[-1].reason == "cancelled"
        time.sleep(0.2)
        assert all(handle.number not in step for step in steps[at + 1 :])  # one may have been under way
        assert not engine._inner.inside
    finally:
        engine._inner.step = step


def test_many_clients_of_whom_some_go_away(strict):
    engine = strict.state.engine
    engine._most, before = 70, engine._most
    try:
        many_clients(strict)
    finally:
        engine._most = before


def test_lookups_are_counted(strict):
    def values():
        with strict.http() as http:
            lines = [line for line in http.get("/metrics").text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = values()
    said = strict.client().chat.completions.create(**{**CHAT, "max_tokens": 40})
    told, after = said.choices[0].model_extra["memory3"], values()

    def grown(name):
        return after[name] - before[name]

    tokens = said.usage.completion_tokens + (said.choices[0].finish_reason == "stop")
    renewals = (tokens - 2) // strict.state.m3.config.chunk_length
    assert renewals
    assert grown("memory3_lookups_total") == 1 + renewals
    assert grown("memory3_retrieval_seconds_count") == 1 + renewals
    assert grown("memory3_retrieval_seconds_sum") > 0
    assert grown("memory3_recalls_total") == told["recalls"]
    assert grown('memory3_tokens_total{kind="answer"}') == grown("memory3_passes_total") == tokens
    assert grown('memory3_tokens_total{kind="prompt"}') == said.usage.prompt_tokens


def test_a_bank_that_is_deleted_while_it_is_served_fails_its_own_requests_alone(strict):
    """The last of this file: the bank is gone."""
    client = strict.client()
    shutil.rmtree(strict.folder / "docs")
    time.sleep(3)
    for question in ("Where does the river rise?", "What of the old town?"):
        with strict.http() as http:
            answer = http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": question}]})
        assert answer.status_code in (404, 503), answer.text
        assert str(strict.folder) not in answer.text
    assert client.chat.completions.create(**{**CHAT, "model": "tiny@secret"}).choices
    assert client.chat.completions.create(**{**CHAT, "model": "tiny"}).choices
    strict.wait_until_idle()
