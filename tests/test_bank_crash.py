"""What survives: kill -9 at any moment, two writers at once, a full disk."""

from __future__ import annotations

import errno
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bank_process
import numpy as np
import pytest
from bank_writer import HashingWriter, contents, documents, expected, open_bank

import memory3
from memory3.bank import Bank
from memory3.bank.write import pace
from memory3.errors import BankBusy, BankFull
from memory3.types import Document, MemoryShape

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes and mounts file systems the Linux way"),
    pytest.mark.filterwarnings("ignore:lancedb fork support"),
]


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything already. lancedb resets itself in them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bank_process", "lancedb"])  # lancedb is imported when a bank is opened: not in each anew
    with pytest.MonkeyPatch.context() as patch:
        # The fork server does not inherit sys.path: it must find these very files, not an installed memory3.
        places = [Path(__file__).parent, Path(memory3.__file__).parents[1]]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        multiprocessing.forkserver.ensure_running()

    def start(target, *args):
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(args[0], theirs, *args[1:]), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    return start


def killed_after(processes, steps, delay, target, *args):
    """Start, wait until it has told of so many steps and ``delay`` seconds longer, kill. Whether it was still running."""
    process, pipe = processes(target, *args)
    try:
        for _ in range(steps):
            pipe.recv()
    except EOFError:
        pass  # it has come to its end
    process.join(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A bank with the first version of the documents."""
    path = tmp_path_factory.mktemp("first") / "bank"
    with open_bank(path) as bank:
        bank.write(bank_process.first_version())
    return path


@pytest.mark.long
def test_killed_while_writing(tmp_path, processes, first, monkeypatch):
    """Killed at 20 random moments or more: always a whole bank, of old and new documents, that goes on to the same end."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)
    rng = np.random.default_rng(3)
    old, new = expected(bank_process.first_version()), expected(bank_process.second_version())
    kills = mixed = resumed = rounds = 0
    while kills < 20 or (resumed <= 2 and rounds < 40):  # on a slow machine fewer are killed after their first commit
        path = tmp_path / f"bank{(rounds := rounds + 1)}"  # both of a round may end before they are killed
        shutil.copytree(first, path)
        for _ in range(2):
            kills += killed_after(
                processes, rng.integers(1, 70), rng.uniform(0, 0.03), bank_process.write_second_version, path
            )
            with open_bank(path) as bank:
                assert bank.verify().problems == ()
                found = contents(bank)
                for entry in bank.documents():
                    assert rows_of(found, entry.id) in (rows_of(old, entry.id), rows_of(new, entry.id))
                mixed += found not in (old, new)
        m3 = HashingWriter()
        with open_bank(path, m3) as bank:
            bank.write(bank_process.second_version(), prune=True)
            assert contents(bank) == new
            assert bank.verify().ok
            assert bank.write(bank_process.second_version(), prune=True).written == 0
        resumed += 0 < m3.encoded < len(new)
        assert sorted(os.listdir(path)) == ["CURRENT", "recalls.jsonl", "references-1.lance", "writer.lock"]
    assert mixed > 5
    assert resumed > 2


def test_killed_while_several_threads_encode(tmp_path, processes, first):
    """The same, where what comes after a commit is being encoded while it is made."""
    rng = np.random.default_rng(5)
    old, new = expected(bank_process.first_version()), expected(bank_process.second_version())
    path, kills = tmp_path / "bank", 0
    shutil.copytree(first, path)
    for _ in range(7):
        kills += killed_after(processes, rng.integers(1, 50), rng.uniform(0, 0.03), bank_process.write_ahead, path)
        with open_bank(path) as bank:
            assert bank.verify().problems == ()
            found = contents(bank)
            for entry in bank.documents():
                assert rows_of(found, entry.id) in (rows_of(old, entry.id), rows_of(new, entry.id))
    with open_bank(path, bank_process.Several()) as bank:
        bank.write(bank_process.second_version(), prune=True)
        assert contents(bank) == new
        assert bank.verify().ok
    assert kills > 0


def rows_of(all_rows, document_id):
    return {id_: row for id_, row in all_rows.items() if row[0].document_id == document_id}


def test_a_large_document_goes_on_where_it_was_killed(tmp_path, processes, monkeypatch):
    """What was encoded of a document that fits into no commit is not encoded again."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)
    document = next(d for d in bank_process.second_version() if d.id == "huge")
    m3 = HashingWriter()

    def stop(progress):
        if progress.references >= 20:
            raise KeyboardInterrupt

    with open_bank(tmp_path / "bank", m3) as bank:
        with pytest.raises(KeyboardInterrupt):
            bank.write([document], progress=stop)
        bank.refresh()
        assert len(bank) == 0
        bank.write([document])
        assert contents(bank) == expected([document])
    assert m3.encoded < len(expected([document])) + 10


def test_killed_while_rebuilding(tmp_path, processes, first):
    rng = np.random.default_rng(4)
    old = expected(bank_process.first_version())
    new = expected(bank_process.first_version(), HashingWriter(name="other"))
    for number in range(6):
        path = tmp_path / f"bank{number}"
        shutil.copytree(first, path)
        for _ in range(2):
            killed_after(processes, rng.integers(0, 50), rng.uniform(0, 0.03), bank_process.rebuild, path)
            name = Bank.describe(path).model
            with open_bank(path, HashingWriter(name=name)) as bank:
                assert bank.verify().ok
                assert contents(bank) == (old if name == "hashing" else new)


def test_killed_while_creating(tmp_path, processes):
    rng = np.random.default_rng(5)
    for number in range(6):
        path = tmp_path / f"bank{number}"
        killed_after(processes, 1, rng.uniform(0, 0.05), bank_process.create, path)
        with open_bank(path) as bank:
            bank.write(documents(3))
            assert contents(bank) == expected(documents(3))


def test_two_processes_writing(tmp_path, processes):
    path = tmp_path / "bank"
    holder, pipe = processes(bank_process.hold_lock, path)
    assert pipe.recv()
    try:
        _, other = processes(bank_process.try_to_write, path)
        assert "another process is writing" in other.recv()
        with open_bank(path) as bank, pytest.raises(BankBusy):
            bank.write(documents(1), wait_seconds=0.1)
    finally:
        holder.kill()
        holder.join()
    _, other = processes(bank_process.try_to_write, path)
    assert other.recv() == "written"  # the system released the lock of the killed process


def test_writers_that_wait_take_turns(tmp_path, processes):
    path = tmp_path / "bank"
    pipes = [processes(bank_process.write_own, path, name)[1] for name in "ab"]
    for pipe in pipes:
        assert [pipe.recv(), pipe.recv()] == [True, "done"]
    with open_bank(path) as bank:
        assert contents(bank) == expected([Document(f"{n}{i}", f"words by {n} {i}") for n in "ab" for i in range(5)])


# ---- disk full -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_full(small_disk, monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 10)
    m3 = HashingWriter(MemoryShape(tuple(range(5)), 3, 64, 1000))  # 258 KB a record
    docs = [Document(f"d{n}", "some words of the document") for n in range(40)]
    with open_bank(small_disk / "bank", m3) as bank:
        with pytest.raises(BankFull, match=r"no space left.*intact"):
            bank.write(docs)
        bank.refresh()
        kept = contents(bank)
        assert 0 < len(kept) < 80
        assert kept.items() <= expected(docs, m3).items()
        assert bank.verify().ok
        with pytest.raises(BankFull):
            bank.compact()
        assert contents(bank) == kept
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        report = bank.write(docs)
        assert report.unchanged == len(kept) // 2
        assert contents(bank) == expected(docs, m3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_while_making_a_bank(tmp_path, monkeypatch, number, call):
    def full(*args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(BankFull):
            open_bank(tmp_path / "bank")
    with open_bank(tmp_path / "bank") as bank:
        assert bank.write(documents(2)).written == 2


@pytest.mark.parametrize("failing", range(1, 6))
def test_disk_full_at_each_commit(tmp_path, first, monkeypatch, failing):
    """Lance's own message in place of a full disk, at the n-th commit."""
    from lancedb.table import LanceTable

    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)
    path = tmp_path / "bank"
    shutil.copytree(first, path)
    commits = 0

    def guarded(method):
        def call(*args, **kwargs):
            nonlocal commits
            commits += 1
            if commits == failing:
                raise RuntimeError("lance error: LanceError(IO): No space left on device (os error 28), writer.rs:191:9")
            return method(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("add", "delete", "_do_merge"):
            patch.setattr(LanceTable, name, guarded(getattr(LanceTable, name)))
        with open_bank(path) as bank, pytest.raises(BankFull, match=str(path)):
            bank.write(bank_process.second_version(), prune=True)
    with open_bank(path) as bank:
        assert bank.verify().ok
        bank.write(bank_process.second_version(), prune=True)
        assert contents(bank) == expected(bank_process.second_version())
