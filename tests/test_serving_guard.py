"""What a server does with strangers: keys, tenants, bounds, slow and absent clients, broken bodies, banks that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

import openai
import pytest
import served
from strangers import *  # noqa: F403 (pytest runs its tests with the server of this file)
from strangers import CHAT, QUESTION, many_clients

from memory3.errors import ConfigError, FingerprintMismatch
from memory3.serving.catalogue import Banks, Served
from memory3.serving.data_folder import DataFolder
from memory3.serving.guard import Guard
from memory3.serving.keys import Keys, Tenant
from memory3.serving.limits import Limits
from memory3.serving.listening import address_of, from_elsewhere
from memory3.serving.state import ServerState
from memory3.serving.stored_files import StoredFiles

ALL, DOCS, SECRET = "sk-everything-0001", "sk-only-docs-00001", "sk-only-secret-001"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    keys = ["# keys", ALL, "", f"{DOCS}  docs", f"{SECRET} secret  # a comment"]
    with served.server(tmp_path_factory.mktemp("banks"), keys=keys) as running:
        yield running


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    limits = Limits(body_bytes=20_000, body_seconds=1.0, header_seconds=1.0, seconds=60, connections=24)
    with served.server(tmp_path_factory.mktemp("banks"), limits=limits, slots=2, waiting=2) as running:
        yield running


# ---- keys ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["short"], "line 1"),
        ([ALL, ALL], "twice"),
        (["# nothing"], "no key"),
        (["sk-ünïcode-0123456789"], "line 1"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused_without_telling_a_key(tmp_path, lines, said):
    path = tmp_path / "keys"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        Keys.read(path)
    assert not any(line in str(caught.value) for line in lines)


def test_a_key_of_a_bank_that_is_not_served_is_refused():
    keys = Keys.of([f"{DOCS} docs dosc"])
    with pytest.raises(ConfigError, match="dosc"):
        keys.check_banks(["docs", "secret"])
    keys.check_banks(["docs", "dosc"])


def test_without_a_key_only_the_pulse_can_be_felt(guarded):
    with guarded.http() as http:
        assert http.get("/health").status_code == http.get("/ready").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/passages", "/nix"):
            answer = http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        for key in ("", "Bearer", "Bearer x", f"Basic {ALL}", f"Bearer {ALL}x", f"Bearer {ALL[:-1]}", "Bearer \xff"):
            headers = [(b"authorization", key.encode("latin-1"))]
            assert http.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 401
    assert all(line["key"] is None for line in guarded.log if line["status"] == 401)


def test_a_key_opens_its_banks_alone(guarded):
    ids = {key: [one.id for one in guarded.client(key).models.list()] for key in (ALL, DOCS, SECRET)}
    assert ids == {
        ALL: ["tiny", "tiny@docs", "tiny@secret"],
        DOCS: ["tiny", "tiny@docs"],
        SECRET: ["tiny", "tiny@secret"],
    }
    assert guarded.client(DOCS).chat.completions.create(**CHAT).choices
    assert guarded.client(DOCS).chat.completions.create(**{**CHAT, "model": "tiny"}).choices


def test_a_bank_that_is_not_there_and_one_of_another_are_the_same(guarded):
    def without_names(answer):
        return answer.status_code, answer.text.replace("secret", "NAME").replace("absent", "NAME"), sorted(answer.headers)

    with guarded.http(headers={"Authorization": f"Bearer {DOCS}"}) as http:
        for path, body in (
            ("chat/completions", {"messages": QUESTION}),
            ("completions", {"prompt": "x"}),
            ("responses", {"input": "x"}),
            ("embeddings", {"input": "x"}),
        ):
            answers = [http.post(f"/v1/{path}", json={"model": f"tiny@{name}", **body}) for name in ("secret", "absent")]
            assert answers[0].status_code == 404
            assert without_names(answers[0]) == without_names(answers[1])
        passages = [http.get("/v1/passages", params={"bank": name, "id": "plan#0"}) for name in ("secret", "absent")]
        assert without_names(passages[0]) == without_names(passages[1])
        models = [http.get(f"/v1/models/tiny@{name}") for name in ("secret", "absent")]
        assert without_names(models[0]) == without_names(models[1])


def test_not_even_time_tells_of_a_bank_of_another(guarded):
    """Medians of requests in turn. Were the bank opened or looked into, it would take milliseconds more."""
    times = {"secret": [], "absent": []}
    body = {"messages": QUESTION}
    with guarded.http(headers={"Authorization": f"Bearer {DOCS}"}) as http:
        for n in range(300):
            for name in ("secret", "absent") if n % 2 else ("absent", "secret"):
                began = time.perf_counter()
                http.post("/v1/chat/completions", json={"model": f"tiny@{name}", **body})
                times[name].append(time.perf_counter() - began)
    secret, absent = (statistics.median(times[name]) for name in ("secret", "absent"))
    assert abs(secret - absent) < 0.15 * absent, (secret, absent)


def test_metrics_count_and_name_nobody(guarded):
    client = guarded.client(SECRET)
    client.chat.completions.create(**{**CHAT, "model": "tiny@secret"})
    with guarded.http(headers={"Authorization": f"Bearer {DOCS}"}) as http:
        text = http.get("/metrics").text
    assert not any(
        name in text for name in ("secret", "docs", "key-", *(tenant.name for tenant in guarded.state.keys.tenants.values()))
    )
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['memory3_tokens_total{kind="answer"}']) >= 4
    assert float(values["memory3_first_token_seconds_count"]) >= 1
    assert float(values["memory3_retrieval_seconds_count"]) >= 1
    assert float(values["memory3_recalls_total"]) >= 1
    tiers = {tier: float(values[f'memory3_cache_bytes{{tier="{tier}"}}']) for tier in ("device", "ram", "disk")}
    assert tiers["ram"] > tiers["device"] == tiers["disk"] == 0
    read = float(values["memory3_bank_reads_total"])
    assert read == float(values['memory3_cache_misses_total{tier="ram"}']) > 0
    assert float(values["memory3_queue"]) == float(values["memory3_running"]) == 0
    assert 'route="unknown"' not in text or "/nix" not in text


def test_the_log_has_a_line_for_each_request_and_no_key(guarded):
    with guarded.http(headers={"Authorization": f"Bearer {ALL}"}) as http:
        own = http.get("/v1/models", headers={"X-Request-Id": "my-id.7"})
        made = http.get("/v1/models", headers={"X-Request-Id": "bad id\x22"})
    assert own.headers["x-request-id"] == "my-id.7"
    assert made.headers["x-request-id"].startswith("req-")
    until = time.monotonic() + 5
    while len(lines := [one for one in guarded.log if one["id"] in ("my-id.7", made.headers["x-request-id"])]) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [line["status"] for line in lines] == [200, 200]
    assert lines[0]["path"] == "/v1/models"
    assert lines[0]["key"].startswith("key-")
    assert not any(key in json.dumps(guarded.log) for key in (ALL, DOCS, SECRET))


# ---- bounds --------------------------------------------------------------------------------------------------------------


def raw(server, data, *, pause=0.0, pieces=1, seconds=10.0):
    """Sends bytes in pieces, with pauses; gives back what came until the server closed."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        size = -(-len(data) // pieces) or 1
        try:
            for first in range(0, len(data), size):
                connection.sendall(data[first : first + size])
                time.sleep(pause)
            got = b""
            while part := connection.recv(65536):
                got += part
        except (ConnectionResetError, BrokenPipeError):
            return b""
        return got


