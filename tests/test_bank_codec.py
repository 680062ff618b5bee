"""Banks with a codec: written, read, kept cold, rebuilt, compacted and verified; their codebook lost, damaged or of
another model.
"""

from __future__ import annotations

import json
import os

import lancedb
import pytest
import torch
from bank_writer import HashingEmbedder, HashingWriter, documents, expected, open_bank, same_memory
from codebooks import fitted

from memory3.bank import Bank
from memory3.bank.codebooks import cached_codebook, cached_path, codebook_name, keep_codebook
from memory3.codec import CodedCodec
from memory3.codec.registry import default_codec, find
from memory3.config import MemoryConfig
from memory3.errors import BankCorrupt, ConfigError, FingerprintMismatch
from memory3.models import calibrated
from memory3.types import MemoryShape

CODECS = ("int8", "int4", "product:RQ3x4", "foretold:8+16")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))


def writer(codec, **options):
    return HashingWriter(config=MemoryConfig(reference_length=4, codec=codec), **options)


def as_decoded(written, m3, book):
    """What memories must be after a round trip through the codec."""
    codec = CodedCodec(book).with_vectors(m3.token_vectors)
    return {
        id_: codec.decode([codec.encode(m3.memory(reference))])[0] for id_, (reference, _) in expected(written, m3).items()
    }


def same_contents(bank, wanted):
    memories = bank.memories(list(wanted), use_cache=False)
    # A vector's sum may be rounded otherwise when it stands in another batch.
    return all(
        (a.counts == b.counts).all()
        and (a.positions == b.positions).all()
        and torch.allclose(a.keys.float(), b.keys.float(), atol=2e-3, rtol=2e-3)
        and torch.allclose(a.values.float(), b.values.float(), atol=2e-3, rtol=2e-3)
        for a, b in zip(memories, wanted.values(), strict=True)
    )


@pytest.mark.parametrize("codec", CODECS)
def test_written_reopened_read_compacted_and_verified(tmp_path, codec):
    m3, book = writer(codec), fitted(codec)
    docs = documents()
    with open_bank(tmp_path / "bank", m3, code_book=book) as bank:
        bank.write(docs[:7])
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(docs)
        wanted = as_decoded(docs, m3, book)
        assert len(wanted) == len(bank)
        assert same_contents(bank, wanted)
        bank.compact()
        assert same_contents(bank, wanted)
        assert bank.verify().ok
        assert bank.info().record_bytes == CodedCodec(book).record_size
    assert sorted(os.listdir(tmp_path / "bank")) == [
        "CURRENT",
        codebook_name(book.fingerprint),
        "recalls.jsonl",
        "references-1.lance",
        "writer.lock",
    ]
    with Bank.open(tmp_path / "bank", None, embedder=HashingEmbedder()) as bank:
        assert bank.verify().ok
        if find(codec).predicts:
            with pytest.raises(ConfigError, match="open the bank with its model"):
                bank.memories(list(wanted))
        else:
            assert same_contents(bank, wanted)


@pytest.mark.parametrize("codec", CODECS)
def test_cold_memories_are_stored_with_the_codec(tmp_path, codec):
    m3, book = writer(codec), fitted(codec)
    with open_bank(tmp_path / "bank", m3, code_book=book) as bank:
        bank.write(documents(4), lazy=True)
        wanted = as_decoded(documents(4), m3, book)
        assert same_contents(bank, wanted)  # what is read first is what will be read later
        bank.refresh()
        assert bank.info().lazy == 0
        assert same_contents(bank, wanted)
        assert bank.verify().ok


def test_the_manifest_names_codec_and_codebook(tmp_path):
    book = fitted("int4")
    open_bank(tmp_path / "bank", writer("int4"), code_book=book).close()
    manifest = Bank.describe(tmp_path / "bank")
    assert (manifest.format_version, manifest.codec, manifest.code_book) == (2, "int4", book.fingerprint)
    assert (manifest.record_bytes, manifest.config.codec) == (CodedCodec(book).record_size, "int4")
    table = lancedb.connect(tmp_path / "bank").open_table("references-1")
    told = json.loads(table.schema.metadata[b"memory3"])
    assert "codec" not in told["config"]
    assert table.schema.field("codes").type.byte_width == told["record_bytes"] == manifest.record_bytes


def test_a_bank_keeps_its_codec_whatever_the_model_says(tmp_path):
    """A codec is a matter of storage: memories are the same, and so is the fingerprint."""
    book = fitted("int8")
    assert writer("int8").fingerprint == HashingWriter().fingerprint
    open_bank(tmp_path / "bank", writer("int8"), code_book=book).close()
    with open_bank(tmp_path / "bank", HashingWriter()) as bank:
        bank.write(documents(3))
        assert same_contents(bank, as_decoded(documents(3), HashingWriter(), book))
    open_bank(tmp_path / "raw", HashingWriter()).close()
    with open_bank(tmp_path / "raw", writer("int8")) as bank:
        bank.write(documents(3))
        assert bank.manifest.codec == "raw"


