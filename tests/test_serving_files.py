"""Files and vector stores over HTTP, by OpenAI's own client."""

import contextlib
import gzip
import io
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import served
from file_server import slow_model

from memory3.bank import Bank
from memory3.errors import ServingError
from memory3.serving import ingest
from memory3.serving.data_folder import StorageLimits

KEYS = ["key-of-the-first-tenant", "key-of-the-second-tenant", "key-of-the-third-tenant docs"]
BRIDGE = b"The bridge was built in 1874 by the engineer of the county. " * 6
AFTER = {"seconds": 3600, "anchor": "created_at"}
RIVER = b"The river rises in the mountains and reaches the sea. " * 6


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = StorageLimits(file_bytes=3 << 20, text_bytes=4 << 20, read_seconds=20)
    with served.server(tmp_path_factory.mktemp("server"), keys=KEYS, files=limits) as running:
        yield running


@pytest.fixture
def client(server):
    with server.client(KEYS[0]) as client:
        yield client


@contextlib.contextmanager
def small_server(folder, m3=None, **limits):
    with served.server(folder, m3=m3, banks={}, files=StorageLimits(**limits)) as running:
        yield running


def refused(status, call, *args, **options):
    with pytest.raises(openai.APIStatusError) as caught:
        call(*args, **options)
    assert caught.value.status_code == status, caught.value
    return caught.value.body


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def upload(client, name="bridge.md", data=BRIDGE):
    return client.files.create(file=(name, data), purpose="assistants")


def left_over(folder):
    """Files of interrupted uploads and state files that are half written."""
    ours = (".upload-", ".file-", ".store", ".vsfb", ".tenant")
    return [path for path in folder.rglob(".*") if path.name.startswith(ours)]


# ---- what is uploaded is searched, cited, and deleted ----------------------------------------------------------------


def test_an_upload_becomes_searchable_and_cited(server, client):
    file = upload(client)
    assert (file.filename, file.bytes, file.purpose, file.status) == ("bridge.md", len(BRIDGE), "assistants", "processed")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == BRIDGE
    store = client.vector_stores.create(name="papers", metadata={"team": "a"})
    member = client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, attributes={"year": 1874})
    assert (member.status, member.last_error, member.attributes) == ("completed", None, {"year": 1874})
    other = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("river.txt", RIVER))
    assert other.status == "completed"
    now = client.vector_stores.retrieve(store.id)
    assert (now.status, now.name, now.metadata, now.file_counts.completed) == ("completed", "papers", {"team": "a"}, 2)
    assert now.usage_bytes == member.usage_bytes + other.usage_bytes > 0

    found = client.vector_stores.search(store.id, query="Who built the bridge?", max_num_results=3).data
    assert found[0].file_id == file.id
    assert found[0].filename == "bridge.md"
    assert "bridge" in found[0].content[0].text
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    only = client.vector_stores.search(store.id, query="sea", filters={"type": "eq", "key": "year", "value": 1874.0}).data
    assert {one.file_id for one in only} == {file.id}

    model = f"tiny@{store.id}"
    assert model in [one.id for one in client.models.list()]
    question = [{"role": "user", "content": "Who built the bridge, and when was the bridge built?"}]
    answer = client.chat.completions.create(model=model, messages=question, max_tokens=24)
    cited = answer.choices[0].message.annotations[0].to_dict()["url_citation"]
    assert cited["document_id"] in (file.id, other.id)
    assert cited["title"] in ("bridge.md", "river.txt")
    passage = httpx2.get(cited["url"], headers={"Authorization": f"Bearer {KEYS[0]}"}).json()
    assert passage["text"] == cited["content"]

    tool = {"type": "file_search", "vector_store_ids": [store.id], "max_num_results": 1}
    response = client.responses.create(model="tiny", input=question[0]["content"], tools=[tool], max_output_tokens=24)
    annotation = response.output[0].content[0].annotations[0]
    assert (annotation.type, annotation.file_id, annotation.filename) == ("file_citation", file.id, "bridge.md")
    assert refused(404, client.responses.create, model="tiny", input="?", tools=[{**tool, "vector_store_ids": ["vs_no"]}])


