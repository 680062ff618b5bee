"""Cold rows, verification, damage, compaction and rebuilding."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta

import lancedb
import pyarrow as pa
import pytest
from bank_writer import SHAPE, HashingEmbedder, HashingWriter, contents, documents, expected, open_bank, same_memory

from memory3.bank import Bank, store, upkeep
from memory3.bank.snapshot import Snapshot
from memory3.bank.write import pace
from memory3.codec.raw import encode_record
from memory3.config import MemoryConfig
from memory3.errors import BankCorrupt, ConfigError, FingerprintMismatch
from memory3.types import Document, MemoryShape

# ---- cold start ----------------------------------------------------------------------------------------------------------


def test_cold_memories_are_encoded_once_and_stored(tmp_path):
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(documents(), lazy=True)
        assert (m3.encoded, bank.info().lazy) == (0, len(bank))
        ids = ["doc4#1", "doc0#0", "doc4#0"]
        first = bank.memories(ids)
        assert m3.encoded == 3
        assert all(a is b for a, b in zip(bank.memories(ids), first, strict=True))
        bank.memories(ids, use_cache=False)
        assert m3.encoded == 3
    with open_bank(tmp_path / "bank", m3) as bank:
        assert bank.info().lazy == len(bank) - 3
        assert contents(bank) == expected(documents())
        assert m3.encoded == len(bank)
        bank.refresh()
        assert bank.info().lazy == 0
        assert bank.verify().ok


def test_cold_start_while_someone_writes_works_but_is_not_stored(tmp_path):
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(documents(4), lazy=True)
        with store.Store(tmp_path / "bank").lock():
            for _ in range(2):
                assert len(bank.memories(["doc1#0"], use_cache=False)) == 1
        assert m3.encoded == 2
        assert bank.info().lazy == len(bank)


def test_a_memory_of_an_old_text_is_not_stored_with_the_new_one(tmp_path):
    m3 = HashingWriter()
    docs = documents(4)
    with open_bank(tmp_path / "bank", m3) as reader, open_bank(tmp_path / "bank", m3) as bank:
        bank.write(docs, lazy=True)
        reader.refresh()
        docs[1] = Document("doc1", "rewritten in between")
        bank.write(docs, lazy=True)
        reader.memories(["doc1#0", "doc2#0"])
        assert contents(bank) == expected(docs)
        assert bank.verify().ok


def test_writing_warm_what_was_cold_encodes_it(tmp_path):
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(documents(), lazy=True)
        assert bank.write(documents(), lazy=True).unchanged == 12
        assert bank.write(documents()).written == 12
        assert bank.info().lazy == 0
        assert bank.write(documents(), lazy=True).unchanged == 12
        assert bank.info().lazy == 0


def test_cold_large_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 8)
    docs = [Document("large", " ".join(f"w{n}" for n in range(99)))]
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs, lazy=True)
        assert contents(bank) == expected(docs)


def test_cold_memories_need_a_model(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(documents(2), lazy=True)
    with Bank.open(tmp_path / "bank", None) as bank, pytest.raises(ConfigError, match="model"):
        bank.memories(["doc0#0"])


# ---- damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """A bank's path and its Lance table, to be damaged by the test."""
    path = tmp_path / "bank"
    with open_bank(path) as bank:
        bank.write(documents())
    return path, lancedb.connect(path).open_table("references-1")


def test_verify_of_a_sound_bank(damaged):
    with open_bank(damaged[0]) as bank:
        report = bank.verify()
    assert (report.ok, report.bad, report.problems, report.lazy) == (True, (), (), 0)
    assert (report.references, report.documents) == (len(expected(documents())), 12)


