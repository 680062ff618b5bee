"""A bank that another machine serves is the bank in its folder: same hits, same memories, same answers. And whatever goes
wrong on the way is told, or mended, never read.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from bank_server import embedder, free_port, server, texts, tiny_m3
from bank_writer import same_memory
from filelock import FileLock

from memory3.bank import Bank
from memory3.bank.disk import DiskCache
from memory3.bank.remote import RemoteBank
from memory3.bank.remote.frames import pack, unpack
from memory3.codec.fitting import fit
from memory3.errors import (
    BankChanged,
    BankCorrupt,
    BankError,
    BankNotFound,
    BankRefused,
    BankUnreachable,
    FingerprintMismatch,
    InputError,
)
from memory3.serving.engine import Engine
from memory3.serving.job import Job
from memory3.serving.keys import Keys
from memory3.types import Document

QUERIES = ["the river by the sea", "built in 1805", "railway", "the river by the sea"]
QUESTION = "Where does the bridge of number 3 lie?"
KEY, OTHER = "key-of-the-first-tenant", "key-of-the-second-tenant"


@pytest.fixture(scope="module")
def m3():
    return tiny_m3()


@pytest.fixture
def bank(tmp_path, m3):
    with Bank.open(tmp_path / "bank", m3, embedder=embedder(), cache_bytes=0) as bank:
        bank.write(texts())
        yield bank


@pytest.fixture
def url(m3, bank):
    with server(m3, {"docs": bank}) as address:
        yield f"{address}/banks/docs"


@pytest.fixture
def opened(tmp_path, m3, url):
    with RemoteBank.open(url, m3, folder=tmp_path / "cache", patience=3) as remote:
        yield remote


def ids(bank):
    return [f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references)]


# ---- the same as the folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [None, {"book": "a"}, {"year": [2001, 2003], "new": False}, {"book": "none"}])
def test_hits_memories_and_texts_are_the_folders(bank, opened, where):
    assert len(opened) == len(bank)
    for k in (0, 1, 3, 1000):
        assert opened.search(QUERIES, k, where) == bank.search(QUERIES, k, where)
    assert opened.count(where) == bank.count(where)
    names = ids(bank)
    assert opened.references(names) == bank.references(names)
    assert opened.records(names) == bank.records(names)
    assert all(map(same_memory, opened.memories(names), bank.memories(names)))
    assert [m.provenance for m in opened.memories(names)] == [m.provenance for m in bank.memories(names)]
    assert opened.metadata() == bank.metadata()
    assert opened.manifest.fingerprint == bank.manifest.fingerprint


def test_more_references_than_one_request_takes(tmp_path, m3):
    with Bank.open(tmp_path / "bank", m3, embedder=embedder()) as bank:
        bank.write(texts(150))
        names = ids(bank)
        with server(m3, {"docs": bank}) as address, RemoteBank.open(f"{address}/banks/docs", m3, disk_bytes=0) as remote:
            assert len(names) > 128
            assert remote.records([*names, names[0]]) == bank.records([*names, names[0]])
            many = [f"query {n}" for n in range(70)]
            found, wanted = remote.search(many, 2), [bank.search([query], 2)[0] for query in many]
            for got, hits in zip(found, wanted, strict=True):  # scores are rounded as the batch of queries has it
                assert [(h.reference_id, pytest.approx(h.score, abs=1e-6)) for h in hits] == [
                    (h.reference_id, h.score) for h in got
                ]


@pytest.mark.parametrize("mode", ["memory", "text"])
def test_answers_are_the_folders(m3, bank, opened, mode):
    for where in (None, {"book": "b"}):
        wanted = m3.generate(QUESTION, bank, mode=mode, where=where, max_new_tokens=23)
        got = m3.generate(QUESTION, opened, mode=mode, where=where, max_new_tokens=23)
        assert got.token_ids == wanted.token_ids
        assert got.citations == wanted.citations
        assert got.citations
        assert got.usage == wanted.usage


def test_bank_open_takes_an_address(m3, bank, url, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "home"))
    with Bank.open(url, m3) as remote:
        assert isinstance(remote, RemoteBank)
        many = [QUESTION, "What is the mill?"]
        assert [a.text for a in m3.generate(many, remote)] == [a.text for a in m3.generate(many, bank)]
        for name in ("write", "delete", "compact"):
            with pytest.raises(BankRefused, match="where the bank lies"):
                getattr(remote, name)
    assert (tmp_path / "home" / "remote").is_dir()


def test_the_engine_reads_it(m3, bank, opened):
    from memory3.decoding import decoding

    settings, _ = decoding(m3.model, 30, {})
    with Engine(m3) as engine:
        how = m3.retrieval(None, None, None)
        got = engine.submit(Job(QUESTION, settings, bank=opened, retrieval=how)).result()
    wanted = m3.generate(QUESTION, bank, max_new_tokens=30)
    assert got.token_ids == wanted.token_ids


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_coded_memories_are_decoded_by_the_codebook_that_came(tmp_path, codec):
    m3 = tiny_m3(codec=codec)
    memories = m3.encode([reference for document in texts() for reference in m3.split(document)])
    book = fit(
        codec,
        memories,
        m3.shape,
        fingerprint=m3.fingerprint,
        positions=m3.config.reference_length,
        angles=m3.angles,
        token_vectors=m3.token_vectors,
    )
    with Bank.open(tmp_path / "bank", m3, embedder=embedder(), code_book=book) as bank:
        bank.write(texts())
        with server(m3, {"docs": bank}) as address:
            url = f"{address}/banks/docs"
            for _ in range(2):  # the codebook from the server, then from the disk
                with RemoteBank.open(url, m3, folder=tmp_path / "cache") as remote:
                    assert all(map(same_memory, remote.memories(ids(bank)), bank.memories(ids(bank))))
        with RemoteBank.open(url, m3, folder=tmp_path / "cache", patience=0.1) as remote:  # the server is gone
            assert remote.offline
            assert all(map(same_memory, remote.memories(ids(bank)), bank.memories(ids(bank))))


def test_lazy_references_are_encoded_by_the_server(tmp_path, m3):
    with Bank.open(tmp_path / "bank", m3, embedder=embedder()) as bank:
        bank.write(texts(), lazy=True)
        with server(m3, {"docs": bank}) as address, RemoteBank.open(f"{address}/banks/docs", m3, disk_bytes=0) as remote:
            got = remote.records(ids(bank))
            assert {record.stored_bytes for record in got} == {0}
        bank.refresh()
        assert [r.data for r in got] == [r.data for r in bank.records(ids(bank))]


def test_a_search_brings_what_is_not_here_and_nothing_twice(m3, bank, opened):
    before = opened.received_bytes
    hits = opened.search(QUERIES, 3)
    after = opened.received_bytes
    assert after - before > opened.manifest.record_bytes
    near = [hit.reference_id for each in hits for hit in each if hit.score >= each[0].score - m3.config.score_gap]
    opened.memories(near)
    opened.references([hit.reference_id for each in hits for hit in each if hit.reference_id in near])
    assert opened.search(QUERIES, 3) == hits
    assert opened.received_bytes == after
    opened.search(["the sea by the river"], 3)  # the same words, so the same references: their memories do not come again
    assert opened.received_bytes - after < opened.manifest.record_bytes


def test_prefetched_memories_are_there(bank, opened):
    names = ids(bank)[:4]
    opened.prefetch(names)
    until = time.monotonic() + 10
    while opened.received_bytes < 4 * opened.manifest.record_bytes and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    before = opened.received_bytes
    assert all(map(same_memory, opened.memories(names), bank.memories(names)))
    assert opened.received_bytes == before


# ---- HTTP ----------------------------------------------------------------------------------------------------------------


def test_routes_tag_by_version_and_serve_ranges(bank, url):
    name = ids(bank)[0]
    (record,) = bank.records([name])
    with httpx2.Client(headers={"Accept-Encoding": "gzip, br"}) as client:
        about = client.get(url)
        tag, version = about.headers["etag"], about.json()["version"]
        assert bank.manifest.fingerprint in tag
        assert version in tag
        assert client.get(url, headers={"If-None-Match": tag}).status_code == 304
        address = f"{url}/records/{name.replace('#', '%23').replace(' ', '%20')}"
        whole = client.get(address, params={"version": version})
        assert (whole.content, whole.headers["etag"]) == (record.data, tag)
        assert "immutable" in whole.headers["cache-control"]
        assert "content-encoding" not in whole.headers
        for asked, part in {"0-9": slice(0, 10), "5-": slice(5, None), "-7": slice(-7, None)}.items():
            got = client.get(address, headers={"Range": f"bytes={asked}"})
            assert (got.status_code, got.content) == (206, record.data[part])
            assert got.headers["content-range"].endswith(f"/{len(record.data)}")
        assert client.get(address, headers={"Range": f"bytes={len(record.data)}-"}).status_code == 416
        assert client.get(address, headers={"Range": "bytes=0-9", "If-Range": '"old"'}).content == record.data
        assert client.get(f"{url}/records/nothing%230").status_code == 400
        assert client.get(url, params={"version": "0" * 32}).status_code == 410
        assert client.get(f"{url}/codec").status_code == 404  # raw


@pytest.mark.parametrize(
    "body",
    [
        {"queries": []},
        {"queries": ["x"] * 33},
        {"queries": ["x" * 20_000]},
        {"queries": ["x"], "k": 0},
        {"queries": ["x"], "k": 5000},
        {"queries": ["x"], "k": 1, "have": "!"},
        {"queries": ["x"], "k": 1, "where": {"a": {"b": 1}}},
        {"queries": ["x"], "k": 1, "more": 1},
        {"queries": ["x"], "k": 1, "version": "../../etc"},
    ],
)
def test_what_cannot_be_asked_is_400(url, body):
    version = httpx2.get(url).json()["version"]
    reply = httpx2.post(f"{url}/search", json={"version": version, **body})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_keys(tmp_path, m3, bank):
    keys = Keys.of([f"{KEY} docs", f"{OTHER} other"])
    with (
        Bank.open(tmp_path / "other", m3, embedder=embedder()) as other,
        server(m3, {"docs": bank, "other": other}, keys=keys) as address,
    ):
        url = f"{address}/banks/docs"
        with RemoteBank.open(url, m3, key=KEY, disk_bytes=0) as remote:
            assert remote.search(["river"], 2) == bank.search(["river"], 2)
        with pytest.raises(BankNotFound, match="docs"):
            RemoteBank.open(url, m3, key=OTHER, disk_bytes=0)
        for key in (None, "a-key-that-nobody-has"):
            with pytest.raises(BankRefused, match="key"):
                RemoteBank.open(url, m3, key=key, disk_bytes=0)
        seen = httpx2.get(f"{address}/banks", headers={"Authorization": f"Bearer {OTHER}"}).json()
        assert seen == {"banks": ["other"]}


def test_another_model_is_refused(url):
    with pytest.raises(FingerprintMismatch):
        RemoteBank.open(url, tiny_m3(reference_length=30), disk_bytes=0)


@pytest.mark.parametrize(
    "address", ["http://", "http://user:secret@host/banks/a", "http://host/banks/a?version=1", "http://host:x/banks/a"]
)
def test_no_address(address):
    with pytest.raises(InputError) as caught:
        RemoteBank.open(address, None, disk_bytes=0)
    assert "secret" not in str(caught.value)


def test_the_address_of_a_server_says_which_banks_there_are(tmp_path, m3, bank):
    keys = Keys.of([f"{KEY} docs", f"{OTHER} other"])
    with (
        Bank.open(tmp_path / "other", m3, embedder=embedder()) as other,
        server(m3, {"docs": bank, "other": other}, keys=keys) as address,
    ):
        for url in (address, f"{address}/", f"{address}/banks", f"{address}/v1"):
            with pytest.raises(InputError, match=f"write {address}/banks/docs. It serves docs.$"):
                RemoteBank.open(url, m3, key=KEY, disk_bytes=0)
        with pytest.raises(InputError, match=f"write {address}/banks/NAME.$"):
            RemoteBank.open(address, m3, key="a-key-that-nobody-has", disk_bytes=0)
    with pytest.raises(InputError, match=f"write {address}/banks/NAME.$"):  # nobody is there any more
        Bank.open(address, m3)


# ---- faults --------------------------------------------------------------------------------------------------------------


def test_a_server_that_comes_back_is_waited_for(tmp_path, m3, bank):
    port = free_port()
    with server(m3, {"docs": bank}, port=port) as address:
        remote = RemoteBank.open(f"{address}/banks/docs", m3, folder=tmp_path / "cache", patience=15)
        remote.search(["river"], 2)
    back = threading.Event()

    def later():
        time.sleep(1.0)
        with server(m3, {"docs": bank}, port=port):
            back.wait(30)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        wanted = m3.generate(QUESTION, bank, max_new_tokens=23)
        assert m3.generate(QUESTION, remote, max_new_tokens=23).token_ids == wanted.token_ids
    finally:
        back.set()
        thread.join()


def test_offline_with_what_is_cached(tmp_path, m3, bank):
    cache = tmp_path / "cache"
    with server(m3, {"docs": bank}) as address:
        url = f"{address}/banks/docs"
        with RemoteBank.open(url, m3, folder=cache) as remote:
            wanted = m3.generate(QUESTION, remote, max_new_tokens=23)
            assert not remote.offline
    with RemoteBank.open(url, m3, folder=cache, patience=0.3) as remote:
        assert remote.offline
        got = m3.generate(QUESTION, remote, max_new_tokens=23)
        assert (got.token_ids, got.citations) == (wanted.token_ids, wanted.citations)
        with pytest.raises(BankUnreachable, match=r"cannot be reached.*this one was not.*something else"):
            remote.search(["something else"], 2)
        began = time.monotonic()  # a server that is away is not waited for each time
        with pytest.raises(BankUnreachable):
            remote.search(["something else"], 2)
        assert time.monotonic() - began < 0.2
        with pytest.raises(BankUnreachable, match="not in the cache"):
            remote.records(["nothing#0"])
    with pytest.raises(BankUnreachable, match="Nothing of this bank"):
        RemoteBank.open(url, m3, folder=tmp_path / "empty", patience=0.3)


def test_a_version_that_was_replaced_answers_until_it_is_gone(m3, bank, opened):
    view = opened.pin()
    wanted = bank.search(QUERIES, 3)
    memories = bank.memories(ids(bank))
    names = ids(bank)
    bank.write([Document("books/new", "A lighthouse of the river by the sea.", source="new.txt")])
    bank.refresh()
    assert bank.search(["lighthouse"], 1) != wanted
    assert view.search(QUERIES, 3) == wanted  # of the version that was opened
    assert all(map(same_memory, view.memories(names), memories))
    opened.refresh()
    assert opened.search(["lighthouse"], 1) == bank.search(["lighthouse"], 1)
    assert len(opened) == len(bank)


def test_a_version_that_is_gone_is_told_and_the_newest_read(m3, bank, opened):
    view = opened.pin()
    for n in range(4):  # more than a server keeps
        bank.write([Document(f"books/new {n}", f"A lighthouse of number {n}.", source="new.txt")])
        bank.refresh()
        httpx2.get(opened.path).raise_for_status()
    with pytest.raises(BankChanged, match="gone"):
        view.search(["lighthouse"], 1)
    assert opened.search(["lighthouse"], 1) == bank.search(["lighthouse"], 1)  # a bank opens the newest by itself


def test_damage_in_the_disk_cache_is_never_read(tmp_path, m3, bank, url):
    cache, names = tmp_path / "cache", ids(bank)
    wanted = bank.memories(names)
    with RemoteBank.open(url, m3, folder=cache) as remote:
        remote.memories(names)
    files = [path for path in cache.glob("*/*") if path.stat().st_size > bank.manifest.record_bytes]
    assert len(files) >= len(names)
    for number, path in enumerate(files):
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            data[len(data) // 2] ^= 1
        elif number % 3 == 1:
            del data[-1]
        else:
            data = bytearray(files[number - 1].read_bytes()) if number > 2 else bytearray()
        path.write_bytes(data)
    with RemoteBank.open(url, m3, folder=cache) as remote:
        assert all(map(same_memory, remote.memories(names), wanted))
        assert remote.received_bytes > len(names) * bank.manifest.record_bytes


def test_the_disk_cache_keeps_to_its_bytes(tmp_path):
    capacity = 40 * 4096
    cache = DiskCache(tmp_path, capacity)
    for n in range(200):
        cache.put({f"key {n}": bytes([n % 256]) * (3000 + 40 * n)})
        assert cache.get("key 0") is not None  # always the one used last
        assert cache.total() <= capacity
        time.sleep(0.002)  # times of use of files
    assert cache.get("key 199") == bytes([199]) * (3000 + 40 * 199)
    assert cache.get("key 50") is None
    cache.put({"large": bytes(capacity)})
    assert cache.get("large") is None
    assert DiskCache(tmp_path, 0).get("key 199") is None


PROCESS = """
import sys
from pathlib import Path
from memory3.bank.disk import DiskCache
cache, own = DiskCache(Path(sys.argv[1]), int(sys.argv[2])), sys.argv[3]
for n in range(150):
    for key in (f"shared {n % 40}", f"{own} {n}"):
        wanted = (key * 700).encode()
        found = cache.get(key)
        assert found in (None, wanted), key
        if found is None:
            cache.put({key: wanted})