def test_what_is_deleted_is_not_found_any_more(server, client):
    file, other = upload(client), upload(client, "river.txt", RIVER)
    store = client.vector_stores.create(file_ids=[file.id, other.id])
    for each in (file, other):
        client.vector_stores.files.poll(each.id, vector_store_id=store.id)
    gone = client.vector_stores.files.delete(file.id, vector_store_id=store.id)
    assert (gone.id, gone.deleted) == (file.id, True)
    assert {one.file_id for one in client.vector_stores.search(store.id, query="the bridge")} == {other.id}
    refused(404, client.vector_stores.files.retrieve, file.id, vector_store_id=store.id)
    assert client.files.retrieve(file.id).id == file.id  # out of the store, but still a file
    assert client.files.delete(other.id).deleted
    assert list(client.vector_stores.search(store.id, query="the river")) == []
    assert list(client.vector_stores.files.list(store.id)) == []
    refused(404, client.files.retrieve, other.id)
    refused(404, client.files.content, other.id)
    assert client.vector_stores.delete(store.id).deleted
    refused(404, client.vector_stores.retrieve, store.id)
    refused(404, client.vector_stores.search, store.id, query="the bridge")
    question = [{"role": "user", "content": "?"}]
    body = refused(404, client.chat.completions.create, model=f"tiny@{store.id}", messages=question)
    assert body["code"] == "model_not_found"
    assert client.files.delete(file.id).deleted


def test_files_are_added_together(client):
    store = client.vector_stores.create()
    files = [(f"{number}.txt", b"The river number %d reaches the sea." % number) for number in range(4)]
    files.append(("broken.pdf", b"%PDF-1.7 and nothing more"))
    batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=[(n, io.BytesIO(d)) for n, d in files])
    assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 4, 1)
    there = list(client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id))
    assert len(there) == 5
    failed = list(client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed"))
    assert [each.last_error.code for each in failed] == ["invalid_file"]
    assert failed[0].last_error.message.startswith("broken.pdf: ")
    page = client.vector_stores.files.list(store.id, limit=2, order="asc")
    assert (len(page.data), page.has_more) == (2, True)
    assert len(list(page)) == 5  # the client goes on to the next pages


def test_attributes_can_be_changed(client):
    store, file = client.vector_stores.create(), upload(client)
    client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, attributes={"lang": "de"})
    client.vector_stores.files.update(file.id, vector_store_id=store.id, attributes={"lang": "en"})
    client.vector_stores.files.poll(file.id, vector_store_id=store.id)
    for lang, found in (("de", 0), ("en", 1)):
        where = {"type": "and", "filters": [{"type": "in", "key": "lang", "value": [lang]}]}
        assert len(client.vector_stores.search(store.id, query="bridge", filters=where, max_num_results=1).data) == found


def test_a_store_is_called_otherwise(client):
    store = client.vector_stores.create(name="a")
    changed = client.vector_stores.update(store.id, name="b", metadata={"x": "y"})
    assert (changed.name, changed.metadata) == ("b", {"x": "y"})
    assert client.vector_stores.retrieve(store.id) == changed


