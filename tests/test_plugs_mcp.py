"""The MCP server, by the SDK's own client over real HTTP and stdio: its tools, their bounds, keys, and clients that go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest
import served
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from memory3 import Bank, Document
from memory3.errors import ConfigError
from memory3.plugs.mcp import BankTools, http_server, make_server
from memory3.serving.keys import Tenant

QUESTION = "Who built the bridge, and when?"
KEYS = ["everything-0123456789", "only-docs-0123456789 docs", "only-secret-0123456789 secret"]


@contextlib.contextmanager
def mcp_of(running, *, write=True, bank="docs"):
    """The address of an MCP server over a bank of a running server, in a thread."""
    tools = make_server(BankTools(running.state, bank), write=write)
    server = http_server(tools, running.state, bank, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield f"{server.address}/mcp"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(name="running", scope="module")
def running_server(tmp_path_factory):
    with served.server(tmp_path_factory.mktemp("banks")) as running:
        yield running


@pytest.fixture(name="url", scope="module")
def mcp_address(running):
    with mcp_of(running) as url:
        yield url


@pytest.fixture(name="bank")
def bank_of(running):
    """The bank that is served; what a test writes is gone after it."""
    bank = running.state.banks.get("docs", Tenant()).bank
    before = {entry.id for entry in bank.documents()}
    yield bank
    bank.delete([entry.id for entry in bank.documents() if entry.id not in before])


async def session(url, calls, **options):
    async with Client(url, **options) as client:
        return [await client.call_tool(name, arguments) for name, arguments in calls]


def call(url, tool, **arguments):
    """What a tool returns; it must not fail."""
    (result,) = asyncio.run(session(url, [(tool, arguments)]))
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


def refused(url, tool, **arguments):
    """What a tool says that refuses."""
    (result,) = asyncio.run(session(url, [(tool, arguments)]))
    assert result.is_error, result.structured_content
    return result.content[0].text


# ---- tools ---------------------------------------------------------------------------------------------------------------


def test_tools_that_change_the_bank_are_offered_only_where_they_are_allowed(running, url):
    async def names(url):
        async with Client(url) as client:
            return {tool.name: tool.annotations.read_only_hint for tool in (await client.list_tools()).tools}

    reading = {"search": True, "ask": True}
    assert asyncio.run(names(url)) == {**reading, "write": False, "forget": False}
    with mcp_of(running, write=False) as read_only:
        assert asyncio.run(names(read_only)) == reading
        assert "Unknown tool: forget" in refused(read_only, "forget", ids=["bridge"])
        assert "Unknown tool: write" in refused(read_only, "write", text="x")


def test_search_finds_what_the_bank_finds(url, bank):
    (hits,) = bank.search([QUESTION], 3)
    found = call(url, "search", query=QUESTION, k=3)["passages"]
    assert [each["score"] for each in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    for each, reference in zip(found, bank.references([hit.reference_id for hit in hits]), strict=True):
        assert (each["text"], each["source"], each["start"]) == (reference.text, reference.source, reference.start)
        assert (each["document_id"], each["end"]) == (reference.document_id, reference.end)
    only = call(url, "search", query=QUESTION, where={"year": [1873, 1874]})["passages"]
    assert {each["document_id"] for each in only} == {"town"}
    assert only[0]["metadata"] == {"title": "The town", "year": 1874}
    assert call(url, "search", query=QUESTION, where={"year": 7})["passages"] == []


@pytest.mark.parametrize("mode", ["memory", "text", "none"])
def test_ask_answers_as_the_library_does(running, url, bank, mode):
    expected = running.state.m3.generate(QUESTION, bank=None if mode == "none" else bank, mode=mode, max_new_tokens=40)
    got = call(url, "ask", question=QUESTION, mode=mode, max_tokens=40)
    assert got["answer"] == expected.text
    assert got["ended"] == ("length" if expected.usage.answer_tokens == 40 else "stop")
    assert got["found"] is expected.found is None  # of an embedder that was fitted to nothing
    cited = [(each["document_id"], each["start"], each["end"], each["text"]) for each in got["citations"]]
    assert cited == [(each.document_id, each.start, each.end, each.text) for each in expected.citations]
    assert [each["share"] for each in got["citations"]] == pytest.approx([each.share for each in expected.citations], abs=1e-4)
    assert bool(cited) is (mode != "none")


def test_an_answer_that_reads_nothing_says_why(url):
    got = call(url, "ask", question=QUESTION, where={"year": 7}, max_tokens=4)
    assert got["citations"] == []
    assert "year" in got["note"]


def test_many_ask_at_once(running, url, bank):
    questions = [f"{QUESTION} And number {number}?" for number in range(10)]
    expected = [running.state.m3.generate(each, bank=bank, max_new_tokens=24).text for each in questions]

    async def all_at_once():
        async with Client(url) as client:
            calls = [client.call_tool("ask", {"question": each, "max_tokens": 24}) for each in questions]
            return [each.structured_content["answer"] for each in await asyncio.gather(*calls)]

    assert asyncio.run(all_at_once()) == expected


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_clients_of_both_protocols_are_answered(url, mode):
    (result,) = asyncio.run(session(url, [("search", {"query": QUESTION})], mode=mode))
    assert len(result.structured_content["passages"]) == 5


# ---- changes -------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_found_cited_and_forgotten(url, bank):
    text = "The fair of Holm begins on the third of June. Visitors pay three crowns, children nothing."
    made = call(url, "write", text=text, source="fair.md", metadata={"year": 2021, "draft": False})
    assert made == {"id": "fair.md", "state": "added", "references": bank.count({"year": 2021})}
    assert call(url, "write", text=text, source="fair.md", metadata={"year": 2021, "draft": False})["state"] == "unchanged"
    found = call(url, "search", query="Visitors pay three crowns, children nothing.", k=2)["passages"]
    assert ("fair.md", {"year": 2021, "draft": False}) in [(each["document_id"], each["metadata"]) for each in found]
    asked = call(url, "ask", question="When is the fair of Holm?", where={"year": 2021}, max_tokens=8)
    assert {each["source"] for each in asked["citations"]} == {"fair.md"}
    assert call(url, "write", text="Another text of the fair.", source="fair.md")["state"] == "changed"
    assert call(url, "forget", ids=["fair.md", "nothing"]) == {"forgotten": ["fair.md"], "missing": ["nothing"]}
    assert call(url, "search", query="fair", where={"year": 2021})["passages"] == []
    assert "fair.md" not in {entry.id for entry in bank.documents()}


def test_forgetting_by_source_takes_all_that_came_from_there(url, bank):
    for name in ("a", "b"):
        call(url, "write", text=f"The {name} of a book.", id=name, source="book.epub")
    call(url, "write", text="Not of that book.", id="c", source="book")
    gone = call(url, "forget", sources=["book.epub", "other"], purge=True)
    assert gone == {"forgotten": ["a", "b"], "missing": ["other"]}
    assert {entry.id for entry in bank.documents()} >= {"bridge", "c"}
    assert call(url, "ask", question=QUESTION, max_tokens=4)["citations"], "read on after a purge"


def test_another_source_under_the_same_id_is_replaced_only_where_that_is_said(url, bank):
    call(url, "write", text="The first.", id="x", source="one.md")
    assert "another id, or replace it with replace=true" in refused(url, "write", text="The second.", id="x", source="two.md")
    assert bank.references(["x#0"])[0].text == "The first."
    assert call(url, "write", text="The second.", id="x", source="two.md", replace=True)["state"] == "changed"
    bank.refresh()
    assert bank.references(["x#0"])[0].text == "The second."


@pytest.mark.parametrize("text", ['["a", "list"]', '{"a": 1}', "17", "null", "\x00\x1b[31m red", "🙂 東京"])
def test_texts_are_kept_as_they_are(url, bank, text):
    """The SDK reads JSON out of texts for parameters that are no texts."""
    made = call(url, "write", text=text, id=text, source=text, metadata={"kept": text})
    bank.refresh()
    (reference,) = bank.references([f"{made['id']}#0"])
    assert (reference.text, reference.document_id, reference.source, reference.metadata) == (text, text, text, {"kept": text})


def test_what_another_process_wrote_can_be_forgotten(running, url, bank):
    with Bank.open(bank.pin().snapshot.path, running.state.m3, embedder=bank.embedder) as other:
        other.write([Document("late", "Written by another.", "late.md")])
    assert call(url, "forget", sources=["late.md"])["forgotten"] == ["late"]


# ---- bounds --------------------------------------------------------------------------------------------------------------

WRONG = [
    ("search", {}, "query"),
    ("search", {"query": ""}, "query"),
    ("search", {"query": "x" * 8_001}, "query"),
    ("search", {"query": 7}, "query"),
    ("search", {"query": "x", "k": 0}, "k"),
    ("search", {"query": "x", "k": 21}, "k"),
    ("search", {"query": "x", "k": "many"}, "k"),
    ("search", {"query": "x", "where": {"a": {"b": 1}}}, "where"),
    ("search", {"query": "x", "where": {"a": []}}, "where"),
    ("search", {"query": "x", "where": {f"k{n}": 1 for n in range(9)}}, "where"),
    ("search", {"query": "x", "where": {"": 1}}, "where"),
    ("ask", {"question": "x" * 8_001}, "question"),
    ("ask", {"question": " "}, "question"),
    ("ask", {"question": "x", "mode": "all"}, "mode"),
    ("ask", {"question": "x", "max_tokens": 513}, "max_tokens"),
    ("ask", {"question": "x", "max_tokens": 0}, "max_tokens"),
    ("ask", {"question": "why? " * 1_500}, "tokens"),
    ("write", {"text": ""}, "text"),
    ("write", {"text": " \n "}, "text"),
    ("write", {"text": "x" * 200_001}, "text"),
    ("write", {"text": "x", "id": "i" * 1_001}, "id"),
    ("write", {"text": "x", "metadata": {"a": [1]}}, "metadata"),
    ("write", {"text": "x", "metadata": {"a": None}}, "metadata"),
    ("write", {"text": "x", "metadata": {"a": float("inf")}}, "metadata"),
    ("write", {"text": "x", "metadata": {"m" * 1_001: 1}}, "metadata"),
    ("write", {"text": "x", "metadata": {f"k{n}": 1 for n in range(33)}}, "metadata"),
    ("forget", {}, "ids or sources"),
    ("forget", {"ids": []}, "ids or sources"),
    ("forget", {"ids": "bridge"}, "ids"),
    ("forget", {"ids": ["x"] * 101}, "ids"),
]


@pytest.mark.parametrize(("tool", "arguments", "named"), WRONG)
def test_what_cannot_be_meant_is_refused_by_name(url, bank, tool, arguments, named):
    before = sorted((entry.id, entry.content_hash) for entry in bank.documents())
    said = refused(url, tool, **arguments)
    assert named in said
    assert len(said) < 2_000
    bank.refresh()
    assert sorted((entry.id, entry.content_hash) for entry in bank.documents()) == before


def raw(url, content, **headers):
    given = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"} | headers
    return httpx2.post(url, content=content, headers=given, timeout=30)


def answered(answer):
    """The JSON of an answer, whether it came as such or as the only event of a stream."""
    lines = [line.removeprefix("data:") for line in answer.text.splitlines() if line.startswith("data:")]
    return json.loads(lines[-1] if lines else answer.text)


def tool_call(tool, arguments):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    return json.dumps(body)


@pytest.mark.parametrize("place", ["text", "id", "source", "key", "value"])
def test_halves_of_characters_are_refused(url, bank, place):
    """The SDK's client cannot send them; others can."""
    arguments = {"text": "x", "metadata": {}}
    if place in ("key", "value"):
        arguments["metadata"] = {"a\ud800": "x"} if place == "key" else {"a": "\ud800"}
    else:
        arguments[place] = "a\ud800"
    answer = raw(url, tool_call("write", arguments))
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        assert answered(answer)["result"]["isError"]
    assert {entry.id for entry in bank.documents()} == {"bridge", "river", "town"}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, (400,)),
        (b"{", {}, (400,)),
        (b"[]", {}, (400,)),
        (b"\xff" * 100, {}, (400,)),
        (b"[" * 100_000, {}, (400,)),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}', {}, (200, 400)),
        (b" " * (3 << 20), {}, (413,)),
        (tool_call("search", {"query": "x"}).encode(), {"Content-Type": "text/plain"}, (400, 415)),
        (tool_call("search", {"query": "x"}).encode(), {"Host": "evil.example"}, (421,)),
        (tool_call("search", {"query": "x"}).encode(), {"Origin": "https://evil.example"}, (403,)),
    ],
)
def test_hostile_requests_are_refused_and_the_server_lives(url, content, headers, status):
    answer = raw(url, content, **headers)
    assert answer.status_code in status
    if answer.status_code == 200:
        assert "error" in answered(answer)
    assert call(url, "search", query=QUESTION, k=1)["passages"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_needs_a_session_is_refused_at_once(url, method):
    """The protocol's answer of a server without sessions; a stream would stay open until the server stops."""
    headers = {"Accept": "text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    began = time.monotonic()
    with httpx2.Client(timeout=5) as client:
        answer = client.request(method, url, headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "sessions" in answer.json()["error"]["message"]
    assert time.monotonic() - began < 2


def test_a_full_engine_says_ask_again(tmp_path):
    with served.server(tmp_path, slots=1, waiting=0) as running, mcp_of(running) as url:

        async def many():
            async with Client(url) as client:
                calls = [client.call_tool("ask", {"question": QUESTION, "max_tokens": 200}) for _ in range(6)]
                return await asyncio.gather(*calls)

        results = asyncio.run(many())
        said = [each.content[0].text for each in results if each.is_error]
        assert 0 < len(said) < 6
        assert all("ask again in a moment" in each for each in said)
        assert call(url, "ask", question=QUESTION, max_tokens=4)["answer"]


def test_a_client_that_goes_frees_its_place(running, url):
    """The engine ends its answer where it stands."""

    def cancelled():
        lines = running.http().get("/metrics").text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if "answers_total" in line and 'reason="cancelled"' in line
        )

    async def give_up():
        async with Client(url) as client:
            asking = asyncio.create_task(client.call_tool("ask", {"question": QUESTION, "max_tokens": 400}))
            while not running.state.engine.state.running:
                await asyncio.sleep(0.005)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking

    before = cancelled()
    asyncio.run(give_up())
    running.wait_until_idle()
    assert cancelled() == before + 1


def test_a_bank_that_cannot_be_read_is_told_without_paths(tmp_path, capfd):
    with served.server(tmp_path) as running, mcp_of(running) as url:
        for path in (tmp_path / "docs").rglob("*.lance"):
            if path.is_file():
                path.write_bytes(b"")
        said = refused(url, "search", query=QUESTION)
        assert "cannot be read" in said
        assert str(tmp_path) not in said
    assert "BankCorrupt" in capfd.readouterr().err


# ---- keys ----------------------------------------------------------------------------------------------------------------


def with_key(url, key):
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def search():
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            return await client.call_tool("search", {"query": QUESTION})

    return asyncio.run(search())


def test_keys_and_the_banks_they_are_bound_to(tmp_path):
    with served.server(tmp_path, keys=KEYS) as running, mcp_of(running) as url:
        for key in ("everything-0123456789", "only-docs-0123456789"):
            assert with_key(url, key).structured_content["passages"]
        body = tool_call("search", {"query": QUESTION})
        for key, status in ((None, 401), ("wrong-0123456789", 401), ("only-secret-0123456789", 403)):
            answer = raw(url, body, **({"Authorization": f"Bearer {key}"} if key else {}))
            assert answer.status_code == status
            assert "bridge" not in answer.text


def test_other_machines_are_served_only_with_keys(running, tmp_path):
    tools = make_server(BankTools(running.state, "docs"))
    with pytest.raises(ConfigError, match="lets other machines use the bank"):
        http_server(tools, running.state, "docs", "0.0.0.0", 0)
    with served.server(tmp_path, keys=KEYS, banks={"docs": []}) as other:
        http_server(make_server(BankTools(other.state, "docs")), other.state, "docs", "0.0.0.0", 0)


# ---- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(name="real_bank", scope="module")
def bank_of_the_default_model(tmp_path_factory):
    from memory3 import Memory3

    path = tmp_path_factory.mktemp("real") / "notes"
    with Bank.open(path, Memory3.from_pretrained()) as bank:
        bank.write(
            [Document("bridge", "The Kestrel Bridge at Holm was opened in 1874. Its engineer was Ada Brennan.", "bridge.md")]
        )
    return path


def environment():
    return {
        name: os.environ[name] for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "HOME") if name in os.environ
    }


@pytest.mark.real
def test_the_command_over_stdio(real_bank):
    arguments = ["-m", "memory3", "mcp", "--bank", str(real_bank), "--stdio", "--write"]
    command = StdioServerParameters(command=sys.executable, args=arguments, env=environment())
    calls = [
        ("ask", {"question": "Who was the engineer of the Kestrel Bridge at Holm?"}),
        ("write", {"text": "The fair of Holm begins on the third of June.", "source": "fair.md"}),
        ("ask", {"question": "When does the fair of Holm begin?"}),
        ("forget", {"sources": ["fair.md"]}),
    ]
    first, written, second, gone = (each.structured_content for each in asyncio.run(session(command, calls)))
    assert "Ada Brennan" in first["answer"]
    assert first["citations"][0]["source"] == "bridge.md"
    assert written["state"] == "added"
    assert "June" in second["answer"]
    assert gone["forgotten"] == ["fair.md"]


@pytest.mark.real
def test_the_command_over_http_until_it_is_told_to_stop(real_bank):
    arguments = [sys.executable, "-m", "memory3", "mcp", "--bank", str(real_bank), "--port", "0", "--json"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        told = ""
        while not told.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told += line
        about = json.loads(told)
        assert about["tools"] == ["search", "ask"]
        assert (
            "Ada Brennan"
            in call(about["url"], "ask", question="Who was the engineer of the Kestrel Bridge at Holm?")["answer"]
        )
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
