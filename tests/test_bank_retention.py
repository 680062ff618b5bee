"""The bank's retention policy: memories stored at the n-th recall, dropped within a disk budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bank_writer import HashingEmbedder, HashingWriter, contents, documents, expected, open_bank, same_memory

from memory3.bank import Bank, recalls
from memory3.bank.backends.folder import FolderBackend
from memory3.bank.recalls import RecallLog
from memory3.bank.store import Store
from memory3.codec.raw import record_size
from memory3.config import MemoryConfig
from memory3.errors import BankCorrupt, ConfigError
from memory3.retention import RetentionPolicy
from memory3.types import Document

DOCS = documents(8, seed=2)
RECORD = record_size(HashingWriter().shape)


def names(bank):
    return sorted(f"{entry.id}#{number}" for entry in bank.documents() for number in range(entry.references))


def lazy(bank):
    bank.refresh()
    return bank.info().lazy


# ---- writing at the n-th recall ------------------------------------------------------------------------------------------


def test_a_bank_writes_at_once_unless_told_otherwise(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(DOCS)
        assert (bank.policy, lazy(bank)) == (RetentionPolicy(), 0)


def test_auto_keeps_texts_and_stores_what_is_recalled(tmp_path):
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3, write="auto") as bank:
        assert bank.write(DOCS).references == len(bank) == lazy(bank)
        assert m3.encoded == 0
        some = names(bank)[:3]
        memories = bank.memories(some)
        assert (m3.encoded, lazy(bank)) == (3, len(bank) - 3)
        assert all(same_memory(a, b) for a, b in zip(memories, bank.memories(some, use_cache=False), strict=True))
        assert m3.encoded == 3
    assert contents(open_bank(tmp_path / "bank")) == expected(DOCS)


def test_the_bank_remembers_its_policy(tmp_path):
    policy = RetentionPolicy("auto", 3, 10**6)
    open_bank(tmp_path / "bank", write=policy).close()
    with open_bank(tmp_path / "bank") as bank:
        assert bank.policy == policy
        bank.write(DOCS)
        assert lazy(bank) == len(bank)
        assert bank.write(DOCS, lazy=False).written == len(DOCS)
    with open_bank(tmp_path / "bank", write="now") as bank:
        assert bank.policy == RetentionPolicy()
        bank.write([Document("new", "news")])
        assert lazy(bank) == 0


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_third_recall_stores_also_across_processes_and_threads_of_time(tmp_path, use_cache):
    with open_bank(tmp_path / "bank", write=RetentionPolicy("auto", 3)) as bank:
        bank.write(DOCS)
        one, other = names(bank)[:2]
    for recall, stored in ((1, 0), (2, 0), (3, 1), (4, 1)):
        with open_bank(tmp_path / "bank") as bank:
            bank.memories([one], use_cache=use_cache)
            assert len(bank) - lazy(bank) == stored, recall
    with open_bank(tmp_path / "bank") as bank:
        bank.memories([other, other])
        assert len(bank) - lazy(bank) == 1


def test_a_recall_from_the_cache_counts(tmp_path):
    with open_bank(tmp_path / "bank", write=RetentionPolicy("auto", 3)) as bank:
        bank.write(DOCS)
        one = names(bank)[0]
        for _ in range(2):
            bank.memories([one])
        bank.cache.clear()
        bank.memories([one])
        assert len(bank) - lazy(bank) == 1
        assert bank.recalls()[one.rpartition("#")[0]] == 3


# ---- dropping ------------------------------------------------------------------------------------------------------------


def test_memories_that_are_wanted_least_are_dropped_within_the_budget(tmp_path):
    room = 5
    with open_bank(tmp_path / "bank", write=RetentionPolicy("auto", 1, room * RECORD + 1), cache_bytes=0) as bank:
        bank.write(DOCS)
        all_names = names(bank)
        assert len(all_names) > 12
        hot = all_names[:2]
        for other in all_names[2:]:
            for _ in range(3):
                bank.memories(hot)
            bank.memories([other])
            assert len(bank) - lazy(bank) <= room
        assert bank.verify().ok
        m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.memories(hot)
        assert m3.encoded == 0
        assert bank.info().lazy > 0
    assert contents(open_bank(tmp_path / "bank", write="now")) == expected(DOCS)


def test_a_budget_that_holds_nothing_stores_nothing(tmp_path):
    with open_bank(tmp_path / "bank", write=RetentionPolicy("auto", 1, RECORD - 1)) as bank:
        bank.write(DOCS)
        bank.memories(names(bank))
        assert lazy(bank) == len(bank)


def test_a_reader_of_before_reads_what_was_dropped_since(tmp_path):
    with open_bank(tmp_path / "bank", write=RetentionPolicy("auto", 1, 3 * RECORD), cache_bytes=0) as bank:
        bank.write(DOCS)
        first = names(bank)[:3]
        bank.memories(first)
        bank.refresh()
        with open_bank(tmp_path / "bank", cache_bytes=0) as old:
            for name in names(bank)[3:]:
                for _ in range(3):
                    bank.memories([name])
            m3 = HashingWriter()
            kept = [m3.memory(reference) for reference in old.references(first)]
            assert all(same_memory(a, b) for a, b in zip(old.memories(first), kept, strict=True))


def test_nothing_is_dropped_while_another_process_writes(tmp_path):
    with open_bank(tmp_path / "bank", write=RetentionPolicy("auto", 1, 2 * RECORD), cache_bytes=0) as bank:
        bank.write(DOCS)
        bank.memories(names(bank)[:2])
        with Store(tmp_path / "bank").lock():
            bank.memories(names(bank)[2:6])
        assert len(bank) - lazy(bank) == 2
        assert bank.verify().ok


def test_rebuilding_follows_the_policy(tmp_path):
    open_bank(tmp_path / "bank", write="auto").write(DOCS)
    other = HashingWriter(config=MemoryConfig(reference_length=3), reference_length=3)
    Bank.rebuild(tmp_path / "bank", other, embedder=HashingEmbedder())
    assert other.encoded == 0
    with open_bank(tmp_path / "bank", other) as bank:
        assert lazy(bank) == len(bank)
        assert bank.policy.write == "auto"


# ---- statistics ----------------------------------------------------------------------------------------------------------


def test_recalls_by_document_of_all_processes(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(DOCS)
        many = next(entry for entry in bank.documents() if entry.references > 1)
        bank.memories([f"{many.id}#0", f"{many.id}#1"])
        with open_bank(tmp_path / "bank") as other:
            other.memories([f"{many.id}#1"])
        assert bank.recalls() == {**dict.fromkeys((doc.id for doc in DOCS), 0), many.id: 3}
    assert Bank.open(tmp_path / "bank", None).recalls()[many.id] == 3


def test_counts_are_written_now_and_then_and_on_closing(tmp_path, monkeypatch):
    monkeypatch.setattr(recalls, "FLUSH_EVERY", 3)
    log = RecallLog(FolderBackend(tmp_path))
    for _ in range(2):
        log.add(["a#0"])
    assert not (tmp_path / recalls.FILE).exists()
    log.add(["b#0"])
    assert RecallLog(FolderBackend(tmp_path)).totals() == {"a#0": 2, "b#0": 1}
    log.add(["a#0"])
    log.flush()
    log.flush()
    assert RecallLog(FolderBackend(tmp_path)).totals() == {"a#0": 3, "b#0": 1}


def test_summing_up_changes_no_count_and_no_weight(tmp_path):
    clock = iter(range(0, 10**8, 10**6))
    log = RecallLog(FolderBackend(tmp_path), clock=lambda: float(next(clock)))
    for name in "abacabad":
        log.add([f"{name}#0"])
        log.flush()
    before = RecallLog(FolderBackend(tmp_path)).counts
    log.sum_up()
    after = RecallLog(FolderBackend(tmp_path)).counts
    assert len((tmp_path / recalls.FILE).read_text().split()) < 30
    assert after.recalls == before.recalls == {"a#0": 4, "b#0": 2, "c#0": 1, "d#0": 1}
    assert after.log_weights == pytest.approx(before.log_weights, abs=1e-5)
    assert after.log_weight("d#0") > after.log_weight("c#0")


def test_a_large_file_is_summed_up_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(recalls, "SUM_BYTES", 500)
    log = RecallLog(FolderBackend(tmp_path))
    log._limit = 500
    for _ in range(100):
        log.add(["a#0", "b#0"])
        log.flush()
    assert (tmp_path / recalls.FILE).stat().st_size < 1200
    assert log.totals() == {"a#0": 100, "b#0": 100}


@pytest.mark.parametrize(
    "damage",
    [
        b'{"at": 1, "recalls": {"a#0": 5, "b#',
        b"\xff\xfe\x00",
        b'{"at": "soon", "recalls": {"a#0": 5}}\n',
        b'{"at": 1, "recalls": ["a#0"]}\n',
        b'{"at": 1, "recalls": {"a#0": -5}}\n',
        b'{"at": 1, "recalls": {"a#0": 0}}\n',
        b'{"at": NaN, "recalls": {"a#0": 5}}\n',
        b'{"heats": {"a#0": [1]}}\n',
        b"[1]\n",
        b"7\n",
    ],
)
def test_a_damaged_line_is_passed_over_and_spoils_no_other(tmp_path, damage):
    path = tmp_path / recalls.FILE
    path.write_bytes(b'{"at": 1, "recalls": {"a#0": 2}}\n' + damage)
    log = RecallLog(FolderBackend(tmp_path))
    log.add(["a#0", "c#0"])
    log.flush()
    assert RecallLog(FolderBackend(tmp_path)).totals() == {"a#0": 3, "c#0": 1}


def test_a_folder_that_cannot_be_written_stops_no_reader(tmp_path):
    (tmp_path / recalls.FILE).mkdir()
    log = RecallLog(FolderBackend(tmp_path))
    log.add(["a#0"])
    log.flush()
    assert log.totals() == {}


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from bank_writer import open_bank
from memory3.bank import recalls
recalls.FLUSH_EVERY = 2
bank = open_bank(sys.argv[1])
for name in ("doc0#0", "doc1#0", "doc2#0"):
    bank.memories([name])
os._exit(9)
"""


