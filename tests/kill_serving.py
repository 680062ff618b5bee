"""A server that keeps files, killed while files come in and are encoded; what its clients were told is then compared with what
there is.

    python tests/kill_serving.py 50
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
from bank_writer import HashingEmbedder
from file_server import slow_model

from memory3.bank import Bank
from memory3.types import Document

_WORDS = ("river", "bridge", "engineer", "county", "memory", "reader", "answer", "question", "mountain", "town", "sea", "key")


class Told:
    """What clients were told, and what they sent without hearing of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: dict[str, bytes] = {}  # by file id
        self.sent: set[bytes] = set()  # everything, acknowledged or not
        self.added: dict[str, str] = {}  # file id -> store id
        self.asked: set[tuple[str, str]] = set()  # (file, store) whose adding was asked for
        self.deleted: set[str] = set()  # file ids
        self.leaving: set[str] = set()  # file ids whose deletion was asked for
        self.stores: list[str] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[BaseException] = []  # of the clients' threads


class Server:
    """The process."""

    def __init__(self, data: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("file_server.py")), str(data), "0.01"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().decode().strip()
        assert address, "the server does not start"
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0, timeout=60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        self.client.close()


def text(rng: random.Random, number: str, words: int) -> bytes:
    return f"Document {number}. {' '.join(rng.choices(_WORDS, k=words))}.".encode()


def work(server: Server, told: Told, rng: random.Random, name: str, stop: threading.Event) -> None:
    """A client: uploads, adds to stores, deletes, until the server is gone."""
    client, number = server.client, 0
    while not stop.is_set():
        number += 1
        # Mostly small files, some of many chunks, so that the kill falls into uploads, states and commits.
        words = rng.choice((5, 30, 60, 200_000 if rng.random() < 0.3 else 40))
        data = text(rng, f"{name}.{number}", words)
        try:
            with told.lock:
                told.sent.add(data)
                told.counts["uploads asked"] += 1
            file = client.files.create(file=(f"../{name}-{number}.txt", data), purpose="assistants")
            with told.lock:
                told.kept[file.id] = data
                told.counts["uploads acknowledged"] += 1
            if words < 100:
                store = rng.choice(told.stores)
                with told.lock:
                    told.asked.add((file.id, store))
                client.vector_stores.files.create(vector_store_id=store, file_id=file.id)
                with told.lock:
                    told.added[file.id] = store
                    told.counts["additions acknowledged"] += 1
            if rng.random() < 0.25 and told.kept:
                with told.lock:
                    mine = [each for each in told.kept if each not in told.leaving]
                    gone = rng.choice(mine) if mine else None
                    if gone:
                        told.leaving.add(gone)
                if gone:
                    client.files.delete(gone)
                    with told.lock:
                        told.deleted.add(gone)
                        told.counts["deletions acknowledged"] += 1
        except (openai.APIConnectionError, openai.APITimeoutError):
            with told.lock:
                told.counts["cut off"] += 1
            return
        except openai.NotFoundError:
            with told.lock:  # another client deletes the file that this one adds
                told.counts["overtaken"] += 1
        except BaseException as error:
            told.faults.append(error)
            raise


def check(server: Server, told: Told) -> None:
    """What is there is what was told: nothing acknowledged is missing, nothing is half there, nothing is there twice."""
    client = server.client
    there = {file.id: file for file in client.files.list(limit=10_000)}
    for file_id, data in told.kept.items():
        if file_id in told.deleted:
            assert file_id not in there, f"{file_id} was deleted and is back"
        elif file_id not in told.leaving:
            assert file_id in there, f"{file_id} was acknowledged and is lost"
            assert there[file_id].bytes == len(data)
            assert client.files.content(file_id).read() == data, f"{file_id} has other bytes"
    unheard = 0
    for file_id in there:
        if file_id not in told.kept:  # the server died between keeping it and saying so
            assert client.files.content(file_id).read() in told.sent, f"{file_id} is half there"
            unheard += 1
    told.counts["whole, though nobody was told"] = unheard
    for file_id, store in told.added.items():
        if file_id not in told.leaving:
            client.vector_stores.files.retrieve(file_id, vector_store_id=store)


def settled(server: Server, told: Told, seconds: float = 240.0) -> None:
    """Wait until everything acknowledged is encoded."""
    until = time.monotonic() + seconds
    for store in told.stores:
        while server.client.vector_stores.retrieve(store).file_counts.in_progress:
            assert time.monotonic() < until, "it is not encoded in time"
            time.sleep(0.2)
    # Removals are made in the order they came: when this one is done, those of before the restart are.
    last = server.client.files.create(file=("last.txt", b"last"), purpose="assistants")
    server.client.vector_stores.files.create(vector_store_id=told.stores[0], file_id=last.id)
    server.client.files.delete(last.id)


def check_banks(data: Path, told: Told, m3: Any) -> None:
    """Every document is in its bank once, whole, and nothing else is."""
    for store in told.stores:
        (place,) = data.glob(f"tenant-*/stores/{store}")
        members = {path.stem: json.loads(path.read_text()) for path in (place / "files").glob("*.json")}
        with Bank.open(place / "bank", m3, embedder=HashingEmbedder(), create=False) as bank:
            report = bank.verify()
            assert report.ok, report.problems
            documents = [entry.id for entry in bank.documents()]
            assert len(documents) == len(set(documents))
            assert set(documents) == set(members), set(documents) ^ set(members)
            for entry in bank.documents():
                sent = told.kept.get(entry.id)
                if sent is not None:
                    wanted = len(list(m3.split(Document(entry.id, sent.decode()))))
                    assert entry.references == wanted, f"{entry.id} has {entry.references} references of {wanted}"
        for file_id, member in members.items():
            assert member["status"] == "completed", member
            assert (file_id, store) in told.asked
        for file_id, where in told.added.items():
            if where == store and file_id not in told.leaving:
                assert file_id in members
            if file_id in told.deleted:
                assert file_id not in members
        told.counts["documents"] += len(members)
    left = [path.name for path in data.glob("tenant-*/**/.*") if path.is_file() and "/bank/" not in str(path)]
    assert not left, f"half-written files stay: {left}"


def run(data: Path, rounds: int, seed: int = 0, clients: int = 4) -> Counter[str]:
    """Kill a server so many times. Returns what happened. AssertionError: something acknowledged is lost or half there."""
    rng, told = random.Random(seed), Told()
    for turn in range(rounds):
        server = Server(data)
        try:
            if not told.stores:
                told.stores += [server.client.vector_stores.create(name=name).id for name in ("a", "b")]
            check(server, told)
            stop = threading.Event()
            threads = [
                threading.Thread(target=work, args=(server, told, random.Random(rng.random()), f"{turn}.{client}", stop))
                for client in range(clients)
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.05, 2.0))
        finally:
            server.kill()
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not told.faults, told.faults
        told.counts["kills"] += 1
    server = Server(data)
    try:
        check(server, told)
        settled(server, told)
        check(server, told)
    finally:
        server.kill()
        server.client.close()
    check_banks(data / "files", told, slow_model())
    return told.counts


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder) / "data", int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(json.dumps({**figures, "seconds": round(time.monotonic() - started)}, indent=1))
