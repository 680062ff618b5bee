"""Finding references: exact search, metadata filters, and Lance's index against its exact twin."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from bank_writer import HashingEmbedder, HashingWriter, documents, expected, open_bank

from memory3.bank import snapshot, where
from memory3.bank.retriever import search_exactly, search_table
from memory3.errors import InputError
from memory3.types import Document


@pytest.fixture
def everything_on_disk(monkeypatch):
    """As if the bank were too large to keep its embeddings in RAM."""
    monkeypatch.setattr(snapshot, "RESIDENT_BYTES", 0)


def brute_force(query, k, keep=lambda metadata: True):
    """(reference id, cosine) by the definition."""
    embedder = HashingEmbedder()
    references = [r for r, _ in expected(documents()).values() if keep(r.metadata)]
    scores = [float(embedder.encode([query])[0] @ embedder.encode([r.text])[0]) for r in references]
    ranked = sorted(zip(scores, (r.id for r in references), strict=True), reverse=True)[:k]
    return [(id_, pytest.approx(score, abs=1e-5)) for score, id_ in ranked]


FILTERS = [
    ({}, lambda m: True),
    ({"book": "a"}, lambda m: m["book"] == "a"),
    ({"book": ["a", "c"], "year": 2001}, lambda m: m["book"] in "ac" and m["year"] == 2001),
    ({"year": 2001.0, "new": False}, lambda m: m["year"] == 2001 and not m["new"]),
    ({"new": 1}, lambda m: False),
    ({"year": "2001"}, lambda m: False),
    ({"shelf": 1}, lambda m: False),
    ({"book": []}, lambda m: False),
]


@pytest.mark.parametrize(("condition", "keep"), FILTERS, ids=[str(c) for c, _ in FILTERS])
@pytest.mark.parametrize("resident", [True, False], ids=["ram", "lance"])
def test_search_and_count_by_definition(tmp_path, monkeypatch, condition, keep, resident):
    if not resident:
        monkeypatch.setattr(snapshot, "RESIDENT_BYTES", 0)
    with open_bank(tmp_path / "bank") as bank:
        bank.write(documents())
        for k in (1, 5, 10_000):
            queries = ["w3 w77 w12", "", "w5"]
            found = bank.search(queries, k, condition)
            assert [[(h.reference_id, h.score) for h in hits] for hits in found] == [brute_force(q, k, keep) for q in queries]
            assert all(h.document_id == h.reference_id.split("#")[0] for hits in found for h in hits)
        assert bank.count(condition) == sum(keep(r.metadata) for r, _ in expected(documents()).values())


def test_of_equal_scores_the_row_stored_first_is_found_however_many_are_asked_for(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        bank.write([Document(f"other{n}", f"w{n} w{n + 90}") for n in range(20)])
        bank.write([Document(f"same{n}", "w1 w2 w3") for n in range(40)])
        view = bank.pin()
        vectors = HashingEmbedder().encode(["w1 w2 w3", "w1 w5"])
        for k in range(1, 40):
            stored = [id_ for id_ in view.snapshot.resident.document_ids if id_.startswith("same")]
            for asked in (vectors[:1], vectors):
                assert [hit.document_id for hit in search_exactly(view.snapshot, asked, k)[0]] == stored[:k]


def test_a_query_finds_the_same_beside_others_as_alone(tmp_path):
    """To the last bit: where two references are as near, that decides which is read."""
    with open_bank(tmp_path / "bank") as bank:
        bank.write([Document(f"doc{n}", " ".join(f"w{n % m}" for m in (2, 3, 5, 7))) for n in range(90)])
        vectors = HashingEmbedder().encode([f"w{n} w{n % 3}" for n in range(37)])
        view = bank.pin()
        together = search_exactly(view.snapshot, vectors, 11)
        assert together == [search_exactly(view.snapshot, vectors[n : n + 1], 11)[0] for n in range(37)]


def test_rows_that_are_no_numbers_come_behind_all_numbers(tmp_path):
    """A stranger's bank may have them. They once stood ahead of the best rows, which were lost."""
    with open_bank(tmp_path / "bank") as bank:
        bank.write([Document(f"doc{n}", f"w{n}") for n in range(11)])
        view, vectors = bank.pin(), HashingEmbedder().encode(["w7"])
        right = [hit.document_id for hit in search_exactly(view.snapshot, vectors, 11)[0]]
        resident = view.snapshot.resident
        embeddings = resident.embeddings.copy()
        hurt = {right[3], right[8]}
        embeddings[[document in hurt for document in resident.document_ids]] = np.nan
        strange = SimpleNamespace(resident=copy.copy(resident))
        strange.resident.embeddings = embeddings
        left = [document for document in right if document not in hurt]
        for k in range(1, 10):
            assert [hit.document_id for hit in search_exactly(strange, vectors, k)[0]] == left[:k]
        assert {hit.document_id for hit in search_exactly(strange, vectors, 11)[0][9:]} == hurt


def test_nothing_asked_nothing_there(tmp_path):
    with open_bank(tmp_path / "bank") as bank:
        assert bank.search(["a", "b"], 5) == [[], []]
        assert bank.count() == bank.count({"a": 1}) == len(bank) == 0
        bank.write(documents(2))
        assert bank.search([], 5) == []
        assert bank.search(["a", "b"], 0) == bank.search(["a", "b"], -1) == [[], []]