"""


def test_processes_share_the_disk_cache(tmp_path):
    capacity = 60 * 8192
    procs = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(capacity), name], env={**os.environ})
        for name in ("a", "b", "c")
    ]
    most = 0
    cache = DiskCache(tmp_path, capacity)
    while any(process.poll() is None for process in procs):
        with FileLock(tmp_path / "lock"):  # else files that came and files that went while it counts count both
            most = max(most, cache.total())
        time.sleep(0.01)
    assert [process.returncode for process in procs] == [0, 0, 0]
    assert 0 < most <= capacity
    assert 0 < cache.total() <= capacity


def test_two_banks_of_one_cache_do_not_mix(tmp_path, m3, bank):
    with Bank.open(tmp_path / "other", m3, embedder=embedder()) as other:
        other.write([Document(one.id, one.text.replace("river", "canal"), source="other") for one in texts()])
        with server(m3, {"docs": bank, "other": other}) as address:
            both = [RemoteBank.open(f"{address}/banks/{name}", m3, folder=tmp_path / "cache") for name in ("docs", "other")]
            for _ in range(2):
                assert both[0].references(ids(bank)) == bank.references(ids(bank))
                assert both[1].references(ids(other)) == other.references(ids(other))
                assert both[1].records(ids(other)) == other.records(ids(other))


# ---- servers that mean harm ----------------------------------------------------------------------------------------------


class Relay(http.server.BaseHTTPRequestHandler):
    """Hands on what the real server says, after ``change`` had it."""

    protocol_version = "HTTP/1.1"
    real = ""
    change = staticmethod(lambda path, status, headers, body: (status, headers, body))

    def log_message(self, *_):
        pass

    def _relay(self):
        length = int(self.headers.get("content-length", 0))
        reply = httpx2.request(
            self.command,
            self.real + self.path,
            content=self.rfile.read(length),
            headers={"Content-Type": self.headers.get("content-type", "")} if length else {},
        )
        kept = ("content-type", "etag")
        headers = {name: value for name, value in reply.headers.items() if name in kept}
        answer = type(self).change(self.path, reply.status_code, headers, reply.content)
        status, headers, body = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    do_GET = do_POST = _relay


@pytest.fixture
def relay(url):
    """An address, and a class whose ``change`` is what happens on the way."""
    base = url.rpartition("/banks")[0]

    class Mine(Relay):
        real = base

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{web.server_address[1]}/banks/docs", Mine
    web.shutdown()
    web.server_close()


def test_bytes_damaged_on_the_wire_are_asked_for_again_then_refused(m3, bank, relay):
    address, way = relay
    names, seen = ids(bank), []

    def sometimes(path, status, headers, body):
        seen.append(path)
        if path.endswith("records") and len([p for p in seen if p.endswith("records")]) < 3:
            body = body[:-5] + bytes([body[-5] ^ 16]) + body[-4:]
        return status, headers, body

    way.change = staticmethod(sometimes)
    with RemoteBank.open(address, m3, disk_bytes=0) as remote:
        assert remote.records(names) == bank.records(names)
    way.change = staticmethod(lambda path, status, headers, body: (status, headers, body[:-1] + b"\0"))
    with pytest.raises(BankCorrupt):
        RemoteBank.open(address, m3, disk_bytes=0)


def forged(edit):
    """Frames with another head or other parts, and a checksum that is right."""

    def change(path, status, headers, body):
        if path.endswith(("search", "records", "references")) and status == 200:
            head, parts = unpack(body, 1 << 30)
            parts = edit(head, parts) or parts
            body = pack(head, parts)
        return status, headers, body

    return change


def _swap(head, parts):
    head["items"][0]["reference"]["id"] = "another#0"


def _tokens(head, parts):
    head["items"][0]["reference"]["token_ids"] = [10**9]


def _nan(head, parts):
    return [b"\xff" * len(part) for part in parts]


def _score(head, parts):
    if "hits" in head:
        head["hits"][0][0][2] = 1e308


def _many(head, parts):
    if "hits" in head:
        head["hits"][0] = [[f"x#{n}", "x", 0.5] for n in range(5000)]


def _version(head, parts):
    head["version"] = "0" * 32


def _short(head, parts):
    return [part[:-1] for part in parts]


def _extra(head, parts):
    if "hits" in head:
        head["items"].append({**head["items"][0], "reference": {**head["items"][0]["reference"], "id": "poison#0"}})
        return [*parts, parts[0]]
    return parts


def _kinds(head, parts):
    head["items"] = [[[]]] * len(parts)


@pytest.mark.parametrize(
    "edit", [_swap, _tokens, _nan, _score, _many, _version, _short, _extra, _kinds], ids=lambda one: one.__name__
)
def test_forged_answers_are_refused(tmp_path, m3, bank, relay, edit):
    address, way = relay
    way.change = staticmethod(forged(edit))

    def read(remote):
        hits = remote.search(["river"], 2)
        remote.references(["books/doc 1#0"])
        return remote.memories([hit.reference_id for hit in hits[0]])

    with RemoteBank.open(address, m3, folder=tmp_path / "cache") as remote, pytest.raises(BankCorrupt):
        read(remote)
    way.change = staticmethod(lambda path, status, headers, body: (status, headers, body))
    with RemoteBank.open(address, m3, folder=tmp_path / "cache") as remote:
        assert all(map(same_memory, read(remote), bank.memories([h.reference_id for h in bank.search(["river"], 2)[0]])))


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {}, b""),
        (200, {}, b"null"),
        (200, {}, DEEP),
        (200, {}, b'{"a":' * 100_000),
        (200, {}, b"\x80\x04\x95pickle"),
        (200, {"Content-Length": "99999999999"}, b"x"),
        (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b" + b"\0" * 100),
        (200, {}, pack({"version": "x"})),
        (302, {"Location": "http://127.0.0.1:1/"}, b""),
        (418, {}, b'{"error": {"message": "\x1b[31mred"}}'),
        (503, {}, b"busy"),
        (
            200,
            {},
            json.dumps({"protocol": 1, "version": "0" * 32, "references": 1e300, "documents": 0, "manifest": {}}).encode(),
        ),
    ],
)
def test_hostile_servers_neither_crash_nor_fill_a_client(m3, relay, status, headers, body):
    address, way = relay
    way.change = staticmethod(lambda *_: (status, headers, body))
    began = time.monotonic()
    with pytest.raises(BankError) as caught:
        RemoteBank.open(address, m3, disk_bytes=0, patience=0.5)
    assert time.monotonic() - began < 5
    assert "\x1b" not in str(caught.value)
    way.change = staticmethod(
        lambda path, s, h, b: (status, headers, body) if path.endswith(("search", "records")) else (s, h, b)
    )
    with RemoteBank.open(address, m3, disk_bytes=0, patience=0.5) as remote, pytest.raises(BankError):
        remote.search(["river"], 2)


def test_a_server_that_drips_is_given_up(m3):
    """One byte now and then keeps every single wait short, and the whole endless."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        ended = threading.Event()

        def drip():
            while not ended.is_set():
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                one.recv(4096)
                try:
                    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    while not ended.wait(0.05):
                        one.sendall(b"{")
                except OSError:
                    pass
                one.close()

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(BankUnreachable, match="slowly"):
            RemoteBank.open(f"http://127.0.0.1:{listening.getsockname()[1]}/banks/a", m3, disk_bytes=0, patience=1.0)
        assert time.monotonic() - began < 5
        ended.set()
    thread.join(5)
