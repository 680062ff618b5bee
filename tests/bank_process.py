"""What the crash tests run in processes of their own, to be killed."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

from bank_writer import HashingEmbedder, HashingWriter, documents, open_bank

from memory3.bank import Bank
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
