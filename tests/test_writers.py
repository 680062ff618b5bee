"""Writing with several workers: the rows of one quiet process, each once, whatever workers, committer and spool go through."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import kill_writers
import pytest
from bank_writer import HashingEmbedder, HashingWriter, contents, documents, expected, open_bank
from codebooks import fitted
from command_line import error, run_json
from kill_writers import rows_of
from shard_worker import Here, Nursery, pool_here

import memory3
from memory3.bank import Bank, EncodedShard, encode_shard
from memory3.bank.write import pace
from memory3.bank.write.plan import single_shard
from memory3.benchmarks.synthetic import NoiseEmbedder, NoiseWriter, leave_noise, noise_documents
from memory3.cluster.pool import ShardPool
from memory3.cluster.recipe import Recipe
from memory3.cluster.spool import Spool
from memory3.config import MemoryConfig
from memory3.errors import BankBusy, BankError, BankFull, ConfigError, InputError, ModelError, WorkerLost
from memory3.types import Document, MemoryShape

LARGE = Document("large", " ".join(f"a{n}" for n in range(90)))
linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, kills and mounts the Linux way")


@pytest.fixture(autouse=True)
def small_commits(monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 8)


def first() -> list[Document]:
    return [*documents(), LARGE]


def second() -> list[Document]:
    """Longer, shorter, emptied, equal and new documents, one large, two gone."""
    longer = [Document(d.id, d.text * 2, d.source, d.metadata) for d in documents()[:3]]
    shorter = [Document(d.id, d.text[: len(d.text) // 3], d.source, d.metadata) for d in documents()[3:6]]
    large = Document("large", LARGE.text + " " + " ".join(f"b{n}" for n in range(20)))
    return [*longer, large, Document("doc6", " "), *shorter, *documents()[7:10], *documents(19)[12:]]


# ---- the same bank -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_the_same_rows_as_of_one_process(tmp_path, lazy):
    m3 = HashingWriter()
    with open_bank(tmp_path / "one") as one, open_bank(tmp_path / "many", m3) as many:
        for given in (first(), second()):
            wanted = one.write(given, prune=True, lazy=lazy)
            told = []
            workers = HashingWriter()
            with pool_here(tmp_path / "many", workers, 3) as pool:
                report = many.write(given, prune=True, lazy=lazy, pool=pool, progress=told.append)
            found = (report.written, report.added, report.unchanged, report.removed, report.references)
            assert found == (wanted.written, wanted.added, wanted.unchanged, wanted.removed, wanted.references)
            assert [step.references for step in told] == sorted(step.references for step in told)
            assert rows_of(many).equals(rows_of(one))
            assert many.verify().ok
            assert workers.encoded == 0 if lazy else workers.encoded > 20
        assert m3.encoded == 0
        with pool_here(tmp_path / "many", workers := HashingWriter()) as pool:
            assert many.write(second(), prune=True, lazy=lazy, pool=pool).written == 0
        assert workers.encoded == 0
    assert sorted(os.listdir(tmp_path)) == ["many", "one"]


def test_ready_shards_go_into_one_commit(tmp_path, monkeypatch):
    """As many as a commit may hold, so that a fast pool does not leave a fragment for each shard."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 64)
    given = [Document(f"d{n}", " ".join(f"w{n}" for n in range(20))) for n in range(24)]  # 5 references each
    with open_bank(tmp_path / "bank") as bank, pool_here(tmp_path / "bank", workers=5, references=10) as pool:
        pool.ahead = 11  # all but one of twelve shards are there when the first commit is made
        begin = pool.begin

        def begun(shard, code_book):
            coming = begin(shard, code_book)
            coming.result()
            return coming

        pool.begin = begun
        before = bank._snapshot.version
        bank.write(given, pool=pool)
        assert bank._snapshot.version - before == 2
        assert contents(bank) == expected(given)


def test_a_codebook_reaches_the_workers(tmp_path):
    m3 = HashingWriter(config=MemoryConfig(reference_length=4, codec="int8"))
    book = fitted("int8", m3)
    for name in ("one", "many"):
        with open_bank(tmp_path / name, m3, code_book=book) as bank:
            bank.write(documents(7), pool=pool_here(tmp_path / name, m3) if name == "many" else None)
    with open_bank(tmp_path / "one", m3) as one, open_bank(tmp_path / "many", m3) as many:
        assert rows_of(many).equals(rows_of(one))


# ---- going on ------------------------------------------------------------------------------------------------------------


