"""Writing a bank and reading it back: round trip, upsert, prune, delete, streaming, manifest, opening."""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
from bank_writer import HashingEmbedder, HashingWriter, contents, documents, expected, open_bank, same_memory

from memory3.bank import Bank, Embedder
from memory3.bank.write import pace
from memory3.config import MemoryConfig
from memory3.errors import (
    BankBusy,
    BankCorrupt,
    BankNotFound,
    BankVersion,
    ConfigError,
    FingerprintMismatch,
    InputError,
)
from memory3.types import Document, MemoryShape


@pytest.fixture
def small_commits(monkeypatch):
    """Commits of at most 8 references, so that documents beyond go through the staging table."""
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 8)


def changed(document, text):
    return dataclasses.replace(document, text=text)


# ---- round trip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_written_reopened_and_read_equals_what_was_in_ram(tmp_path, dtype):
    m3 = HashingWriter(MemoryShape((1, 4, 6), 2, 5, 7, dtype))
    with open_bank(tmp_path / "bank", m3) as bank:
        report = bank.write(documents())
        assert (report.written, report.unchanged, report.removed) == (12, 0, 0)
        assert report.references == m3.encoded == len(bank)
    with open_bank(tmp_path / "bank", m3) as bank:
        assert contents(bank) == expected(documents(), m3)
        assert bank.verify().ok


def test_memories_come_in_the_order_asked_and_twice_if_asked_twice(tmp_path):
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(documents())
        ids = ["doc4#1", "doc0#0", "doc4#1", "doc2#0"]
        for use_cache in (True, True, False):
            memories = bank.memories(ids, use_cache=use_cache)
            assert [reference.id for reference in bank.references(ids)] == ids
            for memory, reference in zip(memories, bank.references(ids), strict=True):
                assert same_memory(memory, m3.memory(reference))
        assert bank.memories([]) == bank.references([]) == []


def test_references_join_to_the_text(tmp_path):
    document = Document("d", "  Aé🙂 b  c\n\nd e f g h i j\t", "src", {"a": 1.5, "b": True, "ü": "'\"\\"})
    with open_bank(tmp_path / "bank") as bank:
        bank.write([document])
        entry = next(bank.documents())
        references = bank.references([f"d#{n}" for n in range(entry.references)])
        assert "".join(r.text for r in references) == document.text
        assert all(r.text == document.text[r.start : r.end] for r in references)
        assert all(r.metadata == document.metadata and r.source == "src" for r in references)
        assert entry.content_hash == document.content_hash


def test_large_records(tmp_path):
    """All pairs of a small model kept: 3 MB a record, beyond what a commit holds many of."""
    m3 = HashingWriter(MemoryShape(tuple(range(30)), 3, 64, 11520))
    some = [Document("a", "one two three four five"), Document("b", "six")]
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(some)
        assert contents(bank) == expected(some, m3)
        assert bank.info().record_bytes == 2_972_340


def test_unknown_reference(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(documents(1))
        for read in (bank.memories, bank.references):
            with pytest.raises(InputError, match=r"no reference 'doc0#99' nor 1 others"):
                read(["doc0#0", "doc0#99", "doc7#0"])


# ---- upsert, prune, delete -----------------------------------------------------------------------------------------------


def test_unchanged_documents_cost_nothing(tmp_path):
    m3, embedder = HashingWriter(), HashingEmbedder()
    with open_bank(tmp_path / "bank", m3, embedder=embedder) as bank:
        bank.write(documents())
        version = bank.info().version
        before = (m3.splits, m3.encoded, embedder.embedded)
        report = bank.write(documents())
        assert (report.written, report.unchanged, report.references, report.bytes) == (0, 12, 0, 0)
        assert (m3.splits, m3.encoded, embedder.embedded) == before
        assert bank.info().version == version


@pytest.mark.parametrize("words", [0, 1, 9, 40, 200])
def test_a_changed_document_is_replaced_whole(tmp_path, small_commits, words):
    docs = documents()
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs)
        docs[3] = changed(docs[3], " ".join(f"new{n}" for n in range(words)))
        report = bank.write(docs)
        assert (report.written, report.unchanged) == (1, 11)
        assert contents(bank) == expected(docs)
        assert bank.verify().ok
        assert bank.write(docs).written == 0