def test_a_body_that_is_too_large_is_refused_before_it_is_read(strict):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    got = raw(strict, head + b"Content-Length: 1000000000\r\n\r\n{")
    assert b" 413 " in got.splitlines()[0]
    assert b"20,000 bytes" in got


def test_a_body_without_a_length_is_bounded_too(strict):
    def endless():
        for _ in range(100):
            yield b" " * 1000

    with strict.http() as http:
        answer = http.post("/v1/chat/completions", content=endless(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] is None or answer.json()["error"]["message"]


def test_a_slow_body_is_given_up(strict):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    began = time.monotonic()
    got = raw(strict, head + b"{")
    assert b" 408 " in got.splitlines()[0]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("data", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A"])
def test_a_slow_head_is_given_up(strict, data):
    began = time.monotonic()
    assert raw(strict, data) == b""
    assert 0.5 < time.monotonic() - began < 5


def test_a_head_that_trickles_is_given_up(strict):
    began = time.monotonic()
    data = b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(100))
    assert raw(strict, data, pause=0.05, pieces=100) == b""
    assert time.monotonic() - began < 5


def test_slow_clients_do_not_keep_others_out(strict):
    host, port = strict.address.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(16)]
    try:
        for connection in slow:
            connection.sendall(b"GET /hea")
        with strict.http() as http:
            assert http.get("/health").status_code == 200
        time.sleep(1.5)
        assert all(_is_closed(connection) for connection in slow)
    finally:
        for connection in slow:
            connection.close()


