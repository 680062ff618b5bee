"""Tests of what a server does with strangers, whatever engine it has. A file that wants them has a fixture ``strict``, a
server with two places and two that wait, and takes all of this module.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import socket
import threading
import time

import openai
import pytest

__all__ = [
    "test_a_full_queue_says_when_to_come_again",
    "test_no_body_makes_the_server_fail_or_hang",
    "test_the_official_client_closes_a_stream",
    "test_who_goes_away_frees_the_slot",
]


QUESTION = [{"role": "user", "content": "Who built the bridge, and when?"}]


CHAT = {"model": "tiny@docs", "messages": QUESTION, "max_tokens": 4}


def test_a_full_queue_says_when_to_come_again(strict):
    long = {**CHAT, "max_tokens": 600}
    client = strict.client()
    streams = [client.chat.completions.create(**long, stream=True) for _ in range(2)]
    results, threads = [], []
    for _ in range(12):
        threads.append(threading.Thread(target=lambda: results.append(_status(strict, long))))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
    for stream in streams:
        stream.close()
    statuses = [status for status, _ in results]
    assert 429 in statuses
    assert set(statuses) <= {200, 429}
    assert all(after == "1" for status, after in results if status == 429)
    strict.wait_until_idle()
    # Several answers at once are taken together, or not at all.
    with strict.http() as http:
        assert http.post("/v1/chat/completions", json={**CHAT, "n": 5}).status_code == 429
        strict.wait_until_idle()
        assert http.post("/v1/chat/completions", json={**CHAT, "n": 4}).status_code == 200
    strict.wait_until_idle()


def _status(server, body):
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
        return answer.status_code, answer.headers.get("retry-after")


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_slot(strict, stream):
    strict.wait_until_idle()
    body = json.dumps({**CHAT, "max_tokens": 3000, "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    host, port = strict.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head % len(body) + body)
        until = time.monotonic() + 10
        while not strict.state.engine.state.running:
            assert time.monotonic() < until
            time.sleep(0.005)
        if stream:
            connection.recv(100)
    gone = time.monotonic()
    strict.wait_until_idle(5)
    assert time.monotonic() - gone < 1.0


def test_the_official_client_closes_a_stream(strict):
    strict.wait_until_idle()
    with strict.client().chat.completions.create(**{**CHAT, "max_tokens": 3000}, stream=True) as stream:
        next(iter(stream))
    strict.wait_until_idle(2)


def hostile(random):
    """A body that is nearly right, or not at all."""
    values = [
        None, True, 0, -1, 2**70, 1e308, "", "\ud800", "\x00", "a" * 5000, [], {}, [[]], [None], {"a": {"b": [{}] * 9}},
        "tiny", "tiny@docs", "tiny@", "@docs", "tiny@../docs", "user", [{"role": "user", "content": "x"}],
        float("nan"), float("inf"),
    ]  # fmt: skip
    fields = "model messages prompt input max_tokens temperature top_p n stop seed stream stream_options logprobs top_logprobs"
    fields = [*f"{fields} memory3 tools user metadata instructions".split(), "\ud800", ""]
    kind = random.randrange(4)
    if kind == 0:
        return random.randbytes(random.randrange(200))
    body = {"model": "tiny@docs", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    if kind == 1:
        text = json.dumps(body)
        cut = random.randrange(len(text))
        return (
            text[:cut] + random.choice(['"', "{", "}", "[", "\\", "\x00", ""]) + text[cut + random.randrange(3) :]
        ).encode()
    for _ in range(random.randrange(1, 4)):
        place = random.choice(
            [
                body,
                body["messages"][0]
                if isinstance(body.get("messages"), list) and body["messages"] and isinstance(body["messages"][0], dict)
                else body,
            ]
        )
        place[random.choice([*fields, "role", "content"])] = random.choice(values)
    if kind == 3:
        body["memory3"] = {
            random.choice(["mode", "k", "gap", "where", "x"]): random.choice([*values, {"a": "\ud800"}, {"": 1}])
        }
    return json.dumps(body).encode()


def test_no_body_makes_the_server_fail_or_hang(strict):
    chance = random.Random(1)
    statuses = {}
    paths = ("chat/completions", "completions", "responses", "embeddings")
    with strict.http() as http:
        bodies = [hostile(chance) for _ in range(400)]
        bodies += [b"[" * 19_000, b'{"a":' * 3000, b'"' * 100, b"1" * 10_000, b"NaN", b"null", b"[]", b'"x"', b"\xff\xfe{}"]
        for n, body in enumerate(bodies):
            path = paths[n % len(paths)] if n % 2 else paths[0]
            query = chance.choice(["", "?mode=text", "?k=-1", "?k=99999999999999999999999", "?x=%ff", "?gap=nan", "?mode=%00"])
            answer = http.post(f"/v1/{path}{query}", content=body, headers={"Content-Type": "application/json"})
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text, body, path, query)
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert statuses[400] > 100
    strict.wait_until_idle()


def many_clients(server):
    """Answers are those of the library alone, and no slot, file or thread is left."""
    questions = ["Who built the bridge?", "Where does the river rise?", "What of the old town?"]
    bank = server.state.banks.get("docs", server.state.keys.tenant(None)).bank
    asked = {
        (question, length): server.state.m3.generate([{"role": "user", "content": question}], bank, max_new_tokens=length)
        for question in questions
        for length in (8, 40)
    }
    wrong, answered, errors = [], [], []

    def client(seed):
        chance = random.Random(seed)
        try:
            for _ in range(8):
                question, length = chance.choice(list(asked))
                body = {
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": length,
                    "stream": chance.random() < 0.5,
                }
                if chance.random() < 0.4:
                    with contextlib.suppress(openai.APITimeoutError):
                        short = server.client().with_options(timeout=0.01 if not body["stream"] else 60)
                        given = short.chat.completions.create(model="tiny@docs", **body)
                        if body["stream"]:
                            given.close()
                    continue
                given = server.client().chat.completions.create(model="tiny@docs", **body)
                if body["stream"]:
                    text = "".join(chunk.choices[0].delta.content or "" for chunk in given)
                else:
                    text = given.choices[0].message.content
                answered.append(text)
                if text != asked[question, length].text.strip():
                    wrong.append((question, length, text))
        except Exception as error:
            errors.append(error)

    def round_of(first):
        threads = [threading.Thread(target=client, args=(first + n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        server.wait_until_idle()

    round_of(0)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    round_of(100)
    gc.collect()
    assert not errors
    assert len(answered) > 60
    assert not wrong
    until = time.monotonic() + 10
    while server.server.server_state.tasks or server.server.server_state.connections:
        gc.collect()
        assert time.monotonic() < until
        time.sleep(0.05)
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1]