def test_changed_metadata_is_a_change(tmp_path):
    docs = documents(3)
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs)
        docs[1] = dataclasses.replace(docs[1], metadata={"book": "z"})
        assert bank.write(docs).written == 1
        assert bank.count({"book": "z"}) == len(list(HashingWriter().split(docs[1])))


def test_prune_removes_what_is_absent(tmp_path):
    docs = documents()
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs)
        report = bank.write(docs[:5], prune=True)
        assert (report.written, report.unchanged, report.removed) == (0, 5, 7)
        assert contents(bank) == expected(docs[:5])
        with pytest.raises(InputError, match="would empty"):
            bank.write([], prune=True)
        assert contents(bank) == expected(docs[:5])


def test_delete(tmp_path):
    docs = documents()
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs)
        assert bank.delete(["doc1", "doc2", "nothing", "doc1"]) == 2
        assert bank.delete("doc3") == 1
        assert bank.delete([]) == 0
        assert contents(bank) == expected([docs[0], *docs[4:]])


@pytest.mark.parametrize("hostile", ["it's", "a') OR ('1'='1", '"; --', "\\", "x\x00y", "%", "a#0", "\u2028🙂", "\n"])
def test_hostile_ids(tmp_path, hostile):
    docs = [Document("plain", "some words"), Document(hostile, "other words here and there")]
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs)
        docs[1] = changed(docs[1], "shorter")
        bank.write(docs)
        assert contents(bank) == expected(docs)
        assert bank.delete([hostile]) == 1
        assert contents(bank) == expected(docs[:1])


def test_large_documents_go_through_staging(tmp_path, small_commits):
    docs = [*documents(4), Document("large", " ".join(f"w{n}" for n in range(131))), *documents(9)[4:]]
    with open_bank(tmp_path / "bank") as bank:
        report = bank.write(docs)
        assert report.references == len(expected(docs))
        assert contents(bank) == expected(docs)
        assert bank.verify().ok
    assert sorted(os.listdir(tmp_path / "bank")) == ["CURRENT", "recalls.jsonl", "references-1.lance", "writer.lock"]


def test_references_of_several_documents_are_encoded_together(tmp_path):
    m3 = HashingWriter(batch_size=5)
    docs = [Document(f"d{n}", "one two") for n in range(12)]
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(docs)
    assert m3.batches == [5, 5, 2]


def test_progress_and_streaming(tmp_path):
    """Documents are taken one by one; progress ends with the totals of the report."""
    told, taken = [], []

    def stream():
        for document in documents(30):
            taken.append(document.id)
            yield document

    with open_bank(tmp_path / "bank") as bank:
        report = bank.write(stream(), progress=told.append)
    assert taken == [f"doc{n}" for n in range(30)]
    assert told[0].documents == 1
    assert (told[-1].documents, told[-1].references) == (30, report.references)
    assert all(a.references <= b.references and a.seconds <= b.seconds for a, b in itertools.pairwise(told))