def test_too_many_connections_are_told_so_in_the_usual_shape(strict):
    strict.wait_until_idle()
    host, port = strict.address.removeprefix("http://").split(":")
    others = [socket.create_connection((host, int(port))) for _ in range(24)]
    try:
        got = raw(strict, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    finally:
        for connection in others:
            connection.close()
    head, _, body = got.partition(b"\r\n\r\n")
    assert b" 503 " in head.splitlines()[0]
    assert b"retry-after: 1" in head.lower()
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("server_error", "busy")
    assert "24 connections" in error["message"]


def _is_closed(connection):
    connection.settimeout(2)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_head_that_is_too_large_is_refused(strict):
    got = raw(strict, b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1_000_000 + b"\r\n\r\n")
    assert got == b"" or b" 400 " in got.splitlines()[0]


def test_a_request_whose_time_is_over_gets_what_there_is(tmp_path):
    with served.server(tmp_path, limits=Limits(seconds=0.5)) as server:
        answer = server.client().chat.completions.create(**{**CHAT, "max_tokens": 3000})
        about = answer.choices[0].model_extra["memory3"]
        assert about["finish"] == "time"
        assert answer.choices[0].finish_reason == "length"
        assert 0 < answer.usage.completion_tokens < 3000


# ---- clients that go away ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_streams_that_nobody_reads_free_their_places(tmp_path):
    limits = Limits(unread_seconds=1.0)
    asked = {**CHAT, "max_tokens": 3000, "stream": True, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with served.server(tmp_path, limits=limits, slots=2, waiting=8) as server:
        host, port = server.address.removeprefix("http://").split(":")
        unread = []
        try:
            for _ in range(5):
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.connect((host, int(port)))
                connection.sendall(head % len(body) + body)
                unread.append(connection)
            until = time.monotonic() + 120
            while len(server.log) < len(unread):  # a line is written when a request has ended
                assert time.monotonic() < until, server.log
                time.sleep(0.05)
            server.wait_until_idle(5)
            assert all(line["bytes"] < 3000 * 2000 for line in server.log), "they were not cut"
            while server.server.server_state.connections:
                assert time.monotonic() < until
                time.sleep(0.05)
            assert server.client().chat.completions.create(**CHAT).choices
        finally:
            for connection in unread:
                connection.close()


def test_a_slow_reader_is_not_cut_off(tmp_path):
    """Slower than the bound from end to end, but it reads."""
    asked = {**CHAT, "max_tokens": 400, "stream": True, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with served.server(tmp_path, limits=Limits(unread_seconds=0.5)) as server, socket.socket() as connection:
        host, port = server.address.removeprefix("http://").split(":")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(30)
        connection.connect((host, int(port)))
        connection.sendall(head % len(body) + body)
        began, got = time.monotonic(), b""
        while b"[DONE]" not in got[-100:]:
            part = connection.recv(1 << 16)
            assert part, "it was cut off"
            got += part
            if time.monotonic() - began < 3:
                time.sleep(0.1)
        assert time.monotonic() - began > 2


# ---- hostile bodies ------------------------------------------------------------------------------------------------------


def test_other_content_types_and_methods_are_refused_in_the_same_shape(strict):
    with strict.http() as http:
        for answer in (
            http.post(
                "/v1/chat/completions", content=b"model=tiny", headers={"Content-Type": "application/x-www-form-urlencoded"}
            ),
            http.post("/v1/chat/completions", files={"file": b"x"}),
            http.get("/v1/chat/completions"),
            http.delete("/v1/models"),
            http.get("/v1/nix"),
            http.get("/v1/passages"),
            http.get("/v1/passages?bank=docs&id=%00"),
        ):
            assert answer.status_code in (400, 404, 405)
            assert answer.json()["error"]["message"]


def test_cors_is_off_unless_asked_for(strict, tmp_path):
    origin = {"Origin": "https://example.org"}
    with strict.http() as http:
        assert "access-control-allow-origin" not in http.get("/v1/models", headers=origin).headers
    with served.server(tmp_path, banks={}, keys=[ALL], cors=("https://example.org",)) as server, server.http() as http:
        assert http.get("/v1/models", headers=origin).headers["access-control-allow-origin"] == "https://example.org"
        asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert http.options("/v1/chat/completions", headers=asked).status_code == 200
        other = http.get("/v1/models", headers={"Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


# ---- banks that change ---------------------------------------------------------------------------------------------------


def test_a_bank_that_is_written_while_it_is_served_is_seen(tmp_path):
    from bank_writer import HashingEmbedder

    from memory3 import Bank, Document

    with served.server(tmp_path) as server:
        writer = Bank.open(tmp_path / "docs", server.state.m3, embedder=HashingEmbedder())
        writer.write([Document("new", "Zebras have stripes of black and white. " * 3, "zebra.md")])
        until = time.monotonic() + 15
        asked = {"model": "tiny@docs", "messages": [{"role": "user", "content": "Zebras have stripes of black"}]}
        while True:
            answer = server.client().chat.completions.create(**asked, max_tokens=4)
            if any(one["document_id"] == "new" for one in answer.choices[0].model_extra["memory3"]["citations"]):
                break
            assert time.monotonic() < until
            time.sleep(0.2)


def test_a_bank_whose_look_fails_in_an_odd_way_is_looked_at_again():
    looks, told = threading.Semaphore(0), []

    class Odd:
        def refresh(self):
            looks.release()
            raise KeyError("not of memory3")

        def close(self):
            pass

    banks = Banks(served.tiny_memory3())
    banks.add(Served("odd", Odd()))
    thread = banks.watch(0.01, lambda name, error: told.append((name, type(error))))
    assert all(looks.acquire(timeout=20) for _ in range(3))
    banks.close()
    thread.join(20)
    assert set(told) == {("odd", KeyError)}


def test_a_bank_that_is_deleted_while_it_is_served_fails_its_own_requests_alone(tmp_path):
    with served.server(tmp_path) as server:
        client = server.client()
        assert client.chat.completions.create(**CHAT).choices
        shutil.rmtree(tmp_path / "docs")
        time.sleep(3)
        for question in ("Where does the river rise?", "What of the old town?"):
            with server.http() as http:
                answer = http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": question}]})
                assert answer.status_code in (200, 404, 503)
                assert str(tmp_path) not in answer.text
        assert client.chat.completions.create(**{**CHAT, "model": "tiny@secret"}).choices
        assert client.chat.completions.create(**{**CHAT, "model": "tiny"}).choices
        server.wait_until_idle()


def test_a_bank_that_was_rebuilt_for_another_model_is_refused_until_it_is_ours_again():
    """What is open of it is old: it would cite what was deleted since."""
    looks, foreign = threading.Semaphore(0), threading.Event()
    foreign.set()

    class Rebuilt:
        def refresh(self):
            looks.release()
            if foreign.is_set():
                raise FingerprintMismatch("theirs", "ours")

        def close(self):
            pass

    banks, tenant = Banks(served.tiny_memory3()), Tenant("all", None)
    banks.add(Served("docs", Rebuilt()))
    assert banks.get("docs", tenant).name == "docs"
    thread = banks.watch(0.01, lambda name, error: None)
    assert all(looks.acquire(timeout=20) for _ in range(2))
    with pytest.raises(FingerprintMismatch):
        banks.get("docs", tenant)
    foreign.clear()
    assert all(looks.acquire(timeout=20) for _ in range(100))
    assert banks.get("docs", tenant).name == "docs"
    banks.close()
    thread.join(20)


def test_a_request_that_a_stopping_server_cuts_off_is_told_so_in_the_usual_shape():
    sent, lines, m3 = [], [], served.tiny_memory3()

    async def slow(_scope, _receive, _send):
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def ask():
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": []}
        guard = Guard(slow, ServerState(m3, None, Banks(m3)), lines.append)
        task = asyncio.create_task(guard(scope, None, send))
        await asyncio.sleep(0.05)
        task.cancel()  # as uvicorn does when the time to drain is over
        await task

    asyncio.run(ask())
    assert sent[0]["status"] == 503
    error = json.loads(sent[1]["body"])["error"]
    assert (error["type"], error["code"]) == ("server_error", "shutting_down")
    assert json.loads(lines[0])["status"] == 503


# ---- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, tiny_model_path):
    """``memory3 serve`` in a process of its own, on a bank of that model."""
    processes = []

    def start(*options):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        arguments = [sys.executable, "-m", "memory3", "serve", "--model", tiny_model_path, "--port", "0", "--json", *options]
        errors = (tmp_path / "stderr").open("w")
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(10)


def told(process):
    """The JSON document that the command prints."""
    text = ""
    while line := process.stdout.readline():
        text += line
        if line.rstrip() == "}":
            return json.loads(text)
    raise AssertionError(text)


def test_sigterm_lets_requests_end_that_have_begun(command, tmp_path):
    process = command("--name", "tiny")
    address = told(process)["address"]
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 300}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True)
    text = next(iter(stream)).choices[0].delta.content or ""
    process.send_signal(signal.SIGTERM)
    text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole
    assert process.wait(30) == 0
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    lines = [json.loads(line) for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("{")]
    assert [line["path"] for line in lines] == ["/v1/chat/completions"] * 2


@contextlib.contextmanager
def long_streams(process):
    """Streams that take a while, whatever the model says."""
    client = openai.OpenAI(base_url=f"{told(process)['address']}/v1", api_key="none", max_retries=0)
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 450, "n": 8, "extra_body": {"ignore_eos": True}}
    with contextlib.ExitStack() as streams:
        for _ in range(8):
            next(iter(streams.enter_context(client.chat.completions.create(**asked, stream=True))))
        yield


@pytest.mark.long
def test_streams_that_go_on_are_cut_off_when_the_time_to_drain_is_over(command, tmp_path):
    process = command("--name", "tiny", "--drain", "1")
    with long_streams(process):
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        took = time.monotonic() - began
    assert 0.9 < took < 3.0, took  # the rest is the end of Python and torch, which this machine may be slow at
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    assert "cut off" in said


def test_a_second_signal_cuts_requests_off_and_prints_no_traceback(command, tmp_path):
    process = command("--name", "tiny", "--drain", "60")
    with long_streams(process):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    assert "cut off" in said


def test_a_bank_of_another_model_is_refused_at_the_start(command, tmp_path):
    from bank_writer import HashingEmbedder

    from memory3 import Bank

    Bank.open(tmp_path / "other", served.tiny_memory3(), embedder=HashingEmbedder()).close()
    process = command("--bank", str(tmp_path / "other"))
    assert process.wait(60) == 1
    said = (tmp_path / "stderr").read_text()
    assert "fingerprint" in said or "hashing" in said


def test_a_port_that_is_taken_is_said(command, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = command("--port", str(taken.getsockname()[1]))
        assert process.wait(60) == 1
    assert "it is taken" in (tmp_path / "stderr").read_text()


def test_all_addresses_are_told_by_one_that_can_be_asked(command, tmp_path):
    process = command("--host", "0.0.0.0", "--name", "tiny")
    address = told(process)["address"]
    assert address.startswith("http://127.0.0.1:")
    assert openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0).models.list().data
    assert "warning: no keys: everybody who reaches 0.0.0.0 may ask" in (tmp_path / "stderr").read_text()


def test_files_of_a_key_that_is_gone_are_told_at_the_start(command, tmp_path):
    data = DataFolder(tmp_path / "files")
    with StoredFiles(data).arriving("key-0123456789ab") as file:
        file.write(b"river" * 300)
        file.keep("river.txt", "assistants")
    folder = data.tenant("key-0123456789ab")
    data.close()
    (tmp_path / "keys").write_text(ALL)
    told(command("--files", str(tmp_path / "files"), "--api-key-file", str(tmp_path / "keys")))
    said = (tmp_path / "stderr").read_text()
    assert f"note: {folder} holds 1 file (1.5 KB) and 0 vector stores of a key that is not there any more" in said


def test_addresses():
    assert address_of("::", 80) == "http://[::1]:80"
    assert address_of("10.0.0.7", 80) == from_elsewhere("10.0.0.7", 80) == "http://10.0.0.7:80"
    assert from_elsewhere("127.0.0.1", 80) is None
    for any_address in ("0.0.0.0", "::"):
        found = from_elsewhere(any_address, 80)
        assert found is None or not ({"0.0.0.0", "127.0.0.1", "[::]", "[::1]"} & {found[7:].rsplit(":", 1)[0]})


# ---- many at once --------------------------------------------------------------------------------------------------------


def test_many_clients_of_whom_some_go_away_get_right_answers_and_leave_nothing(tmp_path):
    with served.server(tmp_path, slots=6, waiting=64) as server:
        many_clients(server)
