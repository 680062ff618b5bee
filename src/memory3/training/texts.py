"""`TextGroups`: texts that are continued, said again, or cut into long sequences."""

from __future__ import annotations

import random
from collections.abc import Collection

from memory3.llm import Memory3
from memory3.overlap import exceeds
from memory3.training.bags import Bag
from memory3.training.corpus import LEAK, NEAR, SHORTEST, Corpus
from memory3.training.groups import Group, TrainingRow, by_length, text_row
from memory3.training.settings import Settings

__all__ = ["TextGroups"]

#: By so many first tokens a reference is called, to be recited.
_CUE = 8


class TextGroups:
    """Samples texts, references and sequences.

    Attributes:
        recitable: references that are long enough, each text once.
        starts: where in the texts, laid end to end, each sequence begins.
        bags: numbers by ``"text"``, ``"reference"`` and ``"sequence"``.
    """

    def __init__(self, m3: Memory3, corpus: Corpus, settings: Settings, rng: random.Random) -> None:
        """Lay the texts end to end.

        Args:
            m3: whose end of text parts them.
            corpus: that holds them.
            settings: of the run.
            rng: decides their order.
        """
        self._m3, self._corpus, self._settings = m3, corpus, settings
        long = [r for some in corpus.references.values() for r in some if len(r.token_ids) >= SHORTEST]
        self.recitable = list({r.token_ids: r for r in long}.values())  # the same words may stand in two documents
        number_of = {r.token_ids: n for n, r in enumerate(self.recitable)}
        self._place = {r.id: number_of[r.token_ids] for r in long}
        end = m3.tokenizer.eos_token_id
        self._stream: list[int] = []
        for document in corpus.texts:
            references = corpus.references[document.id]
            self._stream += [token for reference in references for token in corpus.running(reference)]
            self._stream += [end] if references and end is not None else []
        # The last sequence is shorter than the others, and left out where it is shorter than a chunk.
        starts = range(0, len(self._stream), settings.sequence_length)
        self.starts = [start for start in starts if len(self._stream) - start >= settings.memory.chunk_length]
        sizes = {"text": len(corpus.texts), "sequence": len(self.starts), "reference": len(self.recitable)}
        self.bags = {name: Bag(name, size, rng) for name, size in sizes.items()}

    def plain(self) -> Group:
        """Texts alone."""
        texts = [self._corpus.texts[self.bags["text"].take()] for _ in range(self._settings.texts)]
        return Group("plain", (), tuple(text_row(self._corpus.tokens(text.id)) for text in texts))

    def continued(self) -> Group:
        """A text and its nearest companions, read with memories of what is nearest after them and overlaps none of them."""
        corpus, bag = self._corpus, self.bags["text"]
        first = corpus.texts[bag.take()]
        found = corpus.search([first.text], NEAR + corpus.k)[0]
        near = dict.fromkeys(name.rpartition("#")[0] for name in found)
        number = {document.id: n for n, document in enumerate(corpus.texts)}
        others = [name for name in near if name != first.id and name in number and number[name] not in bag.gone]
        own = [first.id, *others][: self._settings.texts]
        if len(near) <= corpus.k + len(own):  # few documents: references come first
            own = own[:1]
        bag.used.update(number[name] for name in own)
        tokens = [corpus.tokens(name) for name in own]
        references = corpus.not_leaking(found, tokens, own)
        return Group("continue", tuple((r.id, r.token_ids) for r in references), by_length(map(text_row, tokens)))

    def recited(self) -> Group:
        """A reference, and those nearest to it, said again from their memories: what a memory does not hold cannot be said."""
        corpus, bag = self._corpus, self.bags["reference"]
        first = self.recitable[bag.take()]
        found = [name for name in corpus.search([first.read_text], corpus.k)[0] if name != first.id]
        names = [first.id, *found][: corpus.k]
        others = dict.fromkeys(self._place[name] for name in names[1:] if name in self._place)
        free = (n for n in others if n not in bag.gone and n not in bag.used)
        own = [first, *(self.recitable[n] for n in free)][: self._settings.texts]
        bag.used.update(self._place[reference.id] for reference in own)
        rows = by_length(TrainingRow(r.token_ids, len(r.token_ids) - _CUE) for r in own)
        references = [corpus.reference(name) for name in names]
        return Group("recite", tuple((r.id, r.token_ids) for r in references), rows)

    def packed(self) -> Group:
        """A sequence without memories."""
        return Group("packed", (), (text_row(self._sequence()),))

    def chunked(self) -> Group:
        """A sequence cut into chunks (arXiv 2407.01178, section 5).

        Chunk n reads the references that chunks n - k + 1 to n found, one each.
        """
        corpus, tokens, size = self._corpus, self._sequence(), self._settings.memory.chunk_length
        pieces = [tokens[at : at + size] for at in range(0, len(tokens), size)]
        texts = [self._m3.tokenizer.decode(piece, skip_special_tokens=True) for piece in pieces]
        found = iter(corpus.search([text for text in texts if text.strip()], NEAR))
        own: list[str | None] = []
        for text in texts:
            hits = next(found) if text.strip() else []
            own.append(next((name for name in hits if not exceeds(tokens, corpus.reference(name).token_ids, LEAK)), None))
        reads = []
        for n in range(len(texts)):
            newest = reversed(own[max(0, n - corpus.k + 1) : n + 1])
            reads.append(tuple(dict.fromkeys(name for name in newest if name is not None)))
        names = dict.fromkeys(name for ids in reads for name in ids)
        references = tuple((name, corpus.reference(name).token_ids) for name in names)
        row = TrainingRow(tuple(tokens), len(tokens) - 1, 0, tuple(reads) if references else ())
        return Group("chunks", references, (row,))

    def hold_back(self, asked: Collection[str]) -> None:
        """What has been sampled is not trained on. What is asked or continued there is not learned by heart either.

        Args:
            asked: ids of the references that are asked about or read in the groups held back.
        """
        for bag in self.bags.values():
            bag.hold_back()
        texts = [self._corpus.texts[n].id for n in self.bags["text"].gone]
        kept = {*asked, *(r.id for text in texts for r in self._corpus.references[text])}
        self.bags["reference"].gone |= {self._place[name] for name in kept & self._place.keys()}

    def _sequence(self) -> list[int]:
        start = self.starts[self.bags["sequence"].take()]
        return self._stream[start : start + self._settings.sequence_length]
