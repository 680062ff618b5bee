"""A bank hands out packed records; the reader decodes them on any device, and says what they are of."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bank_writer import HashingWriter, documents, expected, open_bank, same_memory
from codebooks import fitted

from memory3.bank import MemoryReader, TierBytes, Tiers
from memory3.codec.raw import encode_record
from memory3.config import MemoryConfig
from memory3.errors import BankCorrupt, ConfigError
from memory3.types import Provenance

DOCS = documents(5)
IDS = list(expected(DOCS))


def reader_of(bank, tiers=None):
    """As a process would have it that got records from elsewhere."""
    codec = bank._snapshot.codec
    return MemoryReader(bank.manifest, lambda: codec, tiers or Tiers(TierBytes(0, 1 << 20, 0)), "version", "elsewhere")


def test_records_are_the_stored_bytes(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write(DOCS)
    wanted = expected(DOCS)
    for record, id_ in zip(bank.records([*IDS, IDS[1]]), [*IDS, IDS[1]], strict=True):
        reference, data = wanted[id_]
        assert record.data == data
        assert (record.reference_id, record.document_id, record.codec) == (id_, reference.document_id, "raw")
        assert (record.start, record.end, record.token_ids) == (reference.start, reference.end, reference.token_ids)
        assert record.stored_bytes == len(data) == bank.manifest.record_bytes


@pytest.mark.parametrize("codec", ["raw", "int8", "foretold:8+16"])
def test_decoded_elsewhere_they_are_the_banks_memories(tmp_path, codec):
    m3 = HashingWriter(config=MemoryConfig(reference_length=4, codec=codec))
    bank = open_bank(tmp_path / "bank", m3, code_book=None if codec == "raw" else fitted(codec, m3))
    bank.write(DOCS)
    memories = bank.memories(IDS)
    assert all(map(same_memory, reader_of(bank).decode(bank.records(IDS)), memories))
    assert {m.stored_bytes for m in memories} == {bank.manifest.record_bytes}
    assert [m.bytes_read for m in memories] == [bank.manifest.record_bytes] * len(IDS)


def test_a_lazy_reference_has_the_record_it_would_be_stored_as(tmp_path):
    """Encoded for the first recall it was not read from the bank; afterwards it is."""
    bank = open_bank(tmp_path / "bank")
    bank.write(DOCS, lazy=True)
    first, wanted = bank.records(IDS), expected(DOCS)
    assert [record.data for record in first] == [wanted[id_][1] for id_ in IDS]
    assert {record.stored_bytes for record in first} == {0}
    bank.refresh()
    assert bank.info().lazy == 0
    assert [record.data for record in bank.records(IDS)] == [record.data for record in first]
    assert {record.stored_bytes for record in bank.records(IDS)} == {bank.manifest.record_bytes}
    (memory,) = reader_of(bank).decode(first[:1])
    assert (memory.stored_bytes, memory.bytes_read) == (0, memory.nbytes)


def test_a_memory_knows_what_it_covers_and_how_it_was_made(tmp_path):
    m3 = HashingWriter(config=MemoryConfig(reference_length=4, budget="adaptive:1/8", selector="first"))
    bank = open_bank(tmp_path / "bank", m3)
    bank.write(DOCS)
    for id_, memory in zip(IDS, bank.memories(IDS), strict=True):
        reference = expected(DOCS, m3)[id_][0]
        assert memory.provenance == Provenance(
            document_id=reference.document_id,
            start=reference.start,
            end=reference.end,
            reference_ids=(id_,),
            budget=str(m3.config.budget),
            selector="first",
            fingerprint=m3.fingerprint,
        )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_decoded_on_the_device_asked_for(tmp_path, device, monkeypatch):
    """The meta device has no numbers; a device that has is compared in test_codec."""
    bank = open_bank(tmp_path / "bank", device_bytes=1 << 20)
    bank.write(DOCS)
    if device == "meta":
        monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: torch.ones(()))
    memories = bank.memories(IDS, device=device)
    assert {m.keys.device.type for m in memories} == {m.values.device.type for m in memories} == {device}
    assert {m.keys.device.type for m in bank.memories(IDS)} == {"cpu"}  # the cache tells devices apart
    tier = bank.tiers.ram if device == "cpu" else bank.tiers.device
    before = tier.statistics().hits
    assert bank.memories(IDS, device=torch.device(device))[0] is memories[0]
    assert tier.statistics().hits == before + len(IDS)


def test_the_reader_asks_only_for_what_it_does_not_have(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write(DOCS)
    asked = []

    def fetch(ids):
        asked.append(ids)
        return bank.records(ids)

    reader = reader_of(bank)
    first = reader.memories(IDS[:2], fetch)
    again = reader.memories([IDS[1], IDS[2], IDS[1]], fetch)
    assert asked == [IDS[:2], [IDS[2]]]
    assert (again[0], again[2]) == (first[1], first[1])
    reader.memories(IDS[:1], fetch, use_cache=False)
    assert asked[2:] == [IDS[:1]]


def test_records_that_cannot_be_are_refused(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write(DOCS)
    reader, (record,) = reader_of(bank), bank.records(IDS[1:2])
    with pytest.raises(ConfigError, match=r"'raw'.*'int8'"):
        reader.decode([dataclasses.replace(record, codec="int8")])
    with pytest.raises(BankCorrupt, match="bytes"):
        reader.decode([dataclasses.replace(record, data=record.data[1:])])
    memory = next(m for m in bank.memories(IDS) if len(m.keys))
    memory.keys[0, 2] = torch.inf
    with pytest.raises(BankCorrupt, match=IDS[1]):
        reader.decode([dataclasses.replace(record, data=encode_record(memory, bank.manifest.shape))])


def test_reading_records_counts_as_a_recall(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write(DOCS)
    bank.records([IDS[0], IDS[0]])
    bank.memories([IDS[0]])
    assert sum(bank.recalls().values()) == 2