def test_empty_documents(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        report = bank.write([Document("empty", ""), Document("blank", " \n")])
        assert (report.written, report.unchanged, len(bank)) == (0, 2, 0)


def test_one_id_twice(tmp_path):
    a = Document("same", "one text")
    with open_bank(tmp_path / "bank") as bank:
        report = bank.write([a, a])
        assert (report.written, report.unchanged) == (1, 0)
        with pytest.raises(InputError, match="'same'"):
            bank.write([a, changed(a, "another text")])
        assert contents(bank) == expected([a])


@pytest.mark.parametrize(
    "document",
    [
        Document("", "text"),
        Document("d", "lone \ud800 surrogate"),
        Document("d", "text", metadata={"list": [1]}),  # type: ignore[dict-item]
        Document("d", "text", metadata={"nan": float("nan")}),
        Document("d", "text", metadata={1: "a"}),  # type: ignore[dict-item]
    ],
    ids=["id", "surrogate", "list", "nan", "key"],
)
def test_documents_that_cannot_be_kept(tmp_path, document):
    with open_bank(tmp_path / "bank") as bank:
        with pytest.raises(InputError):
            bank.write([document])
        assert len(bank) == 0


# ---- several processes and instances -------------------------------------------------------------------------------------


def test_readers_see_the_version_they_opened_until_they_refresh(tmp_path):
    docs = documents(4)
    with open_bank(tmp_path / "bank") as bank, open_bank(tmp_path / "bank") as reader:
        bank.write(docs)
        assert len(reader) == 0
        reader.refresh()
        before = contents(reader)
        text = reader.references(["doc1#0"])[0].text
        reader.memories(["doc1#0"])
        bank.write([changed(docs[1], "entirely different")])
        assert reader.references(["doc1#0"])[0].text == text
        assert contents(reader) != before
        assert reader.references(["doc1#0"])[0].text == "entirely different"


class Gone(BaseException):
    """No error: whoever writes is called away."""


def test_a_write_that_ends_early_shows_what_it_committed(tmp_path, small_commits):
    """Else what another call deletes by name is not found, and stays."""

    class Leaves(HashingWriter):
        asked = 0

        def encode(self, references):
            self.asked += 1
            if self.asked == 3:
                raise Gone
            return super().encode(references)

    with open_bank(tmp_path / "bank", Leaves()) as bank:
        with pytest.raises(Gone):
            bank.write(documents(11))
        there = [entry.id for entry in bank.documents()]
        assert there
        bank.delete(there)
        assert [entry.id for entry in bank.documents()] == []
    with open_bank(tmp_path / "bank") as bank:
        assert [entry.id for entry in bank.documents()] == []


def test_threads_read_while_another_writes(tmp_path):
    """Every read sees whole documents, of one of the two versions."""
    docs = {0: documents(6), 1: [changed(d, d.text[: len(d.text) // 2] or d.text) for d in documents(6)]}
    texts = {d.id: {docs[0][n].text, docs[1][n].text} for n, d in enumerate(docs[0])}
    with open_bank(tmp_path / "bank") as bank:
        bank.write(docs[0])

        def read(number):
            for _ in range(15):
                hits = bank.search([f"w{number}"], 4)[0]
                ids = [hit.reference_id for hit in hits]
                assert len(bank.memories(ids)) == len(bank.references(ids)) == 4

        def write(_):
            for version in range(8):
                bank.write(docs[(version + 1) % 2])
                for entry in bank.documents():
                    parts = bank.references([f"{entry.id}#{n}" for n in range(entry.references)])
                    assert "".join(part.text for part in parts) in texts[entry.id]

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(write, 0), *(pool.submit(read, n) for n in range(3))]:
                done.result()


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    with open_bank(tmp_path / "bank") as bank, open_bank(tmp_path / "bank") as other:

        def stream():
            yield from documents(2)
            with pytest.raises(BankBusy, match=str(tmp_path)):
                other.write(documents(1))
            with pytest.raises(BankBusy):
                other.delete("doc0")
            with pytest.raises(BankBusy):
                other.compact(wait_seconds=0.05)
            assert other.search(["w1"], 3) == [[]]

        bank.write(stream())
        assert other.write(documents(3)).written == 1


# ---- opening -------------------------------------------------------------------------------------------------------------


class OtherEmbedder(HashingEmbedder):
    """Puts the same texts elsewhere."""

    def encode(self, texts):
        return super().encode([text.replace("w", "other") for text in texts])


def test_no_bank(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BankNotFound, match=r"memory3 write"):
            open_bank(path, create=False)
        with pytest.raises(BankNotFound, match=str(path)):
            Bank.describe(path)
    with pytest.raises(BankNotFound):
        Bank.rebuild(tmp_path / "none", HashingWriter())
    assert not (tmp_path / "none").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BankNotFound, match=r"thesis\.txt"):
        open_bank(tmp_path)
    assert "CURRENT" not in os.listdir(tmp_path)


def test_describe_needs_no_model(tmp_path):
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(documents())
    manifest = Bank.describe(tmp_path / "bank")
    assert (manifest.model, manifest.config, manifest.shape) == (m3.name, m3.config.replace(codec="raw"), m3.shape)
    assert (manifest.fingerprint, manifest.embedder, manifest.dimension) == (m3.fingerprint, "hashing", 11)
    assert (manifest.format_version, manifest.codec, manifest.documents) == (1, "raw", 12)
    assert manifest.references == len(expected(documents()))


def test_without_a_model_a_bank_can_be_read_but_not_written(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(documents())
    with Bank.open(tmp_path / "bank", None, embedder=HashingEmbedder()) as bank:
        assert bank.search(["w1"], 1)[0]
        assert contents(bank) == expected(documents())
        assert bank.delete("doc1") == 1
        with pytest.raises(ConfigError, match="model"):
            bank.write(documents())
    with pytest.raises(BankNotFound):
        Bank.open(tmp_path / "other", None)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (HashingWriter(name="another"), "model is 'hashing' in the bank and 'another' now"),
        (HashingWriter(config=MemoryConfig(reference_length=4, selector="first")), "selector is 'reconstruction'.*'first'"),
        (HashingWriter(MemoryShape((1, 4, 6), 2, 5, 8)), "shape is .*pairs=7.*pairs=8"),
    ],
    ids=["model", "selector", "shape"],
)
def test_another_model_is_refused(tmp_path, other, says):
    open_bank(tmp_path / "bank").close()
    with pytest.raises(FingerprintMismatch, match=says) as caught:
        open_bank(tmp_path / "bank", other)
    assert caught.value.bank in str(caught.value)
    assert caught.value.model == other.fingerprint


@pytest.mark.parametrize("dimension", [11, 7], ids=["as long", "shorter"])
def test_a_bank_that_is_open_goes_over_to_the_embedder_of_a_rebuild(tmp_path, monkeypatch, dimension):
    monkeypatch.setattr(Embedder, "load", lambda name: OtherEmbedder(name, dimension))
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(documents())
        before = bank.pin()
        found = before.search(["w1 w2"], 5)
        Bank.rebuild(tmp_path / "bank", m3, embedder="other")
        bank.refresh()
        with open_bank(tmp_path / "bank", m3, embedder=OtherEmbedder("other", dimension)) as fresh:
            assert bank.search(["w1 w2"], 5) == fresh.search(["w1 w2"], 5)
        assert before.search(["w1 w2"], 5) == found  # the old version is still searched by its own
        bank.write([Document("late", "w1 w2 w3")])
        assert bank.embedder.name == "other"
        assert bank.verify().ok
        assert bank.search(["w1 w2 w3"], 1)[0][0].reference_id == "late#0"


def test_a_write_that_finds_the_bank_rebuilt_embeds_by_its_new_embedder(tmp_path, monkeypatch):
    monkeypatch.setattr(Embedder, "load", lambda name: OtherEmbedder(name))
    m3 = HashingWriter()
    with open_bank(tmp_path / "bank", m3) as bank:
        bank.write(documents())
        Bank.rebuild(tmp_path / "bank", m3, embedder="other")
        bank.write([Document("late", "w1 w2 w3")])
    with open_bank(tmp_path / "bank", m3, embedder=OtherEmbedder("other")) as fresh:
        (hit,) = fresh.search(["w1 w2 w3"], 1)[0]
        assert (hit.reference_id, round(hit.score, 4)) == ("late#0", 1.0)


def test_changed_weights_are_refused(tmp_path):
    open_bank(tmp_path / "bank").close()
    other = HashingWriter()
    other.fingerprint = "0" * 16
    with pytest.raises(FingerprintMismatch, match="weights or tokenizer"):
        open_bank(tmp_path / "bank", other)


def test_reading_settings_may_differ(tmp_path):
    open_bank(tmp_path / "bank").close()
    other = HashingWriter()
    other.config = other.config.replace(chunk_length=17, references_per_chunk=2)
    open_bank(tmp_path / "bank", other).close()


def test_another_embedder_is_refused(tmp_path):
    open_bank(tmp_path / "bank").close()
    for embedder in ("all-minilm-l6-v2", HashingEmbedder("other"), HashingEmbedder(dimension=13)):
        with pytest.raises(ConfigError, match=r"hashing \(11 numbers\)"):
            open_bank(tmp_path / "bank", embedder=embedder)


def rewrite_manifest(path, change):
    """Replace the table by an empty one whose manifest was changed as text."""
    import lancedb

    connection = lancedb.connect(path)
    schema = connection.open_table("references-1").schema
    metadata = {key: change(value) for key, value in schema.metadata.items() if change(value) is not None}
    connection.create_table("references-1", schema=schema.with_metadata(metadata), mode="overwrite")


def test_other_format_versions_are_refused(tmp_path):
    open_bank(tmp_path / "bank").close()
    rewrite_manifest(tmp_path / "bank", lambda text: text.replace(b'"format_version": 1', b'"format_version": 4'))
    with pytest.raises(BankVersion, match=r"version 4.*reads versions 1 to 3: upgrade"):
        open_bank(tmp_path / "bank")
    rewrite_manifest(tmp_path / "bank", lambda text: text.replace(b'"format_version": 4', b'"format_version": 0'))
    with pytest.raises(BankVersion, match="memory3 write"):
        Bank.describe(tmp_path / "bank")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: None,
        lambda text: b"{",
        lambda text: b"[]",
        lambda text: b'{"format_version": 1}',
        lambda text: text.replace(b'"codec"', b'"kodek"'),
        lambda text: text.replace(b'"selector"', b'"sselector"'),
        lambda text: text.replace(b'"layers": [1, 4, 6]', b'"layers": 7'),
    ],
    ids=["absent", "cut", "list", "empty", "unknown key", "unknown setting", "wrong type"],
)
def test_damaged_manifests(tmp_path, change):
    open_bank(tmp_path / "bank").close()
    rewrite_manifest(tmp_path / "bank", change)
    with pytest.raises(BankCorrupt, match="manifest"):
        open_bank(tmp_path / "bank")


