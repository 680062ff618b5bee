"""Hostile requests against every route, and what they once broke."""

from __future__ import annotations

import contextlib
import io
import socket
import time
from urllib.parse import urlsplit

import fuzz_serving
import pytest
import served

from memory3.serving.data_folder import StorageLimits
from memory3.serving.limits import Limits

LONE = "\ud800"
CHAT = {"model": "tiny@docs", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
TOOL = {"type": "file_search", "vector_store_ids": ["docs"], "filters": {"type": "eq", "key": LONE, "value": 1}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = Limits(body_seconds=2.0, header_seconds=2.0)
    with served.server(tmp_path_factory.mktemp("server"), files=StorageLimits(), limits=limits) as running:
        yield running


def test_no_request_makes_the_server_fail_hang_or_leak(tmp_path):
    fuzz, figures = fuzz_serving.run(tmp_path, 500)
    assert not fuzz.faults, fuzz.faults[:5]
    assert figures["200"] > 30
    assert figures["400"] > 100


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": LONE}]}, "messages.0.content"),
        ("responses", {"model": "tiny", "input": "x", "instructions": LONE}, "instructions"),
        ("responses", {"model": "tiny", "input": "x", "metadata": {"a": LONE}}, "metadata"),
        ("responses", {"model": "tiny", "input": "x", "metadata": {"a": [float("nan")]}}, "metadata"),
        ("responses", {"model": "tiny", "input": "x", "tools": [TOOL]}, "tools.0.filters"),
        ("vector_stores/STORE/search", {"query": LONE}, "query"),
        ("vector_stores/STORE/search", {"query": ["x", LONE]}, "query.1"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(server, path, body, param):
    with server.http() as http:
        store = http.post("/v1/vector_stores", json={}).json()["id"]
        data = fuzz_serving.text(body).encode()
        answer = http.post(f"/v1/{path.replace('STORE', store)}", content=data, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    "body", [b"[" * 5000 + b"]" * 5000, b'{"model": ' + b"9" * 5000 + b"}", '{"a": "é"}'.encode("latin-1")]
)
def test_json_that_cannot_be_read_is_told_as_such(server, body):
    with server.http() as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_what_a_bank_cannot_do_names_the_field_and_no_folder(server, tmp_path_factory):
    with server.http() as http:
        version = http.get("/banks/docs").json()["version"]
        for path, more, param in (
            ("records", {"ids": ["x"]}, "ids"),
            ("references", {"ids": ["x"]}, "ids"),
            ("count", {"where": {"a": [float("inf")]}}, "where"),
        ):
            data = fuzz_serving.text({"version": version, **more}).encode()
            answer = http.post(f"/banks/docs/{path}", content=data, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
            assert "/" not in answer.json()["error"]["message"]
        answer = http.get("/banks/docs/records/x")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reference_id")
        assert "/" not in answer.json()["error"]["message"]


def test_ranges_that_cannot_be_are_refused_in_the_shape_of_all_errors(server):
    with server.http() as http:
        file = http.post("/v1/files", files={"file": ("a.txt", b"abc")}, data={"purpose": "assistants"}).json()["id"]
        for path in (f"/v1/files/{file}/content", "/banks/docs/records/river%230"):
            answer = http.get(path, headers={"Range": "bytes=99999-"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (416, "Range")
            assert answer.headers["content-range"].startswith("bytes */")
        answer = http.get(f"/v1/files/{file}/content", headers={"Range": "nonsense"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Range")
        assert http.get(f"/v1/files/{file}/content", headers={"Range": "bytes=1-1"}).content == b"b"


def connected(server):
    parts = urlsplit(server.address)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def test_what_is_no_http_is_refused_in_the_shape_of_all_errors(server):
    with connected(server) as one:
        one.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        head, _, body = one.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'"code": "invalid_http"' in body


def test_who_leaves_in_an_upload_or_breaks_a_body_off_fills_no_log(server):
    head = b"POST /v1/%b HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        for path, body in (
            (b"files", b'Content-Length: 500\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'),
            (b"files", b"Content-Length: 9\r\n\r\n--b\r\n\xff\r\n"),
            (b"nowhere", b"Transfer-Encoding: chunked\r\n\r\n"),  # is answered, and then goes on with what is no chunk
        ):
            with connected(server) as one:
                one.sendall(head % path + body)
                time.sleep(0.2)
                with contextlib.suppress(OSError):
                    one.sendall(b"zz\r\n")
        with server.http() as http:
            assert http.get("/health").status_code == 200
        time.sleep(0.3)
    assert said.getvalue() == ""


def test_fifty_clients_that_do_not_read_or_write_keep_nobody_out(server):
    """A third of them never reads its stream, a third sends a head or a body byte by byte, a third has closed its half."""
    stream = (
        b'{"model":"tiny@docs","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":64,"ignore_eos":true}'
    )
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with contextlib.ExitStack() as stack, server.client() as client:
        before = fuzz_serving.right_answer(server)
        ones = [stack.enter_context(connected(server)) for _ in range(50)]
        for n, one in enumerate(ones):
            if n % 3 == 0:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                if n < 24:  # more would have to wait for a place, as anybody would
                    one.sendall(head % len(stream) + stream)
            elif n % 3 == 1:
                one.sendall(head[: 20 + n])
            else:
                one.sendall(head % len(stream) + stream[:30])
                if n % 2:
                    one.shutdown(socket.SHUT_WR)
        slowest = 0.0
        for turn in range(6):
            for n, one in enumerate(ones):
                if n % 3 == 1:
                    with contextlib.suppress(OSError):  # its time may be over
                        one.sendall(b"a")
            began = time.perf_counter()
            assert fuzz_serving.right_answer(server) == before, turn
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.1)
        assert slowest < 5
        assert client.models.list().data
    server.wait_until_idle()


def test_the_servers_own_description_tells_how_it_refuses(server):
    with server.http() as http:
        for path, methods in http.get("/openapi.json").json()["paths"].items():
            for method, told in methods.items():
                assert "4XX" in told["responses"], (method, path)
                assert "422" not in told["responses"], (method, path)
