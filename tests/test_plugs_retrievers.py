"""Retrievers of LangChain and LlamaIndex, by those libraries themselves: what they find is what the bank finds."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from bank_writer import HashingEmbedder, HashingWriter, documents, open_bank
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeRelationship

from memory3 import Bank, Document
from memory3.errors import BankChanged, ConfigError
from memory3.plugs import langchain, llamaindex
from memory3.plugs.passages import find_passages
from memory3.recall.retrieval import Retrieval

QUERY = "which words are near"


@pytest.fixture(name="path")
def written(tmp_path):
    with open_bank(tmp_path / "bank", HashingWriter()) as bank:
        bank.write(
            [*documents(), Document("near", "which words are near these are", "near.md", {"year": 2020, "score": "own"})]
        )
    return tmp_path / "bank"


@pytest.fixture(name="bank")
def opened(path):
    """Without a model, as a program has it that only searches."""
    with Bank.open(path, None, create=False, embedder=HashingEmbedder()) as bank:
        yield bank


def found(bank, k=5, where=None):
    """Id, text and score of what the bank finds."""
    (hits,) = bank.search([QUERY], k, where)
    texts = bank.references([hit.reference_id for hit in hits])
    return [(hit.reference_id, text.text, hit.score) for hit, text in zip(hits, texts, strict=True)]


# ---- LangChain -----------------------------------------------------------------------------------------------------------


def of_langchain(documents):
    return [(each.id, each.page_content, each.metadata["score"]) for each in documents]


def test_langchain_finds_what_the_bank_finds(bank):
    assert of_langchain(langchain.BankRetriever(bank=bank).invoke(QUERY)) == found(bank)
    assert of_langchain(langchain.BankRetriever(bank=bank, k=3).invoke(QUERY)) == found(bank, 3)
    assert len(found(bank, 3)) == 3


def test_langchain_documents_say_where_they_come_from(bank):
    (first,) = langchain.BankRetriever(bank=bank, k=1).invoke(QUERY)
    (reference,) = bank.references([first.id])
    score = first.metadata.pop("score")
    assert first.metadata == {
        "year": 2020,
        "source": "near.md",
        "document_id": "near",
        "reference_id": "near#0",
        "start": reference.start,
        "end": reference.end,
    }
    assert isinstance(score, float), "the document's own metadata of that name stands below"
    assert json.dumps(first.metadata)


def test_langchain_in_threads_and_batches(bank):
    retriever = langchain.BankRetriever(bank=bank, k=2)

    async def both():
        one, many = await asyncio.gather(retriever.ainvoke(QUERY), retriever.abatch([QUERY] * 5))
        return [one, *many]

    assert [of_langchain(each) for each in asyncio.run(both())] == [found(bank, 2)] * 6
    assert [of_langchain(each) for each in retriever.batch([QUERY] * 3)] == [found(bank, 2)] * 3


def test_langchain_by_metadata_and_nearness(bank):
    assert of_langchain(langchain.BankRetriever(bank=bank, where={"year": 2020}).invoke(QUERY)) == found(
        bank, 5, {"year": 2020}
    )
    best = found(bank, 5)[0][2]
    near = langchain.BankRetriever(bank=bank, gap=0.3).invoke(QUERY)
    assert of_langchain(near) == [each for each in found(bank) if each[2] >= best - 0.3]
    assert 0 < len(near) < 5
    assert langchain.BankRetriever(bank=bank, k=0).invoke(QUERY) == []


def test_langchain_in_a_chain(bank):
    """Retriever, prompt, and what stands for a model: it says what it was given."""
    retriever = langchain.BankRetriever(bank=bank, k=2)
    joined = retriever | (lambda found: " / ".join(each.page_content for each in found))
    prompt = PromptTemplate.from_template("{context} ? {question}")
    chain = {"context": joined, "question": RunnablePassthrough()} | prompt | (lambda value: value.text) | StrOutputParser()
    texts = " / ".join(text for _, text, _ in found(bank, 2))
    assert chain.invoke(QUERY) == f"{texts} ? {QUERY}"


def test_langchain_settings_are_checked_and_can_be_shown(bank):
    with pytest.raises(ValueError, match="give a whole number from 0"):
        langchain.BankRetriever(bank=bank, k=-1)
    with pytest.raises(ValueError, match=r"Bank.open\('bank', None, create=False\)"):
        langchain.BankRetriever(bank="bank")
    retriever = langchain.BankRetriever(bank=bank, k=3)
    assert retriever.model_dump()["k"] == 3
    assert "bank=" not in repr(retriever)


# ---- LlamaIndex ----------------------------------------------------------------------------------------------------------


def of_llamaindex(nodes):
    return [(each.node.node_id, each.node.get_content(), each.score) for each in nodes]


def test_llamaindex_finds_what_the_bank_finds(bank):
    assert of_llamaindex(llamaindex.BankRetriever(bank).retrieve(QUERY)) == found(bank)
    assert of_llamaindex(llamaindex.BankRetriever(bank, k=3).retrieve(QUERY)) == found(bank, 3)
    by_year = llamaindex.BankRetriever(bank, where={"year": 2020})
    assert of_llamaindex(by_year.retrieve(QUERY)) == found(bank, 5, {"year": 2020})


def test_llamaindex_nodes_say_where_they_come_from(bank):
    (first,) = llamaindex.BankRetriever(bank, k=1).retrieve(QUERY)
    (reference,) = bank.references(["near#0"])
    assert (first.node.start_char_idx, first.node.end_char_idx) == (reference.start, reference.end)
    assert first.node.relationships[NodeRelationship.SOURCE].node_id == "near"
    assert first.node.metadata["source"] == "near.md"
    shown = first.node.get_content(MetadataMode.LLM)
    assert "source: near.md" in shown
    assert "year: 2020" in shown
    assert "reference_id" not in shown


def test_llamaindex_in_threads(bank):
    retriever = llamaindex.BankRetriever(bank, k=2)

    async def many():
        return await asyncio.gather(*(retriever.aretrieve(QUERY) for _ in range(6)))

    assert [of_llamaindex(each) for each in asyncio.run(many())] == [found(bank, 2)] * 6


def test_llamaindex_in_a_query_engine(bank):
    """Its own engine and synthesizer, with its own stand-in for a model, which says the prompt it was given."""
    engine = RetrieverQueryEngine.from_args(llamaindex.BankRetriever(bank, k=2), llm=MockLLM())
    answer = engine.query(QUERY)
    assert of_llamaindex(answer.source_nodes) == found(bank, 2)
    assert all(text.strip() in str(answer) for _, text, _ in found(bank, 2))


def test_llamaindex_settings_are_checked(bank):
    with pytest.raises(ConfigError, match="difference of cosines"):
        llamaindex.BankRetriever(bank, gap=3)
    with pytest.raises(ConfigError, match=r"Bank.open\('bank', None, create=False\)"):
        llamaindex.BankRetriever("bank")


# ---- both ----------------------------------------------------------------------------------------------------------------


def test_what_others_wrote_is_found_once_the_bank_is_refreshed(path, bank):
    retriever, asked = langchain.BankRetriever(bank=bank, k=1), "a heron stands there"
    with open_bank(path, HashingWriter()) as writer:
        writer.write([Document("new", asked, "new.md")])
    assert retriever.invoke(asked)[0].metadata["document_id"] != "new"
    bank.refresh()
    assert retriever.invoke(asked)[0].metadata["document_id"] == "new"


def test_a_purge_by_another_between_search_and_read_is_survived(path, bank):
    """The version that was searched is gone when its texts are read: all is done once more, on the newest."""

    class Purged:
        """The bank, of which another purges a document behind the first search."""

        def __init__(self, view):
            self._view = view

        def search(self, *arguments):
            hits = self._view.search(*arguments)
            with open_bank(path, HashingWriter()) as writer:
                assert writer.delete("near", purge=True) == 1
            return hits

        def references(self, ids):
            return self._view.references(ids)

    class Pins:
        pinned = 0

        def pin(self):
            self.pinned += 1
            return Purged(bank.pin()) if self.pinned == 1 else bank.pin()

    source = Pins()
    view = Purged(bank.pin())
    ids = [hit.reference_id for hit in view.search([QUERY], 5)[0]]
    with pytest.raises(BankChanged):
        view.references(ids)
    with open_bank(path, HashingWriter()) as writer:
        writer.write([Document("near", "which words are near these are", "near.md")])
    bank.refresh()
    ids = {each.reference.document_id for each in find_passages(source, QUERY, Retrieval(5))}
    assert source.pinned == 2
    assert ids
    assert "near" not in ids


@pytest.mark.parametrize(
    ("module", "hidden", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llamaindex", "llama_index", "llamaindex"),
        ("mcp", "mcp", "mcp"),
    ],
)
def test_a_missing_library_names_the_extra(module, hidden, extra):
    code = f"""
import sys
sys.modules[{hidden!r}] = None
from memory3.errors import MissingDependency
try:
    import memory3.plugs.{module}
except MissingDependency as error:
    print(error.extra, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"{extra} "), done.stderr
    assert f"pip install 'memory3[{extra}]'" in done.stdout
