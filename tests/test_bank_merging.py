"""Fragments: bounded, merged once, every row kept. And old versions: removed as Lance removes them."""

from __future__ import annotations

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest
from bank_writer import HashingWriter, contents, documents, expected, open_bank

from memory3.bank import merging, store, upkeep
from memory3.bank.backends import lance_versions
from memory3.bank.format.rows import row_bytes
from memory3.bank.merging import rows_to_move
from memory3.types import Document

ONE = [Document(f"d{n}", f"word{n}") for n in range(40)]  # one row each


def address(fragment, row):
    return (fragment << 32) + row


def move(rows, size=4, physical=None, fixed=()):
    ids = np.array([address(*row) for row in rows], np.uint64)
    last = {fragment: row + 1 for fragment, row in sorted(rows)}
    moved = rows_to_move(ids, np.array([row in fixed for row in rows], bool), size, physical or sum(last.values()))
    return [(int(id_) >> 32, int(id_) & 0xFFFFFFFF) for id_ in moved]


FULL = [(0, row) for row in range(4)]


@pytest.mark.parametrize(
    ("rows", "moved"),
    [
        ([], []),
        (FULL, []),
        ([*FULL, (1, 0)], []),  # one small fragment alone
        ([*FULL, (1, 0), (2, 0)], [(1, 0), (2, 0)]),
        ([(2, 1), (1, 0), *FULL, (2, 0)], [(1, 0), (2, 0), (2, 1)]),
        ([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], []),  # more than half full
        ([(0, 0), (0, 1), (0, 3)], [(0, 0), (0, 1), (0, 3)]),  # a quarter of it is deleted
        ([(0, row) for row in range(19)], []),  # larger than full
    ],
)
def test_which_rows_are_moved(rows, moved):
    assert move(rows) == moved


def test_rows_deleted_at_the_end_of_a_fragment_are_noticed_by_the_number_of_all():
    assert move(FULL, physical=4) == []
    assert move(FULL, physical=5) == FULL


def test_a_fragment_with_a_row_that_cannot_be_moved_stays():
    rows = [(0, 0), (1, 0), (2, 0)]
    assert move(rows, fixed={(1, 0)}) == [(0, 0), (2, 0)]


# ---- a bank --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def five(tmp_path, monkeypatch):
    """A bank of 40 rows in 40 fragments, where a full one has 5."""
    with open_bank(tmp_path / "bank") as bank:
        monkeypatch.setattr(merging, "FRAGMENT_BYTES", 5 * row_bytes(bank.manifest))
        for document in ONE:
            bank.write([document])
    return tmp_path / "bank"


def fragments(path, name="references-1"):
    """The document ids of each fragment, in order."""
    rows = lancedb.connect(path).open_table(name).search().select(["document_id"]).with_row_id(True).limit(None).to_arrow()
    found = {}
    for row_id, id_ in sorted(zip(rows["_rowid"].to_pylist(), rows["document_id"].to_pylist(), strict=True)):
        found.setdefault(row_id >> 32, []).append(id_)
    return list(found.values())


def test_fragments_are_merged_in_order_up_to_the_bound(five):
    assert len(fragments(five)) == 40
    with open_bank(five) as bank:
        bank.compact()
        found = [sorted(ids, key=lambda id_: int(id_[1:])) for ids in fragments(five)]
        assert found == [[f"d{n}" for n in range(start, start + 5)] for start in range(0, 40, 5)]
        assert contents(bank) == expected(ONE)
        assert bank.verify().ok


def test_full_fragments_are_never_written_again(five):
    with open_bank(five) as bank:
        bank.compact()
        files = set(os.listdir(five / "references-1.lance" / "data"))
        version = bank.info().version
        bank.compact()
        assert bank.info().version == version
        late = [Document(f"late{n}", f"late{n}") for n in range(7)]
        for document in late:
            bank.write([document])
        bank.compact()
        assert sorted(map(len, fragments(five))) == [2, *[5] * 9]
        assert files < set(os.listdir(five / "references-1.lance" / "data"))
        assert contents(bank) == expected([*ONE, *late])


def test_deleted_rows_give_their_space_back(five, monkeypatch):
    for module in (store, upkeep):
        monkeypatch.setattr(module, "GRACE", timedelta(0))
    with open_bank(five) as bank:
        bank.compact()
        bank.delete(["d3", "d4", "d12"])  # two at the end of their fragment, one within
        bank.compact()
        left = [d for d in ONE if d.id not in ("d3", "d4", "d12")]
        assert contents(bank) == expected(left)
        table = lancedb.connect(five).open_table("references-1")
        stats = table.stats()["fragment_stats"]
        assert stats["num_fragments"] * stats["lengths"]["mean"] <= len(left)
        assert len(os.listdir(five / "references-1.lance" / "data")) == stats["num_fragments"]


def test_an_interrupted_merge_goes_on(five, monkeypatch):
    """Killed between two portions: a whole bank of the same rows, in fewer fragments."""
    from memory3.bank.snapshot import Snapshot

    take, calls = Snapshot.take, []

    def failing(self, row_ids, columns, portion=None):
        if portion is not None:
            calls.append(len(row_ids))
            if len(calls) == 4:
                raise KeyboardInterrupt
        return take(self, row_ids, columns, portion)

    with open_bank(five) as bank, monkeypatch.context() as patch:
        patch.setattr(Snapshot, "take", failing)
        with pytest.raises(KeyboardInterrupt):
            bank.compact()
    assert len(fragments(five)) == 40 - 3 * 5 + 3
    with open_bank(five) as bank:
        assert contents(bank) == expected(ONE)
        assert bank.verify().ok
        bank.compact()
        assert sorted(map(len, fragments(five))) == [5] * 8
        assert contents(bank) == expected(ONE)
    assert calls == [5] * 4


