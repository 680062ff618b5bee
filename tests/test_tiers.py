"""The cache's tiers where a bank lies on object storage, and on the command line; and memories within a budget there."""

from __future__ import annotations

import json

import pytest
from bank_writer import HashingWriter, contents, documents, expected, open_bank
from command_line import _stand_in, docs_folder, error, run, run_json, written_bank  # noqa: F401 (fixtures)

from memory3.bank.backends.object_store import ObjectBackend
from memory3.codec.raw import record_size
from memory3.retention import RetentionPolicy

pytestmark = pytest.mark.filterwarnings("ignore:lancedb fork support")

DOCS = documents(8, seed=2)
RECORD = record_size(HashingWriter().shape)
ROOM = 5


def stored(bank):
    bank.refresh()
    return len(bank) - bank.info().lazy


def test_memories_within_a_budget_on_object_storage(s3):
    """As `test_bank_retention` has it of a folder. Each recall is by a bank opened anew, so counts travel by the store."""
    url, policy = s3.place(), RetentionPolicy("auto", 2, ROOM * RECORD + 1)
    with open_bank(url, write=policy) as bank:
        bank.write(DOCS)
        assert stored(bank) == 0
        ids = sorted(f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references))
    hot = ids[:2]
    for number in (1, 2, 3):
        with open_bank(url) as bank:
            assert bank.policy == policy
            bank.memories(hot)
            assert stored(bank) == (0 if number == 1 else 2)
    with open_bank(url, cache_bytes=0) as bank:
        for other in ids[2:7]:
            bank.memories(hot)
            bank.memories([other])
            bank.memories([other])
            assert stored(bank) <= ROOM
        assert stored(bank) > 2
        assert bank.verify().ok
    with open_bank(url, m3 := HashingWriter()) as bank:
        bank.memories(hot)
        assert m3.encoded == 0  # what is wanted most is still there
    with open_bank(url, write="now") as bank:
        assert contents(bank) == expected(DOCS)


def test_who_cannot_store_reads_all_the_same(s3):
    url = s3.place()
    with open_bank(url, write=RetentionPolicy("auto", 1, ROOM * RECORD)) as bank:
        bank.write(DOCS)
        with ObjectBackend(url).lock(), open_bank(url) as reader:  # another writes, for as long as this takes
            assert reader.memories(["doc0#0"])[0].stored_bytes == 0
        assert stored(bank) == 0
        bank.memories(["doc0#0"])
        assert stored(bank) == 1


def test_each_memory_is_found_in_one_tier(s3):
    url = s3.place()
    with open_bank(url) as bank:
        bank.write(DOCS)
        ids = sorted(f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references))[:9]
        bank.memories(ids)
        bank.memories(ids[:4])
        first = bank.tiers.statistics()
        assert (first.bank, first.disk.misses, first.disk.hits, first.ram.hits) == (9, 9, 0, 4)
        assert first.disk.entries >= 9
        assert first.disk.bytes >= 9 * 4096
    with open_bank(url) as bank:  # another process, as it were: RAM is empty, the disk is not
        view = bank.pin()
        view.memories(ids[:7])
        assert [record.reference_id for record in view.records(ids[:3])] == ids[:3]
        told = bank.tiers.statistics()
        assert (told.bank, told.disk.hits) == (0, 7 + 3)  # packed ones gave way to decoded ones
        view.prefetch(ids)
        bank._guesses._others[-1].result(20)
        assert bank.tiers.statistics().ahead == 2
        view.memories(ids)
        after = bank.tiers.statistics()
        assert (after.ram.hits, after.disk.hits, after.bank) == (told.ram.hits + 9, told.disk.hits, 0)
    with open_bank(url, disk_bytes=0, cache_bytes=0) as bank:
        bank.memories(ids)
        bank.memories(ids)
        told = bank.tiers.statistics()
        assert (told.bank, told.ram.misses, told.disk.misses, told.disk.bytes) == (18, 18, 0, 0)
    with open_bank(url) as bank:
        bank.write([type(DOCS[0])("doc0", "other words")])
        assert bank.memories(["doc0#0"])[0].provenance.end == 11
        assert bank.tiers.statistics().disk.hits == 0  # of the new version nothing is there
        bank.delete("doc0")
        with pytest.raises(Exception, match="no reference 'doc0#0'"):
            bank.memories(["doc0#0"])


def test_a_budget_and_the_tiers_on_the_command_line(s3, docs, tiny_model_path):
    url = s3.place()
    run("write", docs, "--bank", url, "--model", tiny_model_path, "--after", "1", "--disk", "1MB")
    told = run_json("info", "--bank", url)
    assert told["policy"] == {"write": "auto", "after": 1, "disk_bytes": 10**6}
    assert told["cold"] == told["references"]
    assert told["tiers"]["disk"]["capacity"] == 4 << 30
    assert "disk 4.3 GB" in run("info", "--bank", url).stdout.replace("\n", " ")
    asked = ["ask", "Who built the bridge?", "--bank", url, "--max-new-tokens", "1", "--cache-disk", "3MB", "--cache-ram"]
    first = run_json(*asked, "2MB")["tiers"]
    assert (first["ram"]["capacity"], first["disk"]["capacity"], first["device"]["capacity"]) == (2_000_000, 3_000_000, 0)
    assert first["bank"] > 0
    after = run_json("info", "--bank", url)
    assert after["references"] - after["cold"] == first["bank"]  # all that was read is stored
    again = run_json(*asked, "0")["tiers"]
    assert (again["bank"] + again["disk"]["hits"], again["ram"]["capacity"]) == (first["bank"], 0)
    assert "is no size" in error("ask", "Who?", "--bank", url, "--cache-ram", "much", code=2)


def test_a_bank_on_this_disk_has_no_tier_there(docs, tiny_model_path):
    run("write", docs, "--bank", "bank", "--model", tiny_model_path)
    told = run_json("ask", "Who built the bridge?", "--bank", "bank", "--max-new-tokens", "1", "--cache-disk", "3MB")["tiers"]
    assert told["disk"] == dict.fromkeys(("hits", "misses", "evictions", "entries", "bytes", "capacity"), 0)
    assert "disk 0 (the bank lies on it)" in run("info", "--bank", "bank").stdout.replace("\n", " ")
    assert json.loads(run("info", "--bank", "bank", "--json").stdout)["tiers"]["ram"]["capacity"] == 1 << 30
