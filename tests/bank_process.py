"""What the crash tests run in processes of their own, to be killed."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bank_writer import HashingEmbedder, HashingWriter, documents, open_bank

from memory3.bank import Bank
from memory3.bank.backends import lease
from memory3.bank.write import pace
from memory3.errors import BankBusy
from memory3.types import Document


def first_version() -> list[Document]:
    return [*documents(), Document("large", " ".join(f"a{n}" for n in range(70)))]


def second_version() -> list[Document]:
    """Longer, shorter and equal documents, new ones, two gone, and large ones that go through the staging table."""
    longer = [Document(d.id, d.text * 2, d.source, d.metadata) for d in documents()[:4]]
    shorter = [Document(d.id, d.text[: len(d.text) // 3], d.source, d.metadata) for d in documents()[4:8]]
    large = [Document("large", " ".join(f"b{n}" for n in range(50))), Document("huge", " ".join(f"c{n}" for n in range(120)))]
    return [*longer, *large, *shorter, *documents()[8:10], *documents(20)[12:]]


def small_commits() -> None:
    pace.COMMIT_REFERENCES = 6


def write_second_version(path: Path, started: Connection) -> None:
    """Tells of every document and batch, about 80 times."""
    small_commits()
    with open_bank(path) as bank:
        bank.write(second_version(), prune=True, progress=lambda _: started.send(True))


class Several(HashingWriter):
    encoders = 2


def write_ahead(path: Path, started: Connection) -> None:
    """`write_second_version` with two threads that encode."""
    small_commits()
    with open_bank(path, Several()) as bank:
        bank.write(second_version(), prune=True, progress=lambda _: started.send(True))


def rebuild(path: Path, started: Connection) -> None:
    """Tells of every document and batch, about 50 times."""
    small_commits()
    other = HashingWriter(name="other")
    Bank.rebuild(path, other, embedder=HashingEmbedder(), progress=lambda _: started.send(True))


def create(path: Path, started: Connection) -> None:
    started.send(True)
    open_bank(path).write(documents(3))


def hold_lock(path: Path, started: Connection) -> None:
    """Write until killed."""

    def endless():
        yield documents(1)[0]
        started.send(True)
        time.sleep(60)

    open_bank(path).write(endless())


def write_own(path: Path, started: Connection, name: str) -> None:
    """Several writers at once: each writes its own documents, waiting for the others."""
    started.send(True)
    with open_bank(path) as bank:
        for number in range(5):
            bank.write([Document(f"{name}{number}", f"words by {name} {number}")], wait_seconds=30)
    started.send("done")


def try_to_write(path: Path, started: Connection) -> None:
    try:
        open_bank(path).write(documents(1))
    except BankBusy as error:
        started.send(str(error))
    else:
        started.send("written")


# ---- on object storage, where a request costs more than a commit in a folder -----------------------------------------------


def first_elsewhere() -> list[Document]:
    return [*documents(5), Document("large", " ".join(f"a{n}" for n in range(40)))]


def second_elsewhere() -> list[Document]:
    """A longer, a shorter, an equal document, a new one, one gone, and one that goes through the staging table."""
    first, second, third = documents(3)
    longer = Document(first.id, first.text * 2, first.source, first.metadata)
    shorter = Document(second.id, second.text[: len(second.text) // 3], second.source, second.metadata)
    return [longer, shorter, Document("large", " ".join(f"b{n}" for n in range(33))), third, documents(7)[6]]


def _elsewhere(environment: dict[str, str]) -> None:
    """A process that was forked before has another environment. Other writers are known to be dead."""
    small_commits()
    os.environ.update(environment)
    lease._OTHERS_MARGIN = -60.0


def write_elsewhere(url: str, started: Connection, environment: dict[str, str]) -> None:
    """Tells of every document and batch, about 30 times, and how it ended."""
    _elsewhere(environment)
    try:
        with open_bank(url) as bank:
            bank.write(second_elsewhere(), prune=True, progress=lambda _: started.send(True))
    except BankBusy as error:
        started.send(str(error))
    else:
        started.send("written")


def rebuild_elsewhere(url: str, started: Connection, environment: dict[str, str]) -> None:
    """Tells of every document and batch, about 30 times."""
    _elsewhere(environment)
    other = HashingWriter(name="other")
    Bank.rebuild(url, other, embedder=HashingEmbedder(), progress=lambda _: started.send(True))
