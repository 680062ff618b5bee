"""Clients of `memory3 bench serve`: they time answers of one length, and take nothing else for one."""

from __future__ import annotations

import http.server
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import served

from memory3 import benchmarks
from memory3.benchmarks.clients import Arm, ask, compare, model_of, others, turn
from memory3.errors import InputError, ServingError

GOES_ON = '{"ignore_eos": true, "stream_options": {"include_usage": true}}'


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served.server(tmp_path_factory.mktemp("banks")) as running:
        yield running.address


@contextmanager
def speaker(*said: dict[str, Any], pause: float = 0.0, heard: list[tuple[str, str]] | None = None) -> Iterator[str]:
    """A server that is not ours: whatever it is asked, it streams these events, ``pause`` seconds before each.

    ``heard``: models that it was asked for, and questions.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if heard is not None:
                heard.append((body["model"], body["messages"][-1]["content"]))
            self.send_response(200)
            self.end_headers()
            for one in said:
                time.sleep(pause)
                self.wfile.write(b"data: " + json.dumps(one).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(said[0]).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": tokens}}


def arm_at(address: str) -> Arm:
    where = urlsplit(address)
    return Arm("peer", str(where.hostname), where.port or 0, "m", "", {})


def test_another_server_answers_as_many_tokens_as_are_asked_for(address: str) -> None:
    (arm,) = others(f"peer={address}", GOES_ON, ["memory"])
    assert (arm.name, arm.mode, "@" in arm.model) == ("peer", "", True)
    seconds, asked = turn(arm, ["Who built it?", "Keys?", "The river?"], 2, 9)
    assert [one.tokens for one in asked] == [9, 9, 9]
    assert all(one.prompt > 5 and 0 < one.first < one.total < seconds for one in asked)


def test_a_model_is_named_behind_the_address(address: str) -> None:
    (arm,) = others(f"peer={address}#no-such", GOES_ON, [])
    with pytest.raises(ServingError, match=r"peer answers 404: .*no-such"):
        ask(arm, "Keys?", 3)


def test_bodies_are_for_all_or_for_each_by_name() -> None:
    against = "a=http://127.0.0.1:1#m,b=http://127.0.0.1:2#/models/n"
    assert [arm.body for arm in others(against, GOES_ON, [])] == [json.loads(GOES_ON)] * 2
    first, second = others(against, '{"b": {"ignore_eos": true}}', [])
    assert (first.body, second.body) == ({}, {"ignore_eos": True})
    assert (second.host, second.port, second.model) == ("127.0.0.1", 2, "/models/n")
    assert others("", "{}", []) == []


def test_an_answer_of_another_length_is_refused(address: str) -> None:
    (short,) = others(
        f"peer={address}", '{"max_tokens": 4, "ignore_eos": true, "stream_options": {"include_usage": true}}', []
    )
    with pytest.raises(ServingError, match="peer answered 4 tokens where 9 were asked for"):
        ask(short, "Keys?", 9)


def test_a_stream_without_usage_is_refused(address: str) -> None:
    (silent,) = others(f"peer={address}", '{"ignore_eos": true}', [])
    with pytest.raises(ServingError, match=r"usage in streams \(--against-body\)"):
        ask(silent, "Keys?", 9)


def test_the_first_token_is_the_first_text() -> None:
    """Some say first who speaks, or tell usage with the last piece."""
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    with speaker(role, piece("a"), piece("b") | {"usage": usage(2)["usage"]}, pause=0.1) as address:
        asked = ask(arm_at(address), "Keys?", 2)
    assert (asked.tokens, asked.prompt) == (2, 11)
    assert asked.first >= 0.2  # not who speaks
    assert asked.total >= asked.first + 0.09  # not the last piece


def test_an_error_within_a_stream_is_no_answer() -> None:
    said = [piece("a"), {"error": "the worker is dead"}, usage(2)]
    with speaker(*said) as address, pytest.raises(ServingError, match=r"peer failed within an answer: .*the worker is dead"):
        ask(arm_at(address), "Keys?", 2)


def test_what_is_no_server_is_said() -> None:
    unused = "http://127.0.0.1:9"
    with pytest.raises(ServingError, match=r"127.0.0.1:9 does not answer: .*refused"):
        others(f"peer={unused}", "{}", [])
    with pytest.raises(ServingError, match=r"peer at 127.0.0.1:9 does not answer: .*refused"):
        turn(arm_at(unused), ["Keys?"] * 3, 2, 2)


@pytest.mark.parametrize("said", [{"data": []}, {"models": ["m"]}, {"data": [{}]}])
def test_a_server_that_lists_no_model_is_said(said: dict[str, Any]) -> None:
    with speaker(said) as address, pytest.raises(ServingError, match="names no model: write #MODEL"):
        model_of("127.0.0.1", urlsplit(address).port or 0)


@pytest.mark.parametrize(
    ("against", "body", "message"),
    [
        ("llama.cpp", "{}", "NAME=http://HOST:PORT"),
        ("a=https://127.0.0.1:1#m", "{}", "NAME=http://HOST:PORT"),
        ("a=http://127.0.0.1:1/v1#m", "{}", "NAME=http://HOST:PORT"),
        ("a=http://127.0.0.1:1#m,a=http://127.0.0.1:2#m", "{}", "'a' names two arms"),
        ("text=http://127.0.0.1:1#m", "{}", "'text' names two arms"),
        ("a=http://127.0.0.1:1#m", "[1]", "write a JSON object"),
        ("a=http://127.0.0.1:1#m", "ignore_eos", "write a JSON object"),
    ],
)
def test_what_cannot_be_meant_is_refused(against: str, body: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        others(against, body, ["memory", "text"])


def test_arms_take_turns_and_another_server_is_asked_the_questions_of_the_first() -> None:
    heard: list[tuple[str, str]] = []
    with speaker(piece("a"), usage(2), heard=heard) as address:
        where = urlsplit(address)
        arms = [
            Arm(name, str(where.hostname), where.port or 0, name, mode, {})
            for name, mode in (("memory", "memory"), ("text", "text"), ("peer", ""))
        ]
        numbers = itertools.count()
        found = compare(
            arms, lambda: f"question {next(numbers)}", lambda arm, text: f"{arm.name} of {text}", 2, 3, 2, range(2)
        )
    assert [name for name, _ in itertools.groupby(name for name, _ in heard)] == ["memory", "text", "peer", "text", "memory"]
    asked = {
        name: sorted(text.removeprefix(f"{name} of ") for model, text in heard if model == name)
        for name in ("memory", "text", "peer")
    }
    assert asked["memory"] == asked["peer"]
    assert len({*asked["memory"], *asked["text"]}) == 24  # no server twice
    assert set(found) == set(asked)
    for name, one in found.items():
        assert one["tokens_per_second"] == pytest.approx(2 * one["requests_per_second"])
        assert 0 < one["first_token_p50"] <= one["first_token_p95"] <= one["first_token_p99"]
        assert one["prompt_tokens"] == 11
        assert ("memory_requests_ratio" in one) == (name != "memory")


@pytest.mark.long
@pytest.mark.real
def test_the_benchmark_against_another_server(default_model_path: str, address: str) -> None:
    """All of it: `memory3 serve` in a process of its own, in two modes, and a server of a model of some thousand weights,
    which gets the passages in its prompt."""
    options = {"model": default_model_path, "references": "6", "clients": "2", "tokens_in": "32", "tokens_out": "5"}
    options |= {"modes": "memory,text", "requests": "1", "repeats": "1", "k": "3", "against": f"peer={address}"}
    found = benchmarks.run("serve", options)["32 in, 2 clients"]
    assert set(found) == {"memory", "text", "peer"}
    assert found["memory"]["prompt_tokens"] < 80
    assert found["text"]["prompt_tokens"] > 150
    assert found["peer"]["prompt_tokens"] > 150
    assert found["text"]["first_token_p95_ratio"] > 1