# ---- what is not supported is named --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("param", "ask"),
    [
        ("purpose", lambda c, s: c.files.create(file=("a.txt", b"a"), purpose="fine-tune")),
        ("expires_after", lambda c, s: c.files.create(file=("a", b"a"), purpose="assistants", expires_after=AFTER)),
        ("expires_after", lambda c, s: c.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 1})),
        ("file_ids", lambda c, s: c.vector_stores.create(file_ids=["file-" + "0" * 32])),
        ("description", lambda c, s: c.vector_stores.create(description="what it is for")),
        ("filters.type", lambda c, s: c.vector_stores.search(s, query="a", filters={"type": "gt", "key": "a", "value": 1})),
        ("filters.type", lambda c, s: c.vector_stores.search(s, query="a", filters={"type": "or", "filters": []})),
        ("filters.key", lambda c, s: c.vector_stores.search(s, query="a", filters={"type": "eq", "value": 1})),
        ("rewrite_query", lambda c, s: c.vector_stores.search(s, query="a", rewrite_query=True)),
        ("max_num_results", lambda c, s: c.vector_stores.search(s, query="a", max_num_results=51)),
        ("query", lambda c, s: c.vector_stores.search(s, query=" ")),
        ("limit", lambda c, s: c.files.list(limit=0)),
        ("after", lambda c, s: c.vector_stores.list(after="vs_nowhere")),
        ("file_ids", lambda c, s: c.vector_stores.file_batches.create(s, file_ids=[])),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(client, param, ask):
    store = client.vector_stores.create().id
    before = len(list(client.vector_stores.list()))
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, store)
    assert caught.value.status_code in (400, 404)
    assert caught.value.body["param"] == param
    assert len(list(client.vector_stores.list())) == before


def test_chunks_are_cut_as_the_model_says(client):
    store, file = client.vector_stores.create(), upload(client)
    sizes = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}
    body = refused(400, client.vector_stores.files.create, store.id, file_id=file.id, chunking_strategy=sizes)
    assert body["param"].startswith("chunking_strategy")
    client.vector_stores.files.create(store.id, file_id=file.id, chunking_strategy={"type": "auto"})


def test_a_server_without_a_folder_says_so(tmp_path):
    with served.server(tmp_path, banks={}) as running, running.client() as client:
        body = refused(404, client.vector_stores.create)
        assert body["code"] == "files_not_kept"


# ---- whose it is ---------------------------------------------------------------------------------------------------------


def test_tenants_do_not_see_one_another(server, client):
    file = upload(client)
    store = client.vector_stores.create(name="mine", file_ids=[file.id])
    client.vector_stores.files.poll(file.id, vector_store_id=store.id)
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[file.id])
    for key in KEYS[1:]:
        with server.client(key.split()[0]) as other:
            mine = other.vector_stores.create().id
            unknown = {"file": "file-" + "0" * 32, "store": "vs_" + "0" * 32, "batch": "vsfb_" + "0" * 32}

            def asks(client, mine, file, store, batch):
                stores, question = client.vector_stores, [{"role": "user", "content": "?"}]
                return [
                    lambda: client.files.retrieve(file),
                    lambda: client.files.content(file),
                    lambda: client.files.delete(file),
                    lambda: stores.retrieve(store),
                    lambda: stores.update(store, name="x"),
                    lambda: stores.delete(store),
                    lambda: stores.search(store, query="bridge"),
                    lambda: stores.files.list(store),
                    lambda: stores.files.retrieve(file, vector_store_id=store),
                    lambda: stores.files.delete(file, vector_store_id=store),
                    lambda: stores.file_batches.retrieve(batch, vector_store_id=store),
                    lambda: stores.files.create(mine, file_id=file),
                    lambda: client.chat.completions.create(model=f"tiny@{store}", messages=question),
                    lambda: client.responses.create(
                        model="tiny", input="?", tools=[{"type": "file_search", "vector_store_ids": [store]}]
                    ),
                ]

            real = asks(other, mine, file.id, store.id, batch.id)
            made_up = asks(other, mine, unknown["file"], unknown["store"], unknown["batch"])
            for theirs, nobodys in zip(real, made_up, strict=True):
                said, wanted = str(refused(404, theirs)), str(refused(404, nobodys))
                for name, made in (("file", file.id), ("store", store.id), ("batch", batch.id)):
                    said = said.replace(made, unknown[name])
                assert said == wanted
            assert file.id not in [each.id for each in other.files.list()]
            assert store.id not in [each.id for each in other.vector_stores.list()]
            assert f"tiny@{store.id}" not in [each.id for each in other.models.list()]
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 1


