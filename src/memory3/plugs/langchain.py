"""`BankRetriever`: a retriever of LangChain over a bank, for those who want its passages as text (plain RAG).

    retriever = BankRetriever(bank=Bank.open("bank", None, create=False), k=3)
    retriever.invoke("Who built the bridge?")

A bank needs no language model for this. Whoever wants the model to read memories asks the server as any other model of
LangChain (docs/plugs.md).
"""

from __future__ import annotations

from typing import Any

from memory3.errors import MissingDependency

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingDependency(str(error.name or "langchain_core"), "langchain", "a retriever of LangChain") from None

from pydantic import Field, model_validator

from memory3.plugs.passages import PASSAGES, find_passages, readable
from memory3.recall.retrieval import EVERYTHING, Retrieval

__all__ = ["BankRetriever"]


class BankRetriever(BaseRetriever):
    """Finds passages of a bank. ``ainvoke`` and ``abatch`` do so in threads.

    A document that comes back has the reference's id and text, and `memory3.plugs.passages.Passage.metadata`.

    Attributes:
        bank: a `Bank`, opened with or without a model. It sees what others write once it is refreshed.
        k: passages at most.
        gap: only passages whose cosine is within this of the best one's, 0 to 2; 2 leaves none out.
        where: only passages with this metadata, as `Bank.search` takes it.
    """

    bank: Any = Field(exclude=True, repr=False)
    k: int = PASSAGES
    gap: float = EVERYTHING
    where: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> BankRetriever:
        readable(self.bank)
        self._retrieval()
        return self

    def _retrieval(self) -> Retrieval:
        return Retrieval(self.k, self.gap, self.where)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        found = find_passages(self.bank, query, self._retrieval())
        return [Document(id=each.reference.id, page_content=each.reference.text, metadata=each.metadata) for each in found]
