"""Banks on object storage, against a server of the S3 protocol in a process of its own (`object_store`): what a folder's tests
do not ask of a place. What they ask, `test_bank_backends` asks of this one, too.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path

import bank_process
import numpy as np
import pyarrow as pa
import pytest
from bank_writer import HashingEmbedder, HashingWriter, contents, documents, expected, open_bank
from object_store import KEY, SECRET

import memory3
from memory3.bank import Bank
from memory3.bank.backends import lease, objects
from memory3.bank.backends.object_store import ObjectBackend
from memory3.bank.backends.objects import Objects
from memory3.bank.disk import DiskCache
from memory3.bank.write import pace
from memory3.errors import (
    BankBusy,
    BankCorrupt,
    BankError,
    BankNotFound,
    BankRefused,
    BankUnreachable,
    InputError,
    MissingDependency,
)
from memory3.retention import RetentionPolicy
from memory3.types import Document, MemoryShape

pytestmark = pytest.mark.filterwarnings("ignore:lancedb fork support")

#: A large document, which goes through the staging table, among others.
SECOND = bank_process.second_elsewhere()
#: So that a fault that stays is told of at once.
IMPATIENT = {"client_max_retries": "0", "client_retry_timeout": "1", "timeout": "1s"}


def objects_of(url, **options):
    return Objects(url, options, retries=3, seconds=5.0)


@pytest.fixture
def impatient(monkeypatch):
    """No second tries of the small files' requests."""
    monkeypatch.setattr("memory3.bank.backends.object_store._RETRIES", 0)


# ---- the server, and conditional writes ----------------------------------------------------------------------------------


def test_the_server_honours_conditional_writes(s3):
    """Of those that write one object at once, one is let through."""
    at = objects_of(s3.place())
    assert at.create("a", b"1") is not None
    assert at.create("a", b"2") is None
    old = at.find("a").tag
    new = at.replace("a", b"3", old)
    assert (new is not None, at.replace("a", b"4", old), at.read("a")[0]) == (True, None, b"3")
    for write in (lambda n: at.create("b", b"%d" % n), lambda n: at.replace("a", b"by %d" % n, new)):
        with ThreadPoolExecutor(7) as pool:
            assert sorted(made is not None for made in pool.map(write, range(7))) == [False] * 6 + [True]


def test_a_store_without_conditional_writes_is_refused(s3):
    url = s3.place()
    s3.fault("plain", "PUT ")
    with pytest.raises(BankRefused, match="does not honour conditional writes"):
        open_bank(url)