# ---- hostile uploads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "..", "/etc/shadow", "C:\\windows\\a.txt", "a\x00b.txt", "x" * 2000 + ".txt", "‮txt.exe", "🙂.md",
     "a;b='c'.txt", "-rf", ".hidden", "CON", "\r\nSet-Cookie: a=b", "", "file.txt/../../b", "%2e%2e%2fa"],
)  # fmt: skip
def test_a_file_may_be_called_anything(server, client, tmp_path_factory, name):
    body = {"file": (name or " ", b"The town by the river.")}
    root = tmp_path_factory.getbasetemp()
    before = {path.name for path in root.rglob("*")}
    http = server.http(headers={"Authorization": f"Bearer {KEYS[0]}"})
    answer = http.post("/v1/files", files=body, data={"purpose": "user_data"})
    assert answer.status_code == 200, answer.text
    file = client.files.retrieve(answer.json()["id"])
    assert file.filename
    assert len(file.filename) <= 255
    assert not set(file.filename) & set("\0\r\n/\\")
    content = client.files.content(file.id)
    assert content.read() == b"The town by the river."
    assert content.response.headers["content-disposition"].startswith("attachment")
    assert "set-cookie" not in content.response.headers
    new = {path.name for path in root.rglob("*")} - before
    assert all(name.startswith(file.id) for name in new), new


def test_what_is_no_upload_is_refused_and_leaves_nothing(server, tmp_path_factory):
    http = server.http(headers={"Authorization": f"Bearer {KEYS[0]}"})
    form = "multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nabc\r\n'
    purpose = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    hostile = [
        ("application/json", b'{"file": "a"}'),
        ("multipart/form-data", part),
        (f"multipart/form-data; boundary={'x' * 200}", part),
        (form, b""),
        (form, b"nonsense"),
        (form, part),  # cut short
        (form, part + purpose),
        (form, part + part + purpose + b"--x--\r\n"),
        (form, purpose + b"--x--\r\n"),
        (form, part.replace(b'"file"', b'"other"') + purpose + b"--x--\r\n"),
        (form, part + purpose + purpose + b"--x--\r\n"),
        (form, part + purpose.replace(b"assistants", b"a" * 100_000) + b"--x--\r\n"),
        (form, part.replace(b"\r\n\r\n", b"\r\n" + b"A: b\r\n" * 10_000 + b"\r\n") + purpose + b"--x--\r\n"),
        (form, part.replace(b"Content-Disposition", b"C" * 100_000) + purpose + b"--x--\r\n"),
        (form, b"".join(purpose.replace(b"purpose", b"f%d" % n) for n in range(100)) + b"--x--\r\n"),
    ]
    before = len(http.get("/v1/files").json()["data"])
    for kind, body in hostile:
        answer = http.post("/v1/files", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400, (kind, body[:80], answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(http.get("/v1/files").json()["data"]) == before
    assert not left_over(tmp_path_factory.getbasetemp())


def test_an_upload_that_is_cut_off_leaves_nothing(server, client, tmp_path_factory):
    before = len(list(client.files.list()))

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(20):
            yield b"a" * 65536
        raise InterruptedError

    headers = {"Authorization": f"Bearer {KEYS[0]}", "Content-Type": "multipart/form-data; boundary=x"}
    with pytest.raises(InterruptedError):
        server.http(headers=headers).post("/v1/files", content=endless())
    until(lambda: not left_over(tmp_path_factory.getbasetemp()))
    assert len(list(client.files.list())) == before


def test_a_file_that_is_too_large_is_refused(server, client, tmp_path_factory):
    upload(client, "most.txt", b"a" * (3 << 20))
    assert refused(413, upload, client, "more.txt", b"a" * ((3 << 20) + 1))["code"] == "storage_limit"
    refused(413, upload, client, "huge.txt", b"a" * (70 << 20))  # of the body
    assert not left_over(tmp_path_factory.getbasetemp())


@pytest.mark.long
def test_a_file_that_unzips_to_more_than_there_is_fails_alone(client):
    store = client.vector_stores.create()
    bombs = {
        "lines.jsonl.gz": gzip.compress(b"\n" * (200 << 20)),
        "zeros.txt.gz": gzip.compress(b"0" * (200 << 20)),
        "deep.json": b"[" * 200_000,
        "records.jsonl": b'{"text": "a"}\n' * 210_000,
        "cut.txt.gz": gzip.compress(os.urandom(10_000))[:-1000],
        "picture.png": b"\x89PNG\r\n\x1a\n" + os.urandom(1000),
        "empty.txt": b" ",
        "junk.docx": b"This is no Word document.",
        "page.txt": b"%PDF-1.4 and so on",
    }
    for name, data in bombs.items():
        member = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=(name, data))
        assert member.status == "failed", name
        assert member.last_error.message.startswith(name)
        assert "/" not in member.last_error.message
        wanted = "unsupported_file" if name in ("picture.png", "junk.docx") else "invalid_file"
        assert member.last_error.code == wanted, name
    good = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("good.jsonl", b'{"text": "The sea."}\n' * 3)
    )
    assert good.status == "completed"
    now = client.vector_stores.retrieve(store.id)
    assert (now.file_counts.failed, now.file_counts.completed) == (len(bombs), 1)
    assert {one.file_id for one in client.vector_stores.search(store.id, query="sea")} == {good.id}