def test_a_write_that_was_interrupted_takes_what_was_encoded_from_the_spool(tmp_path):
    given = [Document(f"d{n}", " ".join(f"w{n}{m}" for m in range(24))) for n in range(11)]  # 6 references: a shard
    workers, bank = HashingWriter(), open_bank(tmp_path / "bank")

    def stopped():
        yield from given[:9]
        deadline = time.monotonic() + 60
        while workers.encoded < 9 * 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pool_here(tmp_path / "bank", workers) as pool:
        bank.write(stopped(), pool=pool)
    committed = len({row[0].document_id for row in contents(bank).values()})
    kept = list((tmp_path / "bank.spool").glob("*.arrow"))
    assert 0 < committed < 9
    assert len(kept) == 9 - committed
    again = HashingWriter()
    with pool_here(tmp_path / "bank", again) as pool:
        assert bank.write(given, pool=pool).written == 11 - committed
    assert again.encoded == 2 * 6
    assert contents(bank) == expected(given)
    assert not (tmp_path / "bank.spool").exists()


@linux
@pytest.mark.long
def test_killed_at_random_moments(tmp_path, monkeypatch):
    """A worker, the committer, or all; `kill_writers` compares every row with those of a quiet write."""
    places = [Path(__file__).parent, Path(memory3.__file__).parents[1]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
    counts = kill_writers.run(tmp_path, moments=5, seed=3)
    assert counts["worker"] + counts["both"] > 0
    assert counts["committer"] + counts["both"] > 0


# ---- workers that are no good --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nursery():
    if sys.platform != "linux":
        pytest.skip("forks the Linux way")
    return Nursery()


def test_a_worker_that_hangs_is_replaced(tmp_path, nursery):
    """The first is stopped in front of its model; it is given up once it has encoded nothing for so long."""
    pids = []

    def told(pid):
        if not pids:
            os.kill(pid, signal.SIGSTOP)
        pids.append(pid)

    with open_bank(tmp_path / "bank") as bank, nursery.pool(tmp_path / "bank", 1, told=told, silence=3.0) as pool:
        bank.write(documents(4), pool=pool)
        assert contents(bank) == expected(documents(4))
        assert (pool.lost, len(pids)) == (1, 2)


def test_a_worker_that_only_lives_is_given_up(tmp_path, nursery):
    """It gives signs of life and encodes nothing, three times."""
    with (
        open_bank(tmp_path / "bank") as bank,
        nursery.pool(tmp_path / "bank", 1, first={"hang": 60.0}, patience=0.3) as pool,
        pytest.raises(WorkerLost, match=r"3 workers were lost over one shard, that of 'doc0'.*encoded nothing for 0.3 s"),
    ):
        bank.write(documents(4), pool=pool)


def test_a_worker_that_dies_each_time_is_told_of(tmp_path, nursery):
    def told(pid):
        os.kill(pid, signal.SIGKILL)

    with open_bank(tmp_path / "bank") as bank:
        with nursery.pool(tmp_path / "bank", 2, told=told) as pool, pytest.raises(WorkerLost, match=r"ended .*go on"):
            bank.write(documents(4), pool=pool)
        assert len(bank) == 0
        with nursery.pool(tmp_path / "bank", 2) as pool:
            bank.write(documents(4), pool=pool)
        assert contents(bank) == expected(documents(4))


def test_a_worker_with_another_model_is_refused(tmp_path, nursery):
    with (
        open_bank(tmp_path / "bank") as bank,
        nursery.pool(tmp_path / "bank", 1, first={"name": "other"}) as pool,
        pytest.raises(ConfigError, match="a worker holds another model than the bank's"),
    ):
        bank.write(documents(4), pool=pool)
    assert pool.lost == 0


def test_a_worker_tells_what_it_cannot_load(tmp_path, nursery):
    with (
        open_bank(tmp_path / "bank") as bank,
        nursery.pool(tmp_path / "bank", 1, first={"fail": "no such model"}) as pool,
        pytest.raises(ModelError, match="no such model"),
    ):
        bank.write(documents(2), pool=pool)
    assert pool.lost == 0


@pytest.mark.parametrize("data", [{}, {"model": "m", "config": "{}", "more": 1}])
def test_what_is_no_recipe_is_refused(data):
    with pytest.raises(InputError, match="no recipe"):
        Recipe.of(data)


def test_workers_end_with_who_started_them(tmp_path, nursery):
    worker = nursery.start(tmp_path)
    worker.stdin.close()
    assert worker.wait(20) == -signal.SIGKILL


# ---- a spool of others ---------------------------------------------------------------------------------------------------


def shard_of(bank, given):
    rows = [row for shard in bank.plan(given).shards for row in shard.rows]
    return single_shard(rows, bank.manifest.to_json(), bank._snapshot.id.table_id, lazy=False)


@pytest.mark.parametrize("harm", ["damaged", "foreign rows", "another model", "empty", "link", "folder"])
def test_what_lies_in_the_spool_is_not_trusted(tmp_path, harm):
    given = documents(3)
    with open_bank(tmp_path / "bank") as bank:
        shard, spool = shard_of(bank, given), Spool.beside(tmp_path / "bank")
        spool.prepare()
        path = spool.folder / f"{shard.plan}.arrow"
        good = encode_shard(HashingWriter(), shard, embedder=HashingEmbedder())
        if harm == "damaged":
            data = bytearray(good.to_bytes())
            data[data.index(b"w1")] ^= 16
            path.write_bytes(data)
        elif harm == "foreign rows":
            other = encode_shard(HashingWriter(), shard_of(bank, documents(3, seed=5)), embedder=HashingEmbedder())
            path.write_bytes(EncodedShard(shard.plan, 0, other.rows).to_bytes())
        elif harm == "another model":
            with open_bank(tmp_path / "other", HashingWriter(name="other")) as foreign:
                theirs = encode_shard(HashingWriter(name="other"), shard_of(foreign, given), embedder=HashingEmbedder())
            path.write_bytes(EncodedShard(shard.plan, 0, theirs.rows).to_bytes())
        elif harm == "empty":
            path.write_bytes(b"")
        elif harm == "link":
            (tmp_path / "elsewhere").write_bytes(good.to_bytes())
            path.symlink_to(tmp_path / "elsewhere")
        else:
            path.mkdir()
        workers = HashingWriter()
        pool = pool_here(tmp_path / "bank", workers, references=100)
        if harm == "folder":
            with pool, pytest.raises(memory3.errors.BankError):
                bank.write(given, pool=pool)
            return
        with pool:
            bank.write(given, pool=pool)
        assert contents(bank) == expected(given)
        assert workers.encoded == len(expected(given))


def test_a_good_shard_in_the_spool_is_used_and_one_of_another_bank_is_not(tmp_path):
    given, encoded = documents(3), []
    for name in ("bank", "again"):
        with open_bank(tmp_path / name) as bank:
            spool = Spool.beside(tmp_path / name)
            if name == "bank":
                spool.prepare()
                spool.keep(encode_shard(HashingWriter(), shard_of(bank, given), embedder=HashingEmbedder()))
                shutil.copytree(spool.folder, tmp_path / "again.spool")
                (tmp_path / "again.spool" / "notes.txt").write_text("of a person")
            with pool_here(tmp_path / name, workers := HashingWriter(), references=100) as pool:
                bank.write(given, pool=pool)
            encoded.append(workers.encoded)
            assert contents(bank) == expected(given)
    assert encoded == [0, len(expected(given))]
    assert os.listdir(tmp_path / "again.spool") == ["notes.txt"]  # what is not ours stays


def test_a_spool_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bank.spool").symlink_to(tmp_path / "elsewhere")
    with (
        open_bank(tmp_path / "bank") as bank,
        pool_here(tmp_path / "bank") as pool,
        pytest.raises(InputError, match="is a link, or belongs to another user"),
    ):
        bank.write(documents(3), pool=pool)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("shard_id", ["", "../../etc/passwd", "0" * 31, "G" * 32])
def test_only_ids_of_shards_are_names(tmp_path, shard_id):
    with pytest.raises(InputError, match="no id of a shard"):
        Spool(tmp_path).load(shard_id)


# ---- others that write, and a full disk ----------------------------------------------------------------------------------


def test_a_second_writer_waits_its_turn(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Waits(Here):
        def encode(self, shard, code_book):
            begun.set()
            assert go_on.wait(60)
            super().encode(shard, code_book)

    def write():
        with open_bank(tmp_path / "bank") as bank, pool_here(tmp_path / "bank", kind=Waits) as pool:
            bank.write(documents(5), pool=pool)

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(60)
    with open_bank(tmp_path / "bank") as bank:
        with pool_here(tmp_path / "bank") as pool, pytest.raises(BankBusy):
            bank.write(documents(7), pool=pool)
        threading.Timer(0.3, go_on.set).start()
        with pool_here(tmp_path / "bank") as pool:
            assert bank.write(documents(7), pool=pool, wait_seconds=60).written == 2
        writer.join()
        assert contents(bank) == expected(documents(7))


def test_a_full_disk_under_the_spool(tmp_path):
    """Of 2 MB, where the bank has enough."""
    disk = tmp_path / "bank.spool"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        m3 = HashingWriter(MemoryShape(tuple(range(5)), 3, 64, 1000))  # 258 KB a record
        given = [Document(f"d{n}", "some words of the document") for n in range(20)]
        with open_bank(tmp_path / "bank", m3) as bank:
            with (
                pool_here(tmp_path / "bank", m3, references=8) as pool,
                pytest.raises(BankFull, match=r"spool: no space left"),
            ):
                bank.write(given, pool=pool)
            assert bank.verify().ok
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            with pool_here(tmp_path / "bank", m3, references=8) as pool:
                bank.write(given, pool=pool)
            assert contents(bank) == expected(given, m3)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("name", ["workers", "shard_references"])
def test_numbers_that_cannot_be(tmp_path, name):
    with pytest.raises(ConfigError, match="whole number from 1"):
        ShardPool(Spool(tmp_path), lambda: None, **{"workers": 2, name: 0})


@pytest.mark.parametrize("kind", ["lost", "after"])
def test_on_object_storage_a_commit_whose_answer_is_lost_is_made_once(s3, tmp_path, kind):
    """Of some commits in a row only the answer is lost, or an error comes back; the write ends or goes on. Run once more, all
    is there once.
    """
    url, given = s3.place(), [*documents(7), LARGE]
    with open_bank(url) as bank:
        s3.fault(kind, "PUT .*_versions/", skip=2, times=9)
        try:
            with pool_here(url) as pool:
                bank.write(given, pool=pool)
        except BankError:
            pass
        assert s3.mend()[0] > 0
        with pool_here(url) as pool:
            bank.write(given, pool=pool)
        assert contents(bank) == expected(given)
        assert len(rows_of(bank)) == len(expected(given))
        assert bank.verify().ok
        assert not Spool.beside(url).folder.exists()
        assert tmp_path in Spool.beside(url).folder.parents  # in the cache folder of this machine


# ---- the benchmark's stand-ins -------------------------------------------------------------------------------------------


def test_noise_has_the_form_of_a_real_bank(tmp_path):
    """What `memory3 bench scale` writes is accepted, verified, found and read as any other row."""

    class Noise(Here):
        def encode(self, shard, code_book):
            leave_noise(shard.to_json(), str(self.spool.folder))

    m3, embedder = NoiseWriter(186), NoiseEmbedder(11)
    with Bank.open(tmp_path / "bank", m3, embedder=embedder) as bank:
        with pool_here(tmp_path / "bank", m3, kind=Noise, references=3) as pool:
            assert bank.write(noise_documents(0, 7), pool=pool).references == 7
        assert bank.manifest.record_bytes == 48168
        assert bank.verify().ok
        (document,) = noise_documents(5, 6)
        assert bank.search([document.text], 1)[0][0].reference_id == "d5#0"
        (memory,) = bank.memories(["d5#0"])
        assert int(memory.counts.sum()) == 186
        assert float(memory.keys.std()) > 0.1


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_writes_with_workers_as_without(tmp_path, tiny_model_path, monkeypatch):
    """Real processes with a real, tiny model."""
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for number in range(3):
        Path(f"docs/{number}.txt").write_text(f"The bridge number {number} was built in 187{number}. " * 7)
    options = ("--model", tiny_model_path, "--batch-size", "1")
    one = run_json("write", "docs", "--bank", "one", *options)
    many = run_json("write", "docs", "--bank", "many", *options, "--workers", "1")
    assert (many["written"], many["references"]) == (one["written"], one["references"])
    with memory3.Bank.open("one", None) as quiet, memory3.Bank.open("many", None) as bank:
        assert rows_of(bank).equals(rows_of(quiet))
    assert not Path("many.spool").exists()


def test_ray_is_an_extra(tmp_path, tiny_model_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("a.txt").write_text("The bridge was built in 1874.")
    said = error("write", "a.txt", "--bank", "bank", "--model", tiny_model_path, "--ray", "local")
    assert "pip install 'memory3[ray]'" in said
    assert not Path("bank").exists()
