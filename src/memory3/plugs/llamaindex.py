"""`BankRetriever`: a retriever of LlamaIndex over a bank, for those who want its passages as text (plain RAG).

    retriever = BankRetriever(Bank.open("bank", None, create=False), k=3)
    retriever.retrieve("Who built the bridge?")

A bank needs no language model for this. Whoever wants the model to read memories asks the server as any other model of
LlamaIndex (docs/plugs.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memory3.errors import MissingDependency

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
except ImportError as error:
    raise MissingDependency(str(error.name or "llama_index"), "llamaindex", "a retriever of LlamaIndex") from None

from memory3.plugs.passages import PASSAGES, Passage, find_passages, readable
from memory3.recall.retrieval import EVERYTHING, Retrieval

__all__ = ["BankRetriever"]

#: What a language model or an embedder has no use for.
_NOT_TO_BE_READ = ["document_id", "reference_id", "start", "end", "score"]


class BankRetriever(BaseRetriever):
    """Finds passages of a bank. ``aretrieve`` does so in a thread.

    A node has the reference's id, text and offsets, its document as source, and
    `memory3.plugs.passages.Passage.metadata`, of which a model is shown the source and the document's own.
    """

    def __init__(
        self,
        bank: Any,
        *,
        k: int = PASSAGES,
        gap: float = EVERYTHING,
        where: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            bank: a `Bank`, opened with or without a model. It sees what others write once it is refreshed.
            k: passages at most.
            gap: only passages whose cosine is within this of the best one's, 0 to 2; 2 leaves none out.
            where: only passages with this metadata, as `Bank.search` takes it.
            options: of LlamaIndex's own retriever.

        Raises:
            ConfigError: a number below 0, a gap beyond its bounds, or no bank.
        """
        super().__init__(**options)
        self._bank = readable(bank)
        self._retrieval = Retrieval(k, gap, where)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(found) for found in find_passages(self._bank, query_bundle.query_str, self._retrieval)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _node(found: Passage) -> NodeWithScore:
    reference = found.reference
    node = TextNode(
        id_=reference.id,
        text=reference.text,
        metadata=found.metadata,
        start_char_idx=reference.start,
        end_char_idx=reference.end,
        excluded_llm_metadata_keys=_NOT_TO_BE_READ,
        excluded_embed_metadata_keys=_NOT_TO_BE_READ,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=reference.document_id)},
    )
    return NodeWithScore(node=node, score=found.score)