def test_rebuilt_with_another_codec_and_back(tmp_path):
    book, path = fitted("int4"), tmp_path / "bank"
    with open_bank(path) as bank:
        bank.write(documents())
        Bank.rebuild(path, writer("int4"), embedder=HashingEmbedder(), code_book=book)
        assert codebook_name(book.fingerprint) in os.listdir(path)
        bank.refresh()
        assert bank.manifest.codec == "int4"
        assert same_contents(bank, as_decoded(documents(), HashingWriter(), book))
        Bank.rebuild(path, HashingWriter(), embedder=HashingEmbedder())
        bank.refresh()
        assert bank.manifest.codec == "raw"
        m3 = HashingWriter()
        for id_, (reference, _) in expected(documents()).items():
            assert same_memory(bank.memories([id_])[0], m3.memory(reference))
        os.utime(path / "CURRENT", (0, 0))  # readers have had time to move on
        bank.compact()
        assert sorted(os.listdir(path)) == ["CURRENT", "recalls.jsonl", "references-3.lance", "writer.lock"]


def test_the_codebook_in_the_cache_is_used(tmp_path):
    book = fitted("product:RQ3x4")
    with pytest.raises(ConfigError, match=r"needs a codebook.*memory3 calibrate --model hashing --codec product:RQ3x4"):
        open_bank(tmp_path / "bank", writer("product:RQ3x4"))
    assert not (tmp_path / "bank").exists()
    keep_codebook(book)
    assert cached_path("product:RQ3x4", book.memories).name == "product-RQ3x4.safetensors"
    assert cached_codebook("product:RQ3x4", book.memories).fingerprint == book.fingerprint
    with open_bank(tmp_path / "bank", writer("product:RQ3x4")) as bank:
        assert bank.manifest.code_book == book.fingerprint


def test_auto_is_the_default_codec_where_it_was_fitted(tmp_path, monkeypatch):
    assert [default_codec(size) for size in (64, 80, 128)] == ["foretold:96+160", "foretold:120+200", "foretold:192+320"]
    with open_bank(tmp_path / "before", writer("auto")) as bank:
        assert bank.manifest.codec == "raw"
    book = fitted(default_codec(5), writer("auto"))
    keep_codebook(book)
    with open_bank(tmp_path / "after", writer("auto")) as bank:
        bank.write(documents())
        assert (bank.manifest.codec, bank.manifest.code_book) == ("foretold:8+16", book.fingerprint)
        assert same_contents(bank, as_decoded(documents(), writer("auto"), book))
    with open_bank(tmp_path / "before", writer("auto")) as bank:  # a bank stays as it was made
        assert bank.manifest.codec == "raw"
    with open_bank(tmp_path / "raw", writer("raw")) as bank:
        assert bank.manifest.codec == "raw"
    # What this user fitted goes before what comes with memory3.
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(calibrated, "_SHIPPED", shipped)
    own = cached_path(book.codec, book.memories)
    place = shipped / own.relative_to(tmp_path / "cache")
    place.parent.mkdir(parents=True)
    own.rename(place)
    assert cached_codebook(book.codec, book.memories).fingerprint == book.fingerprint
    other = fitted(default_codec(5), writer("auto"), positions=131)
    keep_codebook(other)
    assert cached_codebook(book.codec, book.memories).fingerprint == other.fingerprint


def test_codebooks_that_do_not_fit(tmp_path):
    other = fitted("int8", HashingWriter(name="another"))
    with pytest.raises(FingerprintMismatch, match="the codebook was fitted on"):
        open_bank(tmp_path / "bank", writer("int8"), code_book=other)
    wider = fitted("int8", HashingWriter(MemoryShape((1, 4, 6), 2, 5, 8)))
    with pytest.raises(FingerprintMismatch):
        open_bank(tmp_path / "bank", writer("int8"), code_book=wider)
    with pytest.raises(ConfigError, match="'int4', the settings say 'int8'"):
        open_bank(tmp_path / "bank", writer("int8"), code_book=fitted("int4"))


@pytest.mark.parametrize("change", ["missing", "another", "cut"])
def test_a_bank_whose_codebook_is_lost(tmp_path, change):
    path, book = tmp_path / "bank", fitted("int8")
    file = path / codebook_name(book.fingerprint)
    with open_bank(path, writer("int8"), code_book=book) as bank:
        bank.write(documents(3))
    says = {"missing": "is missing", "another": "another codebook", "cut": "cannot be read"}[change]
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes(fitted("int8", positions=99).data if change == "another" else book.data[:-9])
    report = Bank.open(path, None).verify()
    assert not report.ok
    assert says in report.problems[0]
    from memory3.bank import codebooks

    codebooks._kept.cache_clear()
    with open_bank(path, writer("int8")) as bank:
        assert bank.references(["doc0#0"])[0].text  # texts need no codebook
        with pytest.raises(BankCorrupt, match=says):
            bank.memories(["doc0#0"])
    keep_codebook(book)
    Bank.rebuild(path, writer("int8"), embedder=HashingEmbedder())  # and so nothing is lost
    with open_bank(path, writer("int8")) as bank:
        assert same_contents(bank, as_decoded(documents(3), HashingWriter(), book))