@pytest.mark.parametrize(
    "values",
    [
        {"checksum": "1"},
        {"text": "'other'"},
        {"start": "5"},
        {"metadata": "'{}'"},
        {"tags": "make_array('x')"},
        {"source": "''"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_changed_column_is_detected(damaged, values):
    path, table = damaged
    table.update(where="reference_id = 'doc5#1'", values_sql=values)
    with open_bank(path) as bank:
        with pytest.raises(BankCorrupt, match=r"'doc5#1'.*memory3 verify") as caught:
            bank.references(["doc4#0", "doc5#1"])
        assert caught.value.reference_ids == ("doc5#1",)
        assert bank.references(["doc5#0"])[0].id == "doc5#0"
        report = bank.verify()
        assert (report.ok, report.bad) == (False, ("doc5#1",))
        assert "wrong checksum" in report.problems[0]
        bank.delete("doc5")
        bank.write(documents())
        assert contents(bank) == expected(documents())
        assert bank.verify().ok


def test_a_flipped_bit_of_a_memory_is_detected(damaged):
    path, _ = damaged
    record = encode_record(HashingWriter().memory(expected(documents())["doc5#1"][0]), SHAPE)
    hit = 0
    for file in (path / "references-1.lance" / "data").iterdir():
        data = bytearray(file.read_bytes())
        place = data.find(record)
        if place >= 0:
            data[place + len(record) // 2] ^= 4
            file.write_bytes(data)
            hit += 1
    assert hit == 1
    with open_bank(path) as bank:
        with pytest.raises(BankCorrupt, match="'doc5#1'"):
            bank.memories(["doc5#1"])
        assert len(bank.memories(["doc5#0", "doc4#0"])) == 2
        assert bank.references(["doc5#1"])
        assert bank.verify().bad == ("doc5#1",)


def test_incomplete_and_mixed_documents_are_reported(damaged):
    path, table = damaged
    table.delete("reference_id = 'doc5#0'")
    with open_bank(path) as bank:
        (problem,) = bank.verify().problems
        size = len(list(HashingWriter().split(documents()[5])))
        assert problem == f"document 'doc5': has {size - 1} of {size} references"
        with pytest.raises(BankCorrupt, match="'doc5'"):
            Bank.rebuild(path, HashingWriter(name="other"), embedder=HashingEmbedder())


@pytest.mark.parametrize("what", ["data", "_versions"])
@pytest.mark.parametrize("how", ["cut", "emptied", "removed"])
def test_damaged_files_are_reported_as_such(damaged, what, how):
    path, _ = damaged
    for file in (path / "references-1.lance" / what).iterdir():
        if how == "removed":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2 if how == "cut" else 0)

    def read():
        with open_bank(path) as bank:
            return bank.memories(["doc0#0"]), bank.search(["w1"], 2)

    with pytest.raises(BankCorrupt, match=str(path)):
        read()
    if what == "data":
        with open_bank(path) as bank:
            report = bank.verify()
            assert not report.ok
            assert "cannot be read" in report.problems[0]


def test_rows_that_cannot_be_read_are_named_one_by_one(damaged, monkeypatch):
    path, _ = damaged
    take = Snapshot.take

    def failing_take(self, row_ids, columns):
        for rows in take(self, row_ids, columns):
            if {"doc5#1", "doc8#0"} & set(rows["reference_id"].to_pylist()):
                raise BankCorrupt("bad sector")
            yield rows

    monkeypatch.setattr(Snapshot, "take", failing_take)
    with open_bank(path) as bank:
        report = bank.verify()
    assert set(report.bad) == {"doc5#1", "doc8#0"}
    assert "reference 'doc5#1': cannot be read" in report.problems
    assert report.references == len(expected(documents()))


# ---- compaction ----------------------------------------------------------------------------------------------------------


def test_compaction_keeps_every_row_and_gives_space_back(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "GRACE", timedelta(milliseconds=1))
    docs = documents()
    with open_bank(tmp_path / "bank", HashingWriter(MemoryShape((1, 4), 2, 64, 99))) as bank:
        for _ in range(3):
            docs = [Document(d.id, d.text + " more", d.source, d.metadata) for d in docs]
            for document in docs:
                bank.write([document])
        before = bank.info()
        bank.compact()
        after = bank.info()
        assert after.fragments == 1
        assert after.bytes < before.bytes / 2
        assert contents(bank) == expected(docs, HashingWriter(MemoryShape((1, 4), 2, 64, 99)))


def test_compaction_is_automatic_when_much_was_replaced(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        for round_ in range(4):
            bank.write([Document("d", f"words of round {round_} and more of them")])
        assert bank.info().fragments <= 2


def test_a_reader_outlives_compaction_and_the_removal_of_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "GRACE", timedelta(milliseconds=1))
    docs = documents()
    with open_bank(tmp_path / "bank") as bank, open_bank(tmp_path / "bank") as reader:
        for document in docs:
            bank.write([document])
        reader.refresh()
        before = reader.info().version
        bank.compact()
        ids = ["doc1#0", "doc5#1"]
        for memory, again in zip(reader.memories(ids, use_cache=False), bank.memories(ids), strict=True):
            assert same_memory(memory, again)
        assert reader.info().version > before
        assert contents(reader) == expected(docs)


def test_compaction_removes_what_an_interruption_left(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(documents(3))
        shutil.copytree(tmp_path / "bank" / "references-1.lance", tmp_path / "bank" / "references-2.lance")
        shutil.copytree(tmp_path / "bank" / "references-1.lance", tmp_path / "bank" / "references-1-staging.lance")
        bank.compact()
        assert sorted(os.listdir(tmp_path / "bank")) == ["CURRENT", "references-1.lance", "writer.lock"]


# ---- rebuilding ----------------------------------------------------------------------------------------------------------


def test_rebuild_for_another_model(tmp_path, monkeypatch):
    path, other = tmp_path / "bank", HashingWriter(MemoryShape((0, 2), 3, 4, 11), name="other", reference_length=6)
    with open_bank(path) as old:
        old.write(documents())
        report = Bank.rebuild(path, other, embedder=HashingEmbedder("new", 13))
        assert (report.written, report.references) == (12, other.encoded)
        assert contents_of_snapshot(old) == expected(documents())
        with pytest.raises(FingerprintMismatch):
            old.refresh()
    with open_bank(path, other, embedder=HashingEmbedder("new", 13)) as new:
        assert contents(new) == expected(documents(), other)
        assert (new.manifest.model, new.manifest.embedder) == ("other", "new")
        assert new.verify().ok
        assert new.write(documents()).unchanged == 12
        monkeypatch.setattr(store, "GRACE", timedelta())
        new.compact()
        assert sorted(os.listdir(path)) == ["CURRENT", "recalls.jsonl", "references-2.lance", "writer.lock"]
    Bank.rebuild(path, HashingWriter(), embedder=HashingEmbedder())
    with open_bank(path) as third:
        assert contents(third) == expected(documents())


def contents_of_snapshot(bank):
    """As `contents`, without looking for a newer version."""
    ids = sorted(expected(documents()))
    records = (encode_record(memory, bank.manifest.shape) for memory in bank.memories(ids, use_cache=False))
    return dict(zip(ids, zip(bank.references(ids), records, strict=True), strict=True))


class Interrupted(Exception):
    pass


def test_an_interrupted_rebuild_goes_on_and_leaves_the_old_bank_in_force(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 8)
    path, other = tmp_path / "bank", HashingWriter(config=MemoryConfig(reference_length=4, selector="first"))

    def stop(progress):
        if progress.references >= 20:
            raise Interrupted

    with open_bank(path) as bank:
        bank.write(documents())
        with pytest.raises(Interrupted):
            Bank.rebuild(path, other, embedder=HashingEmbedder(), progress=stop)
        bank.write([Document("meanwhile", "written after the interruption")])
        assert bank.verify().ok
    encoded = other.encoded
    report = Bank.rebuild(path, other, embedder=HashingEmbedder())
    assert report.unchanged >= 3
    assert other.encoded < encoded + report.references + 9
    with open_bank(path, other) as bank:
        assert contents(bank) == expected([*documents(), Document("meanwhile", "written after the interruption")], other)


def test_an_interrupted_rebuild_for_one_model_does_not_leak_into_that_for_another(tmp_path):
    path = tmp_path / "bank"
    with open_bank(path) as bank:
        bank.write(documents())

    def stop(progress):
        if progress.written:
            raise Interrupted

    with pytest.raises(Interrupted):
        Bank.rebuild(path, HashingWriter(name="one", batch_size=1), embedder=HashingEmbedder(), progress=stop)
    two = HashingWriter(name="two")
    assert Bank.rebuild(path, two, embedder=HashingEmbedder()).unchanged == 0
    assert contents(open_bank(path, two)) == expected(documents(), two)


def test_info(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        assert (bank.info().references, bank.info().bytes_per_reference > 0) == (0, True)
        bank.write(documents())
        info = bank.info()
    assert (info.references, info.documents, info.lazy) == (len(expected(documents())), 12, 0)
    assert (info.record_bytes, info.index, info.unindexed) == (166, "exact", 0)
    assert info.bytes > info.references * (166 + 44)
    assert isinstance(info.bytes_per_reference, float)
    assert pa.types.is_fixed_size_binary(
        lancedb.connect(tmp_path / "bank").open_table("references-1").schema.field("codes").type
    )