def test_current_is_missing_or_nonsense(tmp_path):
    path = tmp_path / "bank"
    with open_bank(path) as bank:
        bank.write(documents(2))
    (path / "CURRENT").write_text("../../etc/passwd\n")
    with pytest.raises(BankCorrupt, match="CURRENT"):
        open_bank(path)
    (path / "CURRENT").write_text("references-7\n")
    with pytest.raises(BankCorrupt, match=r"references-7\.lance is missing"):
        open_bank(path)
    (path / "CURRENT").unlink()
    with pytest.raises(BankNotFound, match="references-1 lies there"):
        open_bank(path)
    (path / "CURRENT").write_text("references-1\n")
    assert contents(open_bank(path)) == expected(documents(2))


def test_interrupted_creation_is_taken_up(tmp_path):
    path = tmp_path / "bank"
    open_bank(path).close()
    (path / "CURRENT").unlink()
    with open_bank(path) as bank:
        assert len(bank) == 0


def test_ram_stays_flat_over_many_reads(tmp_path):
    m3 = HashingWriter(MemoryShape(tuple(range(30)), 3, 64, 360))
    with open_bank(tmp_path / "bank", m3, cache_bytes=1 << 20) as bank:
        bank.write(documents(10))
        ids = list(expected(documents(10), m3))

        def peak_after(reads):
            for _ in range(reads):
                bank.memories(ids)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

        assert len(ids) * bank.info().record_bytes > bank.cache.capacity
        assert peak_after(30) + 20 > peak_after(60)