HOSTILE = [
    "it's", '"', "\\", "\\'", "') OR (1=1) --", "a' OR '1'='1", "%", "_", "\x00", "\n\r\t", "\u2028", "🙂", "", " ", "'" * 7,
    '["book", "a"]', "book=a", "NULL", "null", "true", "1", "{}", "');DROP TABLE references;--", "\ud7ff\ue000",
]  # fmt: skip


@pytest.mark.parametrize("resident", [True, False], ids=["ram", "lance"])
def test_hostile_metadata_matches_itself_and_nothing_else(tmp_path, monkeypatch, resident):
    if not resident:
        monkeypatch.setattr(snapshot, "RESIDENT_BYTES", 0)
    rng = np.random.default_rng(0)
    noise = ["".join(map(chr, rng.integers(0, 256, rng.integers(1, 12)))) for _ in range(20)]
    values = [*HOSTILE, *noise]
    with open_bank(tmp_path / "bank") as bank:
        bank.write([Document(f"d{n}", "text", metadata={"key": v, v: "value"}) for n, v in enumerate(values)])
        for number, value in enumerate(values):
            for condition in ({"key": value}, {value: "value"}, {"key": [value, 17], value: "value"}):
                assert [hit.document_id for hit in bank.search(["text"], 99, condition)[0]] == [f"d{number}"]
                assert bank.count(condition) == 1
        assert bank.references(["d3#0"])[0].metadata == {"key": values[3], values[3]: "value"}


def test_tags_never_collide():
    entries = [(key, value) for key in HOSTILE for value in [*HOSTILE, 1, 2.5, True, False, -0.25, 10**30]]
    assert len({where.tag(key, value) for key, value in entries}) == len(entries)
    assert where.tag("a", 1) == where.tag("a", 1.0) != where.tag("a", True)
    assert json.loads(where.tag("ü\x00'", "x")) == ["ü\x00'", "x"]


@pytest.mark.parametrize("condition", [{"a": None}, {"a": {"b": 1}}, {"a": [[1]]}, {"a": float("inf")}, {1: "a"}])
def test_filters_that_make_no_sense(tmp_path, condition):
    with open_bank(tmp_path / "bank") as bank:
        bank.write(documents(2))
        with pytest.raises(InputError):
            bank.search(["w1"], 1, condition)
        with pytest.raises(InputError):
            bank.count(condition)


class ClusteredEmbedder:
    """Vectors in 60 loose clusters; the text is the number of one."""

    name, dimension = "clustered", 32

    def encode(self, texts):
        rng = np.random.default_rng(5)
        centres = rng.standard_normal((60, self.dimension))
        numbers = np.array([int(text) for text in texts])
        noise = np.stack([np.random.default_rng(number).standard_normal(self.dimension) for number in numbers])
        vectors = centres[numbers % 60] + 1.2 * noise
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_index_finds_what_exact_search_finds(tmp_path, everything_on_disk):
    docs = [Document(f"d{n}", str(n), metadata={"part": n % 4}) for n in range(4000)]
    with open_bank(tmp_path / "bank", HashingWriter(batch_size=256), embedder=ClusteredEmbedder()) as bank:
        assert bank.info().index == "exact"
        bank.write(docs, lazy=True)
        info = bank.info()
        assert (info.index, info.unindexed) == ("ivf", 0)
        now = bank._snapshot
        queries = ClusteredEmbedder().encode([str(n) for n in range(10_000, 10_060)])
        for condition in (None, {"part": 2}):
            exact = search_exactly(now, queries, 5, condition)
            indexed = search_table(now, queries, 5, condition)
            true = [{hit.reference_id for hit in hits} for hits in exact]
            found = [{hit.reference_id for hit in hits} for hits in indexed]
            assert all(len(hits) == 5 for hits in found)
            assert np.mean([len(a & b) / 5 for a, b in zip(true, found, strict=True)]) > 0.95
            assert [hits[0].score for hits in indexed[:9]] == pytest.approx([hits[0].score for hits in exact[:9]], abs=1e-5)

        bank.write([*docs, Document("late", "10000")], lazy=True)
        assert bank.info().unindexed == 1
        assert bank.search(["10000"], 1)[0][0].reference_id == "late#0"
        assert len(bank.search(["10000"], 4001)[0]) == 4001
        bank.write([])
        bank.delete("d7")
        assert bank.count({"part": 3}) == 999
        assert "d7#0" not in {hit.reference_id for hit in bank.search(["7"], 10)[0]}
        bank.compact()
        assert bank.search(["10000"], 1)[0][0].reference_id == "late#0"


@pytest.mark.real
def test_the_default_embedder(tmp_path):
    texts = ["The liver makes bile.", "Paris is the capital of France.", "Whales are mammals that live in the sea."]
    with open_bank(tmp_path / "bank", HashingWriter(reference_length=99), embedder=None) as bank:
        bank.write([Document(str(n), text) for n, text in enumerate(texts)])
        assert bank.manifest.embedder == "all-minilm-l6-v2"
        assert bank.manifest.dimension == bank.embedder.dimension == 384
        found = bank.search(["Which animals swim in the ocean?", "French cities", "digestion", ""], 1)
        assert [hits[0].document_id for hits in found[:3]] == ["2", "1", "0"]
        vectors = bank.embedder.encode(texts)
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    with open_bank(tmp_path / "bank", HashingWriter(reference_length=99), embedder=None) as bank:
        assert bank.search(["digestion"], 1)[0][0].score == pytest.approx(found[2][0].score, abs=1e-5)
