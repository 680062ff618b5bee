"""`Corpus`: the texts of the records, cut into references, and what a bank finds among them.

It knows nothing of groups. What is found for a row and overlaps it too much is left out here, so that no row is trained with a
reference that gives it away.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from memory3.llm import Memory3
from memory3.overlap import exceeds
from memory3.training.records import Records
from memory3.training.settings import Settings
from memory3.types import Document, Reference

if TYPE_CHECKING:
    from memory3.bank import Bank

__all__ = ["LEAK", "NEAR", "SHORTEST", "Corpus", "documents_of"]

#: A text is not trained with a reference that overlaps it more (arXiv 2407.01178, section 5).
LEAK = 0.9
#: Texts nearest to a text that are looked at for its references and its companions.
NEAR = 12
#: A text shorter than this many tokens says too little.
SHORTEST = 16
#: Ids of the records' own documents begin with it; a bank's do not.
_OWN = "training-data/"


def documents_of(records: Records) -> Iterator[Document]:
    """Every distinct passage and text, under the id by which `Corpus` knows it. A text with questions is a text."""
    texts = dict.fromkeys(records.texts)
    passages = dict.fromkeys(question.passage for question in records.questions if question.passage not in texts)
    yield from (Document(f"{_OWN}passage{n}", text) for n, text in enumerate(passages))
    yield from (Document(f"{_OWN}text{n}", text) for n, text in enumerate(texts))


class Corpus:
    """The records' own documents with their references, and a bank to retrieve from.

    Attributes:
        k: references read at once.
        ids: the id of each document, by its text.
        references: of each document, by its id, in order.
        texts: documents of texts that are long enough.
    """

    def __init__(self, m3: Memory3, bank: Bank | None, records: Records, settings: Settings) -> None:
        """Cut the records' documents into references.

        Args:
            m3: cuts them.
            bank: of `documents_of` the records, or another, which is only asked for texts; None: nothing is retrieved.
            records: what there is to train on.
            settings: of the run.
        """
        self._m3, self._bank, self._length = m3, bank, settings.text_length
        self.k = settings.memory.references_per_chunk
        documents = list(documents_of(records))
        self.ids = {document.text: document.id for document in documents}
        self.references: dict[str, list[Reference]] = {document.id: list(m3.split(document)) for document in documents}
        self.texts = [d for d in documents if d.id.startswith(f"{_OWN}text") and len(self.tokens(d.id)) >= SHORTEST]
        self._fetched: dict[str, Reference] = {}

    def search(self, texts: Sequence[str], k: int) -> list[list[str]]:
        """Ids of the ``k`` references nearest to each text, most similar first.

        Args:
            texts: queries.
            k: references of each at most.
        """
        assert self._bank is not None, "mixtures that retrieve are given a bank"
        found = [[hit.reference_id for hit in hits] for hits in self._bank.search(list(texts), k)]
        foreign = dict.fromkeys(name for names in found for name in names if not name.startswith(_OWN))
        missing = [name for name in foreign if name not in self._fetched]
        self._fetched |= dict(zip(missing, self._bank.references(missing), strict=True)) if missing else {}
        return found

    def reference(self, name: str) -> Reference:
        """One of the records' own, or one that a search has found."""
        if not name.startswith(_OWN):
            return self._fetched[name]
        document, _, ordinal = name.rpartition("#")
        return self.references[document][int(ordinal)]

    def not_leaking(self, found: Sequence[str], rows: Sequence[Sequence[int]], but: Sequence[str] = ()) -> list[Reference]:
        """The first k references of those found that no row gives away.

        Args:
            found: ids.
            rows: token ids; a reference that overlaps one of them by more than `LEAK` is left out.
            but: ids of documents whose references are left out.
        """
        return [
            reference
            for reference in map(self.reference, found)
            if reference.document_id not in but and not any(exceeds(row, reference.token_ids, LEAK) for row in rows)
        ][: self.k]

    def tokens(self, document: str) -> list[int]:
        """The first tokens of a document, ``text_length`` at most."""
        every = itertools.chain.from_iterable(map(self.running, self.references[document]))
        return list(itertools.islice(every, self._length))

    def running(self, reference: Reference) -> Sequence[int]:
        """The tokens of a reference in its document, where a table's header stands once."""
        return self._m3.prompts.ids(reference.text) if reference.header else reference.token_ids