def test_many_uploads_at_once(server, client):
    store = client.vector_stores.create()

    def one(number):
        data = b"The river number %d reaches the sea." % number
        file = upload(client, f"{number}.txt", data)
        client.vector_stores.files.create(store.id, file_id=file.id)
        return file.id, data

    with ThreadPoolExecutor(8) as pool:
        made = dict(pool.map(one, range(36)))
    assert len(made) == 36
    for file_id, data in made.items():
        assert client.files.content(file_id).read() == data
        assert client.vector_stores.files.poll(file_id, vector_store_id=store.id).status == "completed"
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 36


def test_a_tenant_that_holds_its_places_keeps_nobody_else_out(server):
    host, port = server.address.removeprefix("http://").split(":")
    head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    held = [socket.create_connection((host, int(port))) for _ in range(40)]
    with server.http(headers={"Authorization": f"Bearer {KEYS[0]}"}) as http:

        def send():
            return http.post("/v1/files", files={"file": ("b.txt", b"b")}, data={"purpose": "assistants"})

        try:
            for connection in held:
                connection.sendall(f"{head}Authorization: Bearer {KEYS[0]}\r\n\r\n{part}".encode())
            until(lambda: send().status_code == 429)
            answer = send()
            assert answer.headers["retry-after"] == "1"
            assert "with this key" in answer.json()["error"]["message"]
            with server.client(KEYS[1]) as other:
                assert upload(other).bytes == len(BRIDGE)
        finally:
            for connection in held:
                connection.close()
        until(lambda: send().status_code == 200)


# ---- bounds and faults ---------------------------------------------------------------------------------------------------


