"""One version at a time: what is found, read, cited and stored belongs together, whatever others write, rebuild or put in
the bank's place.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from datetime import timedelta

import lancedb
import pyarrow as pa
import pytest
from bank_writer import SHAPE, HashingEmbedder, HashingWriter, contents, documents, expected, open_bank, same_memory
from forging import forge

from memory3.bank import Bank, store, upkeep
from memory3.bank.format.manifest import TABLE_ID_KEY
from memory3.bank.write import pace
from memory3.codec.raw import encode_record
from memory3.errors import BankChanged, BankCorrupt, FingerprintMismatch, InputError
from memory3.retention import RetentionPolicy
from memory3.types import Document, Memory

WORDS = [Document(f"doc{n}", f"some words{n} of text number {n} and a few{n} more") for n in range(5)]
OTHER = [Document(f"doc{n}", f"other words {n}") for n in range(5)]


class Model(HashingWriter):
    """Its memories differ from those of models with another name, as those of real models do."""

    def memory(self, reference):
        made, factor = super().memory(reference), float(len(self.name))
        return Memory(made.counts, made.positions, made.keys * factor, made.values * factor, made.tokens)


A, B = Model(name="A"), Model(name="other")


def record(memory):
    return encode_record(memory, SHAPE)


def true_records(written, m3):
    return {id_: value for id_, (_, value) in expected(written, m3).items()}


# ---- cold rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["now", "auto"])
def test_a_reader_of_cold_rows_neither_reads_nor_fills_the_bank_of_another_model(tmp_path, policy):
    path = tmp_path / "bank"
    open_bank(path, A, write=policy).write(WORDS, lazy=True)
    reader = open_bank(path, A)
    Bank.rebuild(path, B, embedder=HashingEmbedder())
    ids = [f"doc{n}#0" for n in range(5)]
    for _ in range(2):
        assert [record(m) for m in reader.memories(ids)] == [true_records(WORDS, A)[id_] for id_ in ids]
        reader.cache.clear()
    rebuilt = open_bank(path, B)
    assert rebuilt.info().lazy == (len(rebuilt) if policy == "auto" else 0)
    assert contents(rebuilt) == expected(WORDS, B)
    assert rebuilt.verify().ok
    with pytest.raises(FingerprintMismatch):
        reader.refresh()


def test_a_cold_row_replaced_and_encoded_since_gives_the_memory_of_the_text_that_the_reader_has(tmp_path):
    path = tmp_path / "bank"
    writer = open_bank(path)
    writer.write(WORDS, lazy=True)
    reader = open_bank(path)
    writer.write(OTHER, lazy=False)
    for id_, (reference, memory) in expected(WORDS).items():
        assert reader.references([id_]) == [reference]
        assert record(reader.memories([id_])[0]) == memory
    reader.refresh()
    assert contents(reader) == expected(OTHER)


def test_what_others_stored_for_the_same_tokens_is_read_and_not_encoded_again(tmp_path):
    path = tmp_path / "bank"
    open_bank(path).write(WORDS, lazy=True)
    m3 = HashingWriter()
    reader = open_bank(path, m3)
    open_bank(path).write(WORDS, lazy=False)
    assert record(reader.memories(["doc3#1"])[0]) == true_records(WORDS, m3)["doc3#1"]
    assert m3.encoded == 0


def test_a_budget_of_one_bank_drops_nothing_of_the_bank_that_took_its_place(tmp_path):
    path = tmp_path / "bank"
    open_bank(path, A, write=RetentionPolicy("auto", 1, 3 * 166)).write(WORDS)
    reader = open_bank(path, A)
    reader.memories(["doc0#0", "doc1#0"])
    Bank.rebuild(path, B, embedder=HashingEmbedder())
    open_bank(path, B).write(WORDS, lazy=False)
    held = len(open_bank(path, B)) - open_bank(path, B).info().lazy
    reader.memories(["doc2#0", "doc3#0"])
    assert len(open_bank(path, B)) - open_bank(path, B).info().lazy == held


# ---- the cache -----------------------------------------------------------------------------------------------------------


def test_a_vanished_id_among_those_asked_brings_no_older_memory_back(tmp_path):
    path = tmp_path / "bank"
    writer = open_bank(path)
    writer.write(WORDS)
    reader = open_bank(path)
    ids = ["doc1#0", "doc1#1", "doc1#2"]
    reader.memories(ids)
    writer.write(OTHER)
    reader.refresh()
    with pytest.raises(InputError, match="doc1#1"):
        reader.memories(ids)
    for _ in range(2):
        assert record(reader.memories(["doc1#0"])[0]) == true_records(OTHER, HashingWriter())["doc1#0"]
        reader.refresh()


def test_what_was_deleted_is_served_no_more(tmp_path):
    path = tmp_path / "bank"
    bank, reader = open_bank(path), open_bank(path)
    bank.write(WORDS)
    reader.refresh()
    for each in (bank, reader):
        each.memories(["doc1#0"])
    bank.delete("doc1")
    reader.refresh()
    for each in (bank, reader):
        for read in (each.memories, each.references):
            with pytest.raises(InputError, match="doc1#0"):
                read(["doc1#0"])


def test_a_read_begun_before_a_refresh_leaves_nothing_for_those_after_it(tmp_path, monkeypatch):
    path = tmp_path / "bank"
    writer = open_bank(path)
    writer.write(WORDS)
    reader = open_bank(path)
    begun, refreshed = threading.Event(), threading.Event()
    from memory3.bank import view

    read_records = view.read_records

    def slow(snapshot, ids):
        found = read_records(snapshot, ids)
        begun.set()
        assert refreshed.wait(20)
        return found

    monkeypatch.setattr(view, "read_records", slow)
    thread = threading.Thread(target=reader.memories, args=(["doc2#0"],))
    thread.start()
    assert begun.wait(20)
    writer.write(OTHER)
    reader.refresh()
    refreshed.set()
    thread.join()
    assert record(reader.memories(["doc2#0"])[0]) == true_records(OTHER, HashingWriter())["doc2#0"]


# ---- views ---------------------------------------------------------------------------------------------------------------


def test_a_view_finds_reads_and_cites_one_version(tmp_path):
    path = tmp_path / "bank"
    bank = open_bank(path)
    bank.write(WORDS)
    before = bank.pin()
    bank.write([*OTHER[:3]])
    bank.delete("doc4")
    bank.refresh()
    old, new = expected(WORDS), expected([*OTHER[:3], WORDS[3]])
    for view, true in ((before, old), (bank.pin(), new)):
        ids = [hit.reference_id for hit in view.search(["words text"], 50)[0]]
        assert sorted(ids) == sorted(true)
        assert len(view) == view.count() == len(true)
        assert view.references(ids) == [true[id_][0] for id_ in ids]
        for use_cache in (True, True, False):
            assert [record(m) for m in view.memories(ids, use_cache=use_cache)] == [true[id_][1] for id_ in ids]


def test_a_view_whose_files_are_gone_says_so_and_the_bank_goes_on(tmp_path, monkeypatch):
    for module in (store, upkeep):
        monkeypatch.setattr(module, "GRACE", timedelta(0))
    path = tmp_path / "bank"
    bank = open_bank(path, cache_bytes=0)
    bank.write(WORDS)
    view = bank.pin()
    writer = open_bank(path)
    writer.write(OTHER)
    writer.compact()
    assert view.snapshot.is_removed()
    with pytest.raises(BankChanged, match="ask again"):
        view.memories(["doc1#0"])
    assert record(bank.pin().memories(["doc1#0"])[0]) == true_records(OTHER, HashingWriter())["doc1#0"]


def test_damage_is_not_taken_for_change(tmp_path):
    path = tmp_path / "bank"
    bank = open_bank(path, cache_bytes=0)
    bank.write(WORDS)
    lancedb.connect(path).open_table("references-1").update(where="ordinal = 0", values={"text": "changed"})
    bank.refresh()
    with pytest.raises(BankCorrupt, match="doc0#0"):
        bank.pin().memories(["doc0#0"])


def test_a_bank_swapped_for_one_of_the_same_name_and_version_is_noticed(tmp_path):
    for name, written in (("bank", WORDS), ("twin", OTHER)):
        open_bank(tmp_path / name).write(written)
    reader = open_bank(tmp_path / "bank")
    reader.memories(["doc1#0"])
    version = reader.info().version
    shutil.rmtree(tmp_path / "bank")
    (tmp_path / "twin").rename(tmp_path / "bank")
    reader.refresh()
    assert reader.info().version == version
    assert contents(reader) == expected(OTHER)
    assert record(reader.memories(["doc1#0"])[0]) == true_records(OTHER, HashingWriter())["doc1#0"]


def test_tables_have_an_id_each_and_those_without_open(tmp_path):
    path = tmp_path / "bank"
    bank = open_bank(path, A)
    bank.write(WORDS)
    first = bank.pin().snapshot.id
    Bank.rebuild(path, B, embedder=HashingEmbedder())
    assert open_bank(path, B).pin().snapshot.id.table_id not in ("", first.table_id)
    table = lancedb.connect(path).open_table("references-2")
    schema = table.schema
    rows = table.to_arrow().replace_schema_metadata({k: v for k, v in schema.metadata.items() if k != TABLE_ID_KEY})
    shutil.rmtree(path / "references-2.lance")
    lancedb.connect(path).create_table("references-2", rows, schema=rows.schema)
    old = open_bank(path, B)
    assert old.pin().snapshot.id.table_id
    old.write(OTHER)
    assert contents(old) == expected(OTHER, B)


# ---- rows ----------------------------------------------------------------------------------------------------------------


def test_a_memory_that_lies_beside_the_text_of_another_is_refused(tmp_path):
    path = tmp_path / "bank"
    open_bank(path).write(WORDS)
    table = lancedb.connect(path).open_table("references-1")
    rows = table.to_arrow().to_pydict()
    places = [rows["reference_id"].index(id_) for id_ in ("doc1#1", "doc2#1")]
    for column in ("codes", "codes_checksum"):  # each checksum fits its codes still
        one, other = (rows[column][place] for place in places)
        rows[column][places[0]], rows[column][places[1]] = other, one
    lancedb.connect(path).create_table("references-1", pa.table(rows, schema=table.schema), mode="overwrite")
    bank = open_bank(path)
    for id_ in ("doc1#1", "doc2#1"):
        with pytest.raises(BankCorrupt, match=id_):
            bank.memories([id_])
    assert same_memory(bank.memories(["doc3#0"])[0], HashingWriter().encode(list(HashingWriter().split(WORDS[3])))[0])
    assert set(bank.verify().bad) == {"doc1#1", "doc2#1"}


@pytest.mark.parametrize("damage", [{"ordinal": 77}, {"document_references": 0}, {"document_references": -1}])
def test_a_damaged_row_is_not_deleted_for_a_tombstone(tmp_path, damage):
    path = tmp_path / "bank"
    bank = open_bank(path)
    bank.write(documents(4))
    victim = "doc1#0"
    lancedb.connect(path).open_table("references-1").update(where=f"reference_id = '{victim}'", values=damage)
    bank.write([Document("new", "new words")])
    left = lancedb.connect(path).open_table("references-1").search().where(f"reference_id = '{victim}'").limit(None).to_arrow()
    assert len(left) == 1
    report = bank.verify()
    assert victim in report.bad
    assert not report.ok
    bank.delete("doc1")
    bank.write(documents(4))
    assert bank.verify().ok
    assert contents(bank) == expected([*documents(4), Document("new", "new words")])


# ---- what is unchanged is not encoded again ------------------------------------------------------------------------------


def test_metadata_that_change_while_the_text_does_not_are_stored_without_encoding(tmp_path):
    m3 = HashingWriter()
    bank = open_bank(tmp_path / "bank", m3)
    bank.write([Document(d.id, d.text, metadata={"year": 2020}) for d in WORDS])
    encoded, embedded = m3.encoded, bank.embedder.embedded
    newer = [Document(d.id, d.text, metadata={"year": 2021, "ok": True}) for d in WORDS]
    report = bank.write(newer)
    assert (report.written, report.changed) == (5, 5)
    assert (m3.encoded, bank.embedder.embedded) == (encoded, embedded)
    assert contents(bank) == expected(newer)
    assert bank.count({"year": 2021}) == len(bank)
    assert bank.count({"year": 2020}) == 0
    assert bank.verify().ok
    assert bank.write(newer).written == 0


def test_text_added_at_the_end_encodes_what_is_new(tmp_path):
    m3 = HashingWriter()
    bank = open_bank(tmp_path / "bank", m3)
    long = Document("long", " ".join(f"w{n}" for n in range(20)) + " ")
    bank.write([long, *WORDS])
    encoded = m3.encoded
    longer = Document("long", long.text + "seven more")
    bank.write([longer])
    assert m3.encoded == encoded + 1
    assert contents(bank) == expected([longer, *WORDS])


def test_a_damaged_row_is_encoded_again(tmp_path):
    m3 = HashingWriter()
    bank = open_bank(tmp_path / "bank", m3)
    bank.write(WORDS)
    lancedb.connect(tmp_path / "bank").open_table("references-1").update(where="reference_id = 'doc1#0'", values={"start": 1})
    encoded = m3.encoded
    newer = [Document(d.id, d.text, metadata={"year": 2021}) for d in WORDS]
    bank.write(newer)
    assert m3.encoded == encoded + 1
    assert contents(bank) == expected(newer)


def test_a_large_document_that_is_cut_otherwise_now_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 5)
    large = Document("large", " ".join(f"w{n}" for n in range(70)))

    def stop(progress):
        if progress.references >= 9:
            raise KeyboardInterrupt

    class CutsOtherwise(HashingWriter):
        def split(self, document):
            half = document.text.index("w3 ")
            for n, text in enumerate((document.text[:half], document.text[half:])):
                for r in super().split(Document(document.id, text)):
                    number = r.ordinal + n
                    start = r.start + n * half
                    yield dataclasses.replace(
                        r, id=f"{document.id}#{number}", ordinal=number, start=start, end=r.end + n * half
                    )

    with open_bank(tmp_path / "bank") as bank, pytest.raises(KeyboardInterrupt):
        bank.write([large], progress=stop)
    with open_bank(tmp_path / "bank", CutsOtherwise()) as bank:
        bank.write([large])
        assert contents(bank) == expected([large], CutsOtherwise())
        assert bank.verify().ok


# ---- damage is neither hidden nor passed on ------------------------------------------------------------------------------


@pytest.mark.parametrize("references", [2, 1, 0, 2**31 - 1, -1])
def test_a_document_whose_first_row_lies_about_its_size_is_replaced_whole(tmp_path, references):
    bank = open_bank(tmp_path / "bank")
    long = Document("long", " ".join(f"w{n}" for n in range(30)))
    bank.write([long, *WORDS])
    table = lancedb.connect(tmp_path / "bank").open_table("references-1")
    table.update(where="reference_id = 'long#0'", values={"document_references": references})
    newer = Document("long", "something short")
    bank.write([newer])
    assert contents(bank) == expected([newer, *WORDS])
    assert bank.verify().ok


def test_dropping_memories_gives_damaged_rows_no_new_checksum(tmp_path):
    path = tmp_path / "bank"
    bank = open_bank(path, write=RetentionPolicy("auto", 1, 2 * 166))
    bank.write(WORDS)
    bank.memories(["doc0#0", "doc1#0"])
    lancedb.connect(path).open_table("references-1").update(where="reference_id = 'doc0#0'", values={"text": "changed"})
    bank.refresh()
    bank.memories(["doc2#0", "doc3#0"])
    assert "doc0#0" in bank.verify().bad


def test_damaged_tags_stop_neither_writing_nor_hints(tmp_path):
    path = tmp_path / "bank"
    bank = open_bank(path)
    bank.write([Document("a", "some words", metadata={"year": 2020})])
    table = lancedb.connect(path).open_table("references-1")
    for tags in ('{"origin', "[1", '"x"', "[1, 2, 3]", '{"origin": {"a": 1}}'):
        table.update(where="reference_id = 'a#0'", values={"tags": [tags, '["book", "b"]']})
        bank.refresh()
        assert bank.metadata() == {"book": ["b"]}
        bank.write([Document("b", f"other words {tags}")])


def test_staged_rows_that_are_damaged_are_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 5)
    large = Document("large", " ".join(f"w{n}" for n in range(70)))

    def stop(progress):
        if progress.references >= 9:
            raise KeyboardInterrupt

    with open_bank(tmp_path / "bank") as bank, pytest.raises(KeyboardInterrupt):
        bank.write([large], progress=stop)
    table = lancedb.connect(tmp_path / "bank").open_table("references-1-staging")
    table.update(where="ordinal = 1", values={"text": "changed"})
    with open_bank(tmp_path / "bank") as bank:
        bank.write([large])
        assert contents(bank) == expected([large])
        assert bank.verify().ok


# ---- rows whose checksums are right and whose numbers cannot be ----------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_memories_of_numbers_that_are_none_are_refused(tmp_path, number):
    path = tmp_path / "bank"
    open_bank(path).write(WORDS)
    m3 = HashingWriter()
    reference = next(r for r in m3.split(WORDS[1]) if len(m3.memory(r).positions))
    memory = m3.memory(reference)
    memory.values[0, 0] = number
    forge(path, reference.id, codes=record(memory))
    with pytest.raises(BankCorrupt, match="cannot be"):
        open_bank(path).memories([reference.id])


@pytest.mark.parametrize("token_ids", [[], [-1], [10**9], [1000], [1] * 5])
def test_tokens_that_cannot_be_are_refused(tmp_path, token_ids):
    path = tmp_path / "bank"
    open_bank(path).write(WORDS)
    forge(path, "doc2#1", token_ids=token_ids)
    bank = open_bank(path)
    for read in (bank.references, bank.memories):
        with pytest.raises(BankCorrupt, match="cannot be"):
            read(["doc2#1"])
    assert bank.verify().bad == ("doc2#1",)


@pytest.mark.parametrize("number", [float("inf"), float("-inf")])
def test_embeddings_that_are_none_are_refused(tmp_path, number):
    path = tmp_path / "bank"
    open_bank(path).write(WORDS)
    forge(path, "doc2#1", embedding=[number] * 11)
    bank = open_bank(path)
    with pytest.raises(BankCorrupt, match="doc2#1"):
        bank.search(["some words"], 3)
    assert bank.verify().bad == ("doc2#1",)
    assert bank.delete("doc2") == 1
    assert bank.search(["some words"], 3)[0]


def test_an_older_copy_that_is_put_back_and_written_to_is_noticed(tmp_path):
    path = tmp_path / "bank"
    open_bank(path).write(WORDS)
    shutil.copytree(path, tmp_path / "copy")
    open_bank(path).write([Document("doc1", "first of two")])
    reader = open_bank(path)
    reader.memories(["doc1#0"])
    shutil.rmtree(path)
    (tmp_path / "copy").rename(path)
    other = Document("doc1", "another one")
    open_bank(path).write([other])
    reader.refresh()
    assert record(reader.memories(["doc1#0"])[0]) == true_records([other], HashingWriter())["doc1#0"]
    assert reader.references(["doc1#0"])[0].text == "another one"


def test_after_the_last_name_of_a_table_nothing_is_written(tmp_path):
    path = tmp_path / "bank"
    open_bank(path).write(WORDS)
    (path / "references-1.lance").rename(path / "references-999999999.lance")
    (path / "CURRENT").write_text("references-999999999\n")
    with pytest.raises(BankCorrupt, match="no name"):
        open_bank(path).delete("doc1", purge=True)
    assert open_bank(path).verify().ok