def test_a_killed_process_loses_its_last_counts_and_nothing_else(tmp_path):
    with open_bank(tmp_path / "bank", write="auto") as bank:
        bank.write(DOCS)
    folder = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "bank"), folder], check=False, capture_output=True)
    with open_bank(tmp_path / "bank") as bank:
        assert [bank.recalls()[name] for name in ("doc0", "doc1", "doc2")] == [1, 1, 0]
        assert len(bank) - lazy(bank) == 3
        assert bank.verify().ok


def test_compaction_forgets_references_that_are_gone(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(DOCS)
        bank.memories(["doc0#0", "doc1#0"])
        bank.delete("doc0")
        assert "doc0" not in bank.recalls()
        bank.compact()
    summed = json.loads((tmp_path / "bank" / recalls.FILE).read_text())
    assert list(summed["heats"]) == ["doc1#0"]


@pytest.mark.parametrize("text", ["{", "[]", '{"write": "later"}', '{"write": "auto", "after": 0}', '{"how": 1}'])
def test_a_damaged_policy_is_named(tmp_path, text):
    open_bank(tmp_path / "bank").close()
    (tmp_path / "bank" / "policy.json").write_text(text)
    with pytest.raises(BankCorrupt, match=r"policy\.json is no write policy"):
        open_bank(tmp_path / "bank")


def test_an_unknown_policy_changes_nothing(tmp_path):
    open_bank(tmp_path / "bank", write="auto").close()
    with pytest.raises(ConfigError, match="'later' is unknown"):
        open_bank(tmp_path / "bank", write="later")
    assert open_bank(tmp_path / "bank").policy.write == "auto"