def test_a_tenant_has_bounds(tmp_path):
    bounds = {"tenant_bytes": 2000, "tenant_files": 3, "tenant_stores": 2, "store_files": 1}
    with small_server(tmp_path, **bounds) as running, running.client() as client:
        first = upload(client, "a.txt", b"a" * 900)
        second = upload(client, "b.txt", b"b" * 900)
        assert refused(413, upload, client, "c.txt", b"c" * 300)["code"] == "storage_limit"
        upload(client, "c.txt", b"c")
        assert "3 files" in refused(413, upload, client, "d.txt", b"d")["message"]
        store = client.vector_stores.create()
        client.vector_stores.files.create(store.id, file_id=first.id)
        refused(413, client.vector_stores.files.create, store.id, file_id=second.id)
        client.vector_stores.create()
        refused(413, client.vector_stores.create)
        client.files.delete(first.id)
        upload(client, "e.txt", b"e" * 900)


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/bin/mount"), reason="needs root, to mount a small disk")
def test_a_full_disk(tmp_path):
    disk = tmp_path / "files"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with small_server(tmp_path) as running, running.client() as client:
            store = client.vector_stores.create()
            kept = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("bridge.md", BRIDGE))
            assert kept.status == "completed"
            assert refused(507, upload, client, "big.txt", os.urandom(4 << 20))["code"] == "disk_full"
            assert [file.id for file in client.files.list()] == [kept.id]
            assert not left_over(disk)
            with contextlib.suppress(openai.InternalServerError):
                while True:  # until nothing fits any more
                    upload(client, "fill.txt", b"a" * 200_000)
            filler = open(disk / "filler", "wb", buffering=0)  # noqa: SIM115
            with filler, contextlib.suppress(OSError):
                while True:
                    filler.write(b"a" * 4096)
            assert refused(507, client.vector_stores.create)["code"] == "disk_full"
            assert [one.id for one in client.vector_stores.list()] == [store.id]
            assert {one.file_id for one in client.vector_stores.search(store.id, query="bridge")} == {kept.id}
            (disk / "filler").unlink()
            for file in client.files.list():
                if file.id != kept.id:
                    client.files.delete(file.id)
            again = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("river.txt", RIVER))
            assert again.status == "completed"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_store_is_deleted_while_it_is_read(tmp_path):
    """Those who read it finish or are told that it is gone; nobody gets a fault of the server."""
    with small_server(tmp_path) as running, running.client() as client:
        store = client.vector_stores.create()
        client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("bridge.md", BRIDGE))
        outcomes = []

        def ask():
            try:
                question = [{"role": "user", "content": "Who built the bridge?"}]
                client.chat.completions.create(model=f"tiny@{store.id}", messages=question, max_tokens=100)
                outcomes.append("answered")
            except openai.APIStatusError as error:
                outcomes.append(error.status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: running.state.engine.state.running > 0)
        assert client.vector_stores.delete(store.id).deleted
        for thread in threads:
            thread.join(60)
        ask()
        assert outcomes[-1] == 404
        assert "answered" in outcomes
        assert set(outcomes) <= {"answered", 404}
        until(lambda: not list((tmp_path / "files").glob("tenant-*/stores/vs_*")), 90)


def test_a_file_is_removed_while_it_is_encoded(tmp_path):
    """The write stands back at once, and goes on with the files that stay."""
    with small_server(tmp_path, slow_model(0.05)) as running, running.client() as client:
        store = client.vector_stores.create()
        text = b"The %s reaches the sea. "
        files = [upload(client, f"{name}.txt", text % name.encode() * 200) for name in ("river", "town")]
        for file in files:
            client.vector_stores.files.create(store.id, file_id=file.id)
        until(lambda: client.vector_stores.retrieve(store.id).usage_bytes > 0)  # progress is told
        began = time.monotonic()
        client.vector_stores.files.delete(files[0].id, vector_store_id=store.id)
        assert time.monotonic() - began < 5
        assert client.vector_stores.files.poll(files[1].id, vector_store_id=store.id).status == "completed"
        assert {one.file_id for one in client.vector_stores.search(store.id, query="town")} == {files[1].id}


def test_small_files_that_wait_together_are_one_commit(tmp_path, monkeypatch):
    writes = []
    write = Bank.write
    monkeypatch.setattr(ingest, "_TOGETHER_BYTES", 8 << 10)
    monkeypatch.setattr(Bank, "write", lambda bank, documents, **how: writes.append(1) or write(bank, documents, **how))
    with small_server(tmp_path) as running, running.client() as client:
        files = {upload(client, f"{n}.txt", b"The river number %d reaches the sea." % n).id: n for n in range(20)}
        broken = upload(client, "broken.pdf", b"%PDF-1.7 and nothing more").id
        large = upload(client, "large.txt", b"The town lies by the river. " * 400).id
        store = client.vector_stores.create(file_ids=[*files, broken, large])
        until(lambda: not client.vector_stores.retrieve(store.id).file_counts.in_progress, 60)
        counts = client.vector_stores.retrieve(store.id).file_counts
        assert (counts.completed, counts.failed) == (21, 1)
        assert len(writes) <= 3
        members = {one.id: one for one in client.vector_stores.files.list(store.id, limit=100)}
        assert members[broken].last_error.message.startswith("broken.pdf")
        assert len({members[each].usage_bytes for each in files}) == 1
        for file_id, n in list(files.items())[:3]:
            found = client.vector_stores.search(store.id, query=f"The river number {n} reaches the sea.", max_num_results=1)
            assert found.data[0].file_id == file_id