def test_appends_at_once_are_all_kept(s3):
    place = ObjectBackend(s3.place())

    def append(name):
        for number in range(4):
            place.append("recalls.jsonl", f"{name}{number}\n")

    threads = [threading.Thread(target=append, args=(name,)) for name in "abc"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(place.read("recalls.jsonl").decode().split()) == [f"{a}{n}" for a in "abc" for n in range(4)]


# ---- who writes ----------------------------------------------------------------------------------------------------------


def test_writers_at_once_take_turns_and_lose_nothing(s3):
    """Each from an object of its own, as from another machine."""
    url, errors = s3.place(), []

    def write(name):
        try:
            with open_bank(url) as bank:
                for number in range(2):
                    bank.write([documents(12)[number + 3 * "ab".index(name)]], wait_seconds=60)
        except BankError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    wanted = [documents(12)[n + 3 * k] for k in range(2) for n in range(2)]
    with open_bank(url) as bank:
        assert contents(bank) == expected(wanted)
        assert bank.verify().ok
        with bank_lock(url), pytest.raises(BankBusy, match=rf"{os.uname().nodename} {os.getpid()}.*is writing"):
            bank.write(documents(1))


def bank_lock(url, **options):
    return ObjectBackend(url, **options).lock()


def test_a_lease_is_renewed_and_lost_by_who_gives_no_sign(s3, monkeypatch):
    """By the store's clock, whatever this machine's says."""
    url = s3.place()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    place = ObjectBackend(url, lease_seconds=4.0)
    with place.lock():
        place.write("CURRENT", "references-1\n")
        s3.fault("before", "PUT .*writer.lock", times=1, status=503)
        s3.fault("lost", "PUT .*writer.lock", times=1)
        time.sleep(3.6)  # without a renewal it would be lost
        assert s3.mend() == [1, 1]
        place.write("CURRENT", "references-2\n")
        monkeypatch.setattr(lease, "_OTHERS_MARGIN", 0.0)
        with pytest.raises(BankBusy), bank_lock(url, lease_seconds=4.0):
            pytest.fail("two writers")
        monkeypatch.setattr(lease, "_OTHERS_MARGIN", -60.0)  # as if it had given no sign for long
        with ObjectBackend(url, lease_seconds=4.0).lock(30.0):  # a sign that comes at this moment makes it look again
            time.sleep(1.5)
            with pytest.raises(BankBusy, match="gave no sign of life"):
                place.write("CURRENT", "references-1\n")
    assert place.read("CURRENT") == b"references-2\n"


@pytest.mark.parametrize("operation", ["add", "merge", "switch"])
def test_what_a_writer_began_before_another_took_its_place_never_counts(s3, monkeypatch, operation):
    """The worst of moments: the request that commits is under way while the place is taken."""
    url = s3.place()
    with open_bank(url) as bank:
        bank.write(documents(3))
    late, outcome = ObjectBackend(url), []
    table = late.open_table("references-1")
    row = table.search().where("ordinal = 0").limit(1).to_arrow()
    changes = {
        "add": lambda: table.add(row),
        "merge": lambda: table.merge_insert("reference_id").when_matched_update_all().execute(row),
        "switch": lambda: late.write("CURRENT", "references-9\n"),
    }

    def change():
        try:
            with late.lock():
                s3.fault("late", "PUT .*(manifest|CURRENT)", times=1, seconds=2.0)
                changes[operation]()
                outcome.append("committed")
        except Exception as error:
            outcome.append(str(error))

    thread = threading.Thread(target=change)
    thread.start()
    while thread.is_alive() and not s3.waiting():
        time.sleep(0.02)
    assert outcome == []
    monkeypatch.setattr(lease, "_OTHERS_MARGIN", -60.0)
    with open_bank(url) as bank:
        bank.write(documents(5))
    thread.join()
    assert outcome != ["committed"]
    with open_bank(url) as bank:
        assert contents(bank) == expected(documents(5))
        assert bank.verify().ok


def test_a_reader_beside_a_writer_sees_whole_documents(s3, monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)
    url, old, new = s3.place(), bank_process.first_elsewhere(), bank_process.second_elsewhere()
    with open_bank(url) as bank:
        bank.write(old)
    done = threading.Event()

    def write():
        with open_bank(url) as bank:
            bank.write(new, prune=True)
        done.set()

    texts = {id_: [d.text for d in [*old, *new] if d.id == id_] for id_ in {d.id for d in [*old, *new]}}
    thread = threading.Thread(target=write)
    thread.start()
    reads = 0
    with open_bank(url) as reader:
        while not done.is_set() or not reads:
            reader.refresh()
            view = reader.pin()
            rows = view.snapshot.scan(["document_id", "text", "ordinal"]).sort_by("ordinal")
            found = {}
            for document_id, text in zip(rows["document_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
                found[document_id] = found.get(document_id, "") + text
            assert all(text in texts[id_] for id_, text in found.items()), found
            reads += bool(found)
            time.sleep(0.3)
    thread.join()
    with open_bank(url) as bank:
        assert contents(bank) == expected(new)


# ---- killed and stopped --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything already."""
    if sys.platform != "linux":
        pytest.skip("kills processes the Linux way")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bank_process", "lancedb", "obstore"])
    with pytest.MonkeyPatch.context() as patch:
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


def told(pipe, steps):
    """Wait for so many steps. Whether there were as many."""
    try:
        for _ in range(steps):
            pipe.recv()
    except EOFError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("target", [bank_process.write_elsewhere, bank_process.rebuild_elsewhere])
def test_killed_at_any_moment(s3, processes, monkeypatch, target):
    """kill -9: a whole bank, of documents old and new, that verifies, and a write that goes on to the same end."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)
    rng = np.random.default_rng(7)
    old, new = bank_process.first_elsewhere(), bank_process.second_elsewhere()
    states = [expected(old), expected(new), expected(old, HashingWriter(name="other"))]
    kills = 0
    url = s3.place()
    monkeypatch.setattr(lease, "_OTHERS_MARGIN", -60.0)  # nobody need wait: the one before is known to be dead
    with open_bank(url) as bank:
        bank.write(old)
    for _ in range(2):
        process, pipe = processes(target, url, s3.environment())
        told(pipe, 1 + rng.integers(0, 9))
        process.join(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        name = Bank.describe(url).model
        with open_bank(url, HashingWriter(name=name)) as bank:
            assert bank.verify().problems == ()
            found = contents(bank)
            for entry in bank.documents():
                mine = {id_: row for id_, row in found.items() if row[0].document_id == entry.id}
                wanted = [{i: row for i, row in state.items() if row[0].document_id == entry.id} for state in states]
                assert mine in wanted
    assert kills >= 1
    m3 = HashingWriter(name=Bank.describe(url).model)
    with open_bank(url, m3) as bank:
        bank.write(new, prune=True)
        assert contents(bank) == expected(new, m3)
        bank.compact()
        assert bank.verify().ok
        assert contents(bank) == expected(new, m3)
        assert bank.write(new, prune=True).written == 0
    assert not [name for name in ObjectBackend(url).names() if "staging" in name or name.startswith(".")]


def test_a_writer_that_was_stopped_and_goes_on_destroys_nothing(s3, processes, monkeypatch):
    """Another took its place meanwhile. It ends with an error that says so, or had come to its end."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 6)
    monkeypatch.setattr(lease, "_OTHERS_MARGIN", -60.0)
    rng = np.random.default_rng(11)
    ends = []
    for _ in range(2):
        url = s3.place()
        with open_bank(url) as bank:
            bank.write(bank_process.first_elsewhere())
        process, pipe = processes(bank_process.write_elsewhere, url, s3.environment())
        assert told(pipe, rng.integers(3, 20))
        os.kill(process.pid, signal.SIGSTOP)
        with open_bank(url) as bank:
            bank.write(documents(3), prune=True)
            os.kill(process.pid, signal.SIGCONT)
            ends.append(last_told(pipe))
            process.join()
            assert contents(bank) == expected(documents(3))
            assert bank.verify().ok
            assert bank.write(documents(3), prune=True).written == 0
    assert sum("another writer has taken the bank over" in end for end in ends) >= 1, ends


def last_told(pipe):
    last = None
    try:
        while True:
            last = pipe.recv()
    except EOFError:
        return str(last)


# ---- faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [["lost"], ["after"], ["cut", "before", "slow"]], ids=lambda kinds: kinds[0])
def test_a_fault_now_and_then_changes_nothing(s3, monkeypatch, kinds):
    """Requests are tried again: nothing is lost, and nothing is there twice, also where only the answer was lost."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 12)
    url = s3.place()
    faults = [("PUT .*manifest", 1), ("PUT .*writer.lock", 1), ("PUT .*(CURRENT|data)", 0), ("GET ", 11), ("", 23)]
    for (path, skip), kind in zip(faults, itertools.cycle(kinds), strict=False):
        s3.fault(kind, path, times=1, skip=skip, status=503, seconds=0.3)
    with open_bank(url) as bank:
        bank.write([*documents(5), Document("large", " ".join(f"w{n}" for n in range(60)))])
        bank.write(documents(7, seed=1), prune=True)
        met = s3.mend()
        assert contents(bank) == expected(documents(7, seed=1))
        assert bank.verify().ok
    assert sum(met) >= 4, met


def test_a_write_into_a_store_that_stops_answering_goes_on_later(s3, impatient, monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 12)
    place = ObjectBackend(s3.place(), IMPATIENT)
    with open_bank(place) as bank:
        s3.fault("before", "(PUT|GET) ", skip=25, status=503, code="SlowDown")
        with pytest.raises(BankUnreachable, match="throttles"):
            bank.write(SECOND)
        s3.mend()
        monkeypatch.setattr(lease, "_OTHERS_MARGIN", -60.0)  # the lease could not be given back
        assert bank.verify().ok
        found = contents(bank)
        assert found.items() <= expected(SECOND).items()
        bank.write(SECOND)
        assert contents(bank) == expected(SECOND)


ERRORS = [
    (403, "AccessDenied", BankRefused, "refuses these credentials"),
    (403, "SignatureDoesNotMatch", BankRefused, "refuses these credentials"),
    (403, "InvalidAccessKeyId", BankRefused, "refuses these credentials"),
    (400, "ExpiredToken", BankRefused, "credentials have expired"),
    (403, "RequestTimeTooSkewed", BankRefused, "clock is wrong.*NTP"),
    (404, "NoSuchBucket", BankNotFound, "no such bucket"),
    (503, "SlowDown", BankUnreachable, "throttles"),
    (429, "TooManyRequests", BankUnreachable, "throttles"),
    (500, "InternalError", BankUnreachable, "fails by itself"),
    (400, "AuthorizationHeaderMalformed", BankRefused, "AWS_REGION"),
]


@pytest.mark.parametrize(
    ("path", "status", "code", "kind", "says"),
    [("", *row) for row in ERRORS] + [(path, *ERRORS[n]) for path in ("GET .*manifest", "PUT .*manifest") for n in (0, 6)],
)
def test_what_the_store_says_is_told_with_what_to_do(s3, impatient, path, status, code, kind, says):
    """In obstore's requests as in Lance's, for reading and for writing."""
    place = ObjectBackend(s3.place(), IMPATIENT)
    if path.startswith("PUT"):
        bank = open_bank(place)
        s3.fault("before", path, status=status, code=code)
        with pytest.raises(kind, match=says):
            bank.write(documents(1))
        return
    if path:
        open_bank(place)
    s3.fault("before", path, status=status, code=code)
    with pytest.raises(kind, match=says) as error:
        open_bank(ObjectBackend(place.location, IMPATIENT))
    assert place.location in str(error.value)


def test_who_cannot_be_reached_or_is_not_known(s3, impatient, monkeypatch):
    url = s3.place()
    with pytest.raises(BankNotFound, match=f"no bank at {url}"):
        open_bank(url, create=False)
    with pytest.raises(BankNotFound, match="no such bucket"):
        open_bank("s3://nosuchbucket/bank")
    with pytest.raises(BankUnreachable, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
        open_bank(ObjectBackend(url, {"aws_endpoint": "http://127.0.0.1:9"}))
    for kind, says in (("late", "does not answer in time"), ("cut", "cannot be reached")):
        s3.fault(kind, "", seconds=1.5)
        with pytest.raises(BankUnreachable, match=says):
            open_bank(ObjectBackend(url, IMPATIENT))
        s3.mend()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    with pytest.raises(BankRefused, match="refuses these credentials"):
        open_bank(url)
    open_bank(ObjectBackend(url, {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}))  # given to both libraries
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BankRefused, match=r"no credentials were found.*AWS_ACCESS_KEY_ID"):
        open_bank(ObjectBackend(url, {"metadata_endpoint": "http://127.0.0.1:9"}))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("ftp://host/bank", "no place of a bank"),
        ("file:///bank", "no place of a bank"),
        ("s3://bucket", "bucket and prefix"),
        ("s3:///bank", "bucket and prefix"),
        ("s3://bucket/a/../b", "bucket and prefix"),
        ("s3://key:secret@bucket/bank", "no more"),
        ("s3://bucket/bank?endpoint=x", "no more"),
        (Path("s3://bucket/bank"), "give it as text"),
    ],
)
def test_places_that_no_bank_can_have(tmp_path, monkeypatch, place, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says) as error:
        open_bank(place)
    assert "secret" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingDependency, match=r"memory3\[s3\]"):
        open_bank("s3://bucket/bank")


# ---- old versions, and what should not be there ---------------------------------------------------------------------------


def test_ages_are_told_by_the_stores_clock(s3, monkeypatch):
    """A clock a day off must not remove what readers may still use, nor keep others from doing so."""
    url = s3.place()
    with open_bank(url) as bank:
        bank.write(documents(2))
    with open_bank(url) as reader:
        monkeypatch.setattr(time, "time", lambda: 86400.0 * 365 * 90)
        with open_bank(url) as bank:
            bank.write(documents(5))
            bank.compact()
        assert len(list(reader.documents())) == 2
        assert contents_of(reader, documents(2)) == expected(documents(2))
        monkeypatch.setattr("memory3.bank.upkeep.GRACE", timedelta(seconds=-2))
        with open_bank(url) as bank:
            bank.compact()
        assert reader.pin().snapshot.version > 1
        assert not [n for n in ObjectBackend(url).names() if n.startswith(".CURRENT")]


def contents_of(reader, written):
    ids = [reference.id for document in written for reference in HashingWriter().split(document)]
    view = reader.pin()
    return {
        id_: (reference, memory3.codec.raw.encode_record(memory, reader.manifest.shape))
        for id_, reference, memory in zip(ids, view.references(ids), view.memories(ids, use_cache=False), strict=True)
    }


def test_a_table_half_removed_is_not_opened_and_goes_later(s3, monkeypatch):
    place = ObjectBackend(s3.place())
    with open_bank(place) as bank:
        bank.write(documents(3))
        wanted = contents(bank)
    Bank.rebuild(place, HashingWriter(), embedder=HashingEmbedder())
    s3.fault("before", "POST .*delete", skip=1)
    with pytest.raises(BankError), place.lock():
        place.remove_table("references-1")
    s3.mend()
    at = objects_of(place.location)
    assert any("/data/" in entry.name for entry in at.below("references-1.lance"))
    assert (place.is_table("references-1"), place.tables()) == (False, ["references-2"])
    with open_bank(place) as bank:
        assert contents(bank) == wanted
        bank.compact()
    left = [entry.name for entry in at.below("references-1.lance")]
    assert [name.split("/")[1] for name in left] == ["_transactions", "_versions"]


def test_a_table_that_was_removed_does_not_come_back(s3):
    """By a commit that was begun before, by a writer that was stopped; nor does that reach another one of its name."""
    place = ObjectBackend(s3.place())
    row = pa.table({"n": [3]})
    stopped = [place.create_table("references-1", row.schema), place.open_table("references-1")]
    with place.lock():
        place.remove_table("references-1")
    with pytest.raises(RuntimeError, match=r"ncompatible|conflict"):
        stopped[0].add(row)
    assert (place.tables(), place.is_table("references-1")) == ([], False)
    with place.lock():
        place.create_table("references-1", row.schema).add(pa.table({"n": [5, 7]}))
    with pytest.raises(RuntimeError, match=r"ncompatible|conflict"):
        stopped[1].add(row)
    assert place.open_table("references-1").to_arrow()["n"].to_pylist() == [5, 7]


def test_deletion_files_that_would_end_the_process_are_not_given_to_lance(s3):
    url = s3.place()
    with open_bank(url) as bank:
        bank.write(documents(5))
        bank.delete("doc2")
    at = objects_of(url)
    (entry,) = at.below("references-1.lance/_deletions")
    at.write(entry.name, at.read(entry.name)[0][:-9])
    with pytest.raises(BankCorrupt, match=r"deletion file.*damaged"):
        open_bank(url)


def test_a_bank_copied_from_a_store_is_a_folder_bank(s3, tmp_path):
    """Object by object, as `aws s3 sync` copies it."""
    url = s3.place()
    with open_bank(url, write=RetentionPolicy("auto")) as bank:
        bank.write(documents(3))
        wanted = contents(bank)
    at = objects_of(url)
    for entry in at.below(""):
        path = tmp_path / "bank" / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(at.read(entry.name, 1 << 30)[0])
    with open_bank(tmp_path / "bank") as bank:
        assert contents(bank) == wanted
        bank.write(documents(5))
        assert contents(bank) == expected(documents(5))
        assert json.loads((tmp_path / "bank" / "policy.json").read_text())["write"] == "auto"
    assert objects.boot_clock() > 0


# ---- reading ---------------------------------------------------------------------------------------------------------------


def data_requests(s3):
    """Requests for a table's data since this was last called."""
    return [line for line in s3.requests() if "/data/" in line]


@pytest.fixture
def read_bank(s3):
    """A compacted bank of 24 memories of 7 KB, and their ids in no order."""
    m3 = HashingWriter(MemoryShape(tuple(range(5)), 2, 11, 131))
    url = s3.place()
    with open_bank(ObjectBackend(url, disk_bytes=0), m3) as bank:
        for part in range(2):
            bank.write(Document(f"doc{n}", f"words w{n} and w{n * 7 % 23}") for n in range(12 * part, 12 * part + 12))
        bank.compact()
        ids = [f"doc{n * 7 % 24}#0" for n in range(24)]
        records = [(r.reference_id, r.data) for r in bank.records(ids)]
    s3.requests()
    return url, m3, ids, records


def test_a_recall_takes_few_requests_and_then_none(s3, read_bank, tmp_path):
    url, m3, ids, records = read_bank
    with open_bank(ObjectBackend(url, disk_bytes=0), m3) as bank:
        bank.search(["words"], 1)
        bank.memories(ids[:2])
        data_requests(s3)
        bank.memories(ids[5:10])
        asked = data_requests(s3)
        assert 0 < len(asked) <= 7, asked  # one for each of five places, and two for where the rows' parts lie
    for fetched in (24, 0):  # the second, of another process, from this machine's disk
        with open_bank(url, m3) as bank:
            bank.search(["words"], 1)
            data_requests(s3)
            assert [(r.reference_id, r.data) for r in bank.records(ids)] == records
            assert [r.id for r in bank.references(ids)] == ids
            assert bool(data_requests(s3)) == bool(fetched)
            bank.memories(ids[:3], use_cache=False)
            assert data_requests(s3) != []
    with open_bank(url, m3) as bank:
        bank.write([Document("doc3", "other words")])
        bank.search(["words"], 1)
        data_requests(s3)
        assert bank.references(["doc3#0"])[0].text == "other words"  # of the new version nothing is kept


def test_what_is_kept_on_disk_is_bounded(s3, read_bank, tmp_path):
    url, m3, ids, records = read_bank
    with open_bank(ObjectBackend(url, disk_bytes=130_000), m3) as bank:
        for id_, record in zip(ids, records, strict=True):
            assert [(r.reference_id, r.data) for r in bank.records([id_])] == [record]
    kept = DiskCache(tmp_path / "cache" / "remote", 130_000)
    assert 70_000 < kept.total() <= 130_000


def test_what_is_read_next_is_fetched_beside(s3, read_bank):
    """As generating does it, eight tokens before it looks again."""
    url, m3, _, _ = read_bank
    with open_bank(url, m3) as bank:
        view = bank.pin()
        view.search(["w1"], 1)
        view.ahead(["words w33"], 5)
        bank._guesses.settle()
        wait(bank._guesses._others, 20)  # as many that rank below come behind it
        assert bank.tiers.statistics().ahead == 10
        view.ahead(["words w35"], 5)
        hits = view.search(["words w33"], 10)[0]  # waits for the guess
        wait(bank._guesses._others, 20)
        data_requests(s3)
        view.memories([hit.reference_id for hit in hits])
        assert data_requests(s3) == []
        s3.fault("before", "GET .*data", status=403, code="AccessDenied")
        view.ahead(["words w3"], 7)  # a guess that fails is no error
        time.sleep(0.2)
        s3.mend()
        assert len(view.search(["words w33"], 2)[0]) == 2
