"""Plan, shards encoded elsewhere, commit: the same bank as one write, whatever the order, and nothing foreign gets in."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bank_writer import HashingEmbedder, HashingWriter, contents, documents, expected, open_bank
from codebooks import fitted
from shard_process import tiny_memory3

from memory3.bank import Bank, EncodedShard, Shard, WritePlan, encode_shard
from memory3.bank.format.rows import row_batch
from memory3.bank.write import pace
from memory3.codec import RawCodec
from memory3.config import MemoryConfig
from memory3.errors import BankChanged, ConfigError, FingerprintMismatch, InputError
from memory3.types import Document

LARGE = Document("large", " ".join(f"a{n}" for n in range(90)))
TEXTS = [
    Document("river", "The river rises in the mountains and reaches the sea near the old town. " * 5, "a.txt", {"year": 1874}),
    Document("bridge", "Who built the bridge, and when?", metadata={"kind": "question", "short": True, "share": 0.5}),
    Document("naive", "Füße, naïve café, 東京, emoji 🙂 and tabs\tand  double  spaces. " * 3),
    Document("county", "The bridge was built in 1874 by the engineer of the county."),
]


@pytest.fixture
def small_commits(monkeypatch):
    monkeypatch.setattr(pace, "COMMIT_REFERENCES", 8)


def rows_of(bank: Bank) -> pa.Table:
    """Every column of every row, in order of the ids."""
    bank.refresh()
    table = bank._snapshot.table.to_arrow()
    return table.sort_by("reference_id").combine_chunks()


def encoded(m3, plan: WritePlan) -> list[EncodedShard]:
    return [encode_shard(m3, shard, embedder=HashingEmbedder(), code_book=plan.code_book) for shard in plan.shards]


@pytest.mark.long
def test_shards_encoded_by_two_other_processes_are_one_write(tmp_path, small_commits):
    """Texts of the tiny model: some small documents, one that is cut into parts; committed in reverse order by a third."""
    docs = [*TEXTS, Document("large", "Memories are keys and values; the reader reads them while it writes. " * 20)]
    m3, folder = tiny_memory3(), tmp_path / "plan"
    one = Bank.open(tmp_path / "one", m3, embedder=HashingEmbedder())
    one.write(docs)
    many = Bank.open(tmp_path / "many", m3, embedder=HashingEmbedder())
    plan = many.plan(docs, shard_references=5)
    assert len(plan.shards) >= 5
    plan.save(folder)
    numbers = [str(shard.number) for shard in plan.shards]
    command = [sys.executable, str(Path(__file__).with_name("shard_process.py")), str(folder)]
    workers = [subprocess.Popen([*command, *numbers[first::2]]) for first in (0, 1)]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    assert len(many) == 0
    again = WritePlan.load(folder)
    assert again == plan
    report = many.commit(again, (EncodedShard.load(folder / f"encoded-{number}.arrow") for number in reversed(numbers)))
    assert (report.written, report.added, report.references) == (len(docs), len(docs), len(one))
    assert rows_of(many).equals(rows_of(one))
    assert many.verify().ok
    assert not (tmp_path / "many" / "references-1-staging.lance").exists()
    assert many.pending(plan) == []


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_any_pieces_come_to_what_write_comes_to(tmp_path, small_commits, seed, lazy):
    """Documents new, longer, shorter, equal, emptied, of other metadata, gone; shards come twice, in several calls."""
    before = [*documents(), LARGE]
    longer = [Document(d.id, d.text * 2, d.source, d.metadata) for d in documents()[:3]]
    shorter = [Document(d.id, d.text[: len(d.text) // 3], d.source, d.metadata) for d in documents()[3:6]]
    other = [dataclasses.replace(d, metadata={"book": "new"}) for d in documents()[6:8]]
    empty = [dataclasses.replace(documents()[8], text="  ")]
    large = [Document("large", LARGE.text + " " + " ".join(f"b{n}" for n in range(20)))]
    after = [*longer, *large, *shorter, *other, *empty, documents()[9], *documents(16)[12:]]
    banks = []
    for name in ("one", "many"):
        with open_bank(tmp_path / name) as bank:
            bank.write(before, lazy=lazy)
    m3 = HashingWriter()
    banks = [open_bank(tmp_path / "one"), open_bank(tmp_path / "many", m3)]
    wanted = banks[0].write(after, prune=True, lazy=lazy)
    many = banks[1]
    plan = many.plan(after, prune=True, lazy=lazy, shard_references=6)
    assert m3.encoded == 0
    shards = [EncodedShard.from_bytes(each.to_bytes()) for each in encoded(m3, plan)]
    assert m3.encoded == 0 if lazy else 0 < m3.encoded < len(contents(banks[0]))  # tokens that were there keep their memory
    rng = np.random.default_rng(seed)
    order = [*rng.permutation(len(shards)), *rng.permutation(len(shards))]
    written = removed = 0
    for part in np.array_split(np.array(order), 5):
        report = many.commit(plan, [shards[n] for n in part])
        written += report.written
        removed += report.removed
    assert (written, removed) == (wanted.written, wanted.removed)
    assert rows_of(many).equals(rows_of(banks[0]))
    assert many.verify().ok
    assert many.commit(plan, shards).written == 0
    assert many.plan(after, prune=True, lazy=lazy).shards == ()


def test_a_document_is_there_when_all_of_it_has_come(tmp_path, small_commits):
    bank = open_bank(tmp_path / "bank")
    plan = bank.plan([LARGE, *documents(2)], shard_references=6)
    shards = encoded(HashingWriter(), plan)
    parts = [shard.number for shard in plan.shards if shard.document_ids == ["large"]]
    assert len(parts) > 2
    for number in parts[:0:-1]:
        assert bank.commit(plan, shards[number]).written == 0
        assert len(bank) == 0
    assert bank.pending(plan) == [shard.number for shard in plan.shards]
    assert bank.commit(plan, shards[parts[0]]).written == 1
    assert contents(bank) == expected([LARGE])
    assert bank.pending(plan) == [n for n in range(len(shards)) if n not in parts]
    assert bank.commit(plan, shards).written == 2
    assert contents(bank) == expected([LARGE, *documents(2)])


def test_a_write_goes_on_after_a_plan_that_was_given_up(tmp_path, small_commits):
    bank = open_bank(tmp_path / "bank")
    plan = bank.plan([LARGE], shard_references=6)
    shards = encoded(HashingWriter(), plan)
    bank.commit(plan, shards[2])
    assert bank.write([LARGE]).written == 1
    assert contents(bank) == expected([LARGE])
    assert bank.commit(plan, shards).written == 0
    assert not (tmp_path / "bank" / "references-1-staging.lance").exists()


def test_what_was_written_is_written_once(tmp_path):
    bank = open_bank(tmp_path / "bank")
    plan = bank.plan(documents(3))
    (first,) = encoded(HashingWriter(), plan)
    (again,) = encoded(HashingWriter(), plan)
    assert bank.commit(plan, [first, again, first]).written == 3
    version = bank._snapshot.version
    assert bank.commit(plan, again).written == 0
    assert bank._snapshot.version == version


def test_equal_plans_take_one_anothers_shards(tmp_path):
    bank = open_bank(tmp_path / "bank")
    plans = [bank.plan(documents(3)) for _ in range(2)]
    assert plans[0] == plans[1]
    assert bank.plan(documents(4)).id != plans[0].id
    assert bank.commit(plans[1], encoded(HashingWriter(), plans[0])).written == 3


# ---- what is refused -----------------------------------------------------------------------------------------------------


def test_another_model_other_settings_or_another_plan_are_refused(tmp_path):
    bank = open_bank(tmp_path / "bank")
    plan = bank.plan(documents(3))
    (good,) = encoded(HashingWriter(), plan)
    for m3 in (HashingWriter(name="other"), HashingWriter(reference_length=5)):
        with pytest.raises(FingerprintMismatch):
            encoded(m3, plan)
        foreign = open_bank(tmp_path / m3.name / str(m3.config.reference_length), m3)
        theirs = foreign.plan(documents(3))
        (shard,) = encoded(m3, theirs)
        with pytest.raises(InputError, match=f"of plan {theirs.id}, not of"):
            bank.commit(plan, shard)
        with pytest.raises(FingerprintMismatch):  # even if it says that it is of this plan
            bank.commit(plan, dataclasses.replace(shard, plan=plan.id))
        with pytest.raises(BankChanged, match="another bank"):
            bank.commit(theirs, shard)
    with pytest.raises(ConfigError, match="embeddings are by"):
        encode_shard(HashingWriter(), plan.shards[0], embedder=HashingEmbedder("other"))
    with pytest.raises(InputError, match="shard 7"):
        bank.commit(plan, dataclasses.replace(good, number=7))
    assert len(bank) == 0
    assert bank.commit(plan, good).written == 3


@pytest.mark.parametrize("harm", ["text", "memory", "embedding", "order", "fewer", "no memory"])
def test_altered_rows_are_refused(tmp_path, harm):
    """Also where their checksums were made anew."""
    bank = open_bank(tmp_path / "bank")
    plan = bank.plan(documents(3))
    (good,) = encoded(HashingWriter(), plan)
    columns = {name: good.rows[name].to_pylist() for name in good.rows.schema.names}
    rows, records = list(plan.shards[0].rows), columns["codes"]
    embeddings = np.array(columns["embedding"], np.float32)
    if harm == "text":
        rows[1] = dataclasses.replace(rows[1], reference=dataclasses.replace(rows[1].reference, text="something else"))
    elif harm == "memory":
        records[1] = b"\xff" * len(records[1])  # more pairs than there can be
    elif harm == "embedding":
        embeddings[1, 2] = np.inf
    elif harm == "order":
        rows = rows[::-1]
    elif harm == "fewer":
        rows, embeddings, records = rows[1:], embeddings[1:], records[1:]
    else:
        records[1] = None
    bad = dataclasses.replace(good, rows=row_batch(rows, embeddings, records, good.rows.schema))
    with pytest.raises(InputError, match="shard 0"):
        bank.commit(plan, bad)
    assert len(bank) == 0


def test_a_bit_that_flips_on_the_way_is_seen(tmp_path):
    bank = open_bank(tmp_path / "bank")
    plan = bank.plan(documents(3))
    (good,) = encoded(HashingWriter(), plan)
    data = bytearray(good.to_bytes())
    refused = 0
    for place in range(len(data) // 2, len(data) - 64, 97):
        flipped = data.copy()
        flipped[place] ^= 16
        try:
            shard = EncodedShard.from_bytes(bytes(flipped))
            same = shard.rows.equals(good.rows)  # padding may be anything
            if not same:
                with pytest.raises(InputError):
                    bank.commit(plan, shard)
            refused += not same
        except InputError:
            refused += 1
    assert refused > 10
    assert len(bank) == 0


def test_a_bank_that_others_changed_is_planned_again(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write(documents(4))
    given = [Document(d.id, d.text + " more", d.source, d.metadata) for d in documents(4)]
    plan = bank.plan(given, prune=True)
    shards = encoded(HashingWriter(), plan)
    open_bank(tmp_path / "bank").write([Document("doc1", "quite another", "shelf/1.txt")])
    for refused in (lambda: bank.commit(plan, shards), lambda: bank.pending(plan)):
        with pytest.raises(BankChanged, match=r"'doc1'.*plan again"):
            refused()
    plan = bank.plan(given, prune=True)
    bank.commit(plan, encoded(HashingWriter(), plan))
    assert contents(bank) == expected(given)
    plan = bank.plan(given[:2])
    Bank.rebuild(tmp_path / "bank", HashingWriter(name="other"), embedder=HashingEmbedder())
    with pytest.raises(BankChanged, match="rebuilt"):
        bank.commit(plan, [])


def test_a_document_that_is_no_longer_as_it_was_is_not_pruned(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write(documents(4))
    plan = bank.plan(documents(2), prune=True)
    assert [id_ for id_, _ in plan.gone] == ["doc2", "doc3"]
    open_bank(tmp_path / "bank").write([Document("doc3", "new text", "shelf/3.txt")])
    assert bank.commit(plan, []).removed == 1
    assert {entry.id for entry in bank.documents()} == {"doc0", "doc1", "doc3"}


def test_conflicts_are_named_and_left_out(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write([Document("a", "one text", "here.txt")])
    given = [Document("a", "another", "/there.txt"), Document("b", "a third", "b.txt")]
    plan = bank.plan(given, prune=True)
    assert ([each.id for each in plan.conflicts], [each.id for each in plan.documents], plan.gone) == (["a"], ["b"], ())
    assert [each.id for each in bank.plan(given, replace=True).documents] == ["a", "b"]


def test_the_codebook_travels_with_the_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    m3 = HashingWriter(config=MemoryConfig(reference_length=4, codec="int8"))
    book = fitted("int8", m3)
    bank = open_bank(tmp_path / "bank", m3, code_book=book)
    bank.plan(documents(3)).save(tmp_path / "plan")
    plan = WritePlan.load(tmp_path / "plan")
    assert plan.code_book.fingerprint == book.fingerprint
    with pytest.raises(ConfigError, match=r"code_book=plan\.code_book"):
        encode_shard(m3, plan.shards[0], embedder=HashingEmbedder())
    bank.commit(plan, encoded(m3, plan))
    one = open_bank(tmp_path / "one", m3, code_book=book)
    one.write(documents(3))
    assert rows_of(bank).equals(rows_of(one))
    assert not isinstance(bank._snapshot.codec, RawCodec)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rows": [7]}', '{"rows": [], "kept": [], "plan": 1}'])
def test_files_that_are_none_are_named(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    for load in (Shard.from_json, EncodedShard.from_bytes):
        with pytest.raises(InputError, match=r"no (encoded )?shard"):
            load(text.encode())
    with pytest.raises(InputError, match="no whole write plan"):
        WritePlan.load(tmp_path)


def test_a_plan_without_all_its_shards_is_refused(tmp_path, small_commits):
    bank = open_bank(tmp_path / "bank")
    bank.plan([LARGE], shard_references=6).save(tmp_path / "plan")
    other = bank.plan(documents(3)).shards[0]
    (tmp_path / "plan" / "shard-000001.json").write_text(other.to_json())
    with pytest.raises(InputError, match="not all of the plan"):
        WritePlan.load(tmp_path / "plan")
    (tmp_path / "plan" / "shard-000001.json").unlink()
    with pytest.raises(InputError, match="no whole write plan"):
        WritePlan.load(tmp_path / "plan")


def test_a_shard_is_plain_data(tmp_path):
    bank = open_bank(tmp_path / "bank")
    bank.write(documents(4))
    changed = [dataclasses.replace(d, metadata={"x": 1.5, "y": True, "z": "ü"}) for d in documents(4)]
    (shard,) = bank.plan(changed).shards
    assert Shard.from_json(shard.to_json()) == shard
    assert shard.to_json() == json.dumps(dataclasses.asdict(shard))
    assert set(shard.kept) == set(expected(documents(4)))
    assert json.loads(shard.to_json())["rows"][0]["reference"]["text"]