def test_a_file_that_cannot_be_encoded_fails_none_that_is_written_with_it(tmp_path, monkeypatch):
    m3 = slow_model()
    encode = m3.encode

    def poisoned(references):
        if any("poison" in reference.text for reference in references):
            raise RuntimeError("a fault")
        return encode(references)

    monkeypatch.setattr(m3, "encode", poisoned)
    with small_server(tmp_path, m3) as running, running.client() as client:
        texts = [b"The river reaches the sea.", b"The poison is in the well.", b"The bridge was built in 1874."]
        files = [upload(client, f"{n}.txt", text).id for n, text in enumerate(texts)]
        store = client.vector_stores.create(file_ids=files)
        until(lambda: not client.vector_stores.retrieve(store.id).file_counts.in_progress, 60)
        status = {one.id: one.status for one in client.vector_stores.files.list(store.id)}
        assert [status[each] for each in files] == ["completed", "failed", "completed"]
        found = {one.file_id for one in client.vector_stores.search(store.id, query="the well", max_num_results=10)}
        assert found == {files[0], files[2]}


def test_a_restart_goes_on_where_it_was(tmp_path):
    with small_server(tmp_path, slow_model(0.05)) as running, running.client() as client:
        store = client.vector_stores.create(name="kept")
        file = upload(client, "river.txt", b"The river reaches the sea. " * 300)
        client.vector_stores.files.create(store.id, file_id=file.id)
        until(lambda: client.vector_stores.retrieve(store.id).usage_bytes > 0)
        with pytest.raises(ServingError, match="another server"), small_server(tmp_path):
            pass
    with small_server(tmp_path, served.tiny_memory3()) as running, running.client() as client:  # of other settings
        assert [one.file_counts.in_progress for one in client.vector_stores.list()] == [1]
        refused(503, client.vector_stores.search, store.id, query="river")
    with small_server(tmp_path, slow_model()) as running, running.client() as client:
        assert [one.name for one in client.vector_stores.list()] == ["kept"]
        assert f"tiny@{store.id}" in [one.id for one in client.models.list()]
        assert client.vector_stores.files.poll(file.id, vector_store_id=store.id).status == "completed"
        assert client.vector_stores.search(store.id, query="river").data[0].file_id == file.id


def test_what_a_key_has_left_is_told_when_the_key_is_gone(tmp_path):
    first, second = KEYS[:2]
    with served.server(tmp_path, banks={}, keys=[first, second], files=StorageLimits()) as running:
        with running.client(first) as client, running.client(second) as other:
            client.vector_stores.create(file_ids=[upload(client).id])
            upload(other, "river.txt", RIVER)
        assert running.state.storage.unowned(running.state.keys.names) == []
    with served.server(tmp_path, banks={}, keys=[second, KEYS[2].split()[0]], files=StorageLimits()) as running:
        (left,) = running.state.storage.unowned(running.state.keys.names)
        assert (left.files, left.bytes, left.stores) == (1, len(BRIDGE), 1)
        assert (left.folder / "files").is_dir()
    with small_server(tmp_path) as running:  # without keys nobody is either of them
        assert len(running.state.storage.unowned(running.state.keys.names)) == 2
    shutil.rmtree(left.folder)
    with served.server(tmp_path, banks={}, keys=[second], files=StorageLimits()) as running:
        assert running.state.storage.unowned(running.state.keys.names) == []
        with running.client(second) as client:
            assert [file.filename for file in client.files.list()] == ["river.txt"]