def test_rows_that_share_an_id_are_left_where_they_are(five):
    """Two rows of one id are damage. Merging by id would write both anew with the values of one."""
    table = lancedb.connect(five).open_table("references-1")
    table.update(where="reference_id = 'd7#0'", values={"reference_id": "d30#0"})
    before = sorted(table.to_arrow().to_pylist(), key=lambda row: row["document_id"])
    with open_bank(five) as bank:
        bank.compact()
    after = lancedb.connect(five).open_table("references-1").to_arrow().to_pylist()
    assert sorted(after, key=lambda row: row["document_id"]) == before
    assert len(fragments(five)) < 15


def test_a_reader_goes_on_while_fragments_are_merged(five):
    with open_bank(five, cache_bytes=0) as bank, open_bank(five, cache_bytes=0) as reader:
        view = reader.pin()
        bank.compact()
        ids = [f"{document.id}#0" for document in ONE]
        assert [reference.id for reference in view.references(ids)] == ids
        assert len(view.memories(ids)) == 40


def test_many_small_commits_are_merged_without_asking(five, monkeypatch):
    monkeypatch.setattr(merging, "_MANY_FRAGMENTS", 6)
    with open_bank(five) as bank:
        bank.write([Document("last", "last")])
        assert max(map(len, fragments(five))) == 5
        assert len(fragments(five)) <= 9
        assert contents(bank) == expected([*ONE, Document("last", "last")])


# ---- old versions --------------------------------------------------------------------------------------------------------


def files(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_pruning_leaves_what_lances_own_cleanup_leaves(tmp_path):
    """Of a table with one fragment Lance's `optimize` merges nothing, it only cleans up."""
    with open_bank(tmp_path / "bank") as bank:
        for round_ in range(3):
            bank.write([Document(d.id, f"{d.text} {round_}", d.source, d.metadata) for d in documents()])
            bank.delete(["doc1", f"doc{round_ + 2}"])
        bank.write([Document(d.id, f"{d.text} last", d.source, d.metadata) for d in documents()])
        bank.compact()
        ids = sorted(contents(bank))
    folder = tmp_path / "bank" / "references-1.lance"
    (folder / "data" / "0101left.lance").write_bytes(b"of a writer that was killed")
    (folder / "_versions" / ".tmp_7.manifest_x").write_bytes(b"of a writer that was killed")
    shutil.copytree(tmp_path / "bank", tmp_path / "twin")
    table = lancedb.connect(tmp_path / "twin").open_table("references-1")
    assert table.stats()["fragment_stats"]["num_fragments"] == 1
    table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    lance_versions.prune(folder, timedelta(0), range(0), 1)
    ours, theirs = files(folder), files(tmp_path / "twin" / "references-1.lance")
    hidden = {name for name in ours | theirs if "/.tmp" in name}
    assert ours - hidden == theirs - hidden
    assert not {name for name in ours if "/.tmp" in name}
    with open_bank(tmp_path / "bank") as bank:
        assert sorted(contents(bank)) == ids
        assert bank.verify().ok


def versions(folder):
    return len([name for name in os.listdir(folder / "_versions") if name.endswith(".manifest")])


def test_versions_stay_for_the_time_of_grace_but_those_passed_through(five):
    folder = five / "references-1.lance"
    assert versions(folder) == 41
    names = sorted(os.listdir(folder / "_versions"), reverse=True)  # the oldest first
    manifests = [folder / "_versions" / name for name in names if name.endswith(".manifest")]
    for path in manifests[:10]:
        os.utime(path, (time.time() - 3600,) * 2)
    lance_versions.prune(folder, timedelta(minutes=10), range(0), 40)
    assert [path.exists() for path in manifests] == [False] * 10 + [True] * 31
    lance_versions.prune(folder, timedelta(minutes=10), range(15, 41), 40)
    assert [path.exists() for path in manifests] == [False] * 10 + [True] * 4 + [False] * 26 + [True]
    with open_bank(five) as bank:
        assert contents(bank) == expected(ONE)


@pytest.mark.parametrize("odd", ["_refs/tags/one.json", "tree/branch/x", "_versions/d12.manifest", "data"])
def test_where_something_is_not_as_expected_nothing_is_removed(five, odd):
    folder = five / "references-1.lance"
    if odd == "data":
        next((folder / odd).iterdir()).unlink()
    else:
        (folder / odd).parent.mkdir(parents=True, exist_ok=True)
        (folder / odd).write_text("{}")
    before = files(folder)
    lance_versions.prune(folder, timedelta(0), range(0), 40)
    assert files(folder) == before


def test_an_interrupted_removal_of_old_versions_goes_on(five, monkeypatch):
    folder, calls = five / "references-1.lance", []
    with open_bank(five) as bank:
        bank.compact()

    def failing(path):
        calls.append(path)
        if len(calls) == 7:
            raise KeyboardInterrupt
        path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(lance_versions, "remove", failing)
        with pytest.raises(KeyboardInterrupt):
            lance_versions.prune(folder, timedelta(0), range(0), 8)
    for _ in range(2):
        with open_bank(five) as bank:
            assert contents(bank) == expected(ONE)
            assert bank.verify().ok
        lance_versions.prune(folder, timedelta(0), range(0), 8)
    assert (versions(folder), len(os.listdir(folder / "data"))) == (1, 8)


def test_compaction_of_many_portions_gives_space_back_at_once(five):
    """Versions older than the grace, and those it passes through, go with the files that only they need."""
    folder = five / "references-1.lance"
    for path in (folder / "_versions").iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    with open_bank(five, HashingWriter()) as bank:
        bank.compact()
        assert (versions(folder), len(os.listdir(folder / "data"))) == (1, 8)
        assert contents(bank) == expected(ONE)
