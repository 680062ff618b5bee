"""`Finder`: the thread that finds what requests read, beside vLLM's steps.

Whatever waits when it looks is done in one go: one embedding, one search for those that search alike, one read, one
decoding to see whether their memories can be decoded. Requests that decode come first, then those that come new. What fails
together is tried anew one by one, so that a request fails by its own memories alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence

import torch

from memory3.errors import EngineClosed, RecallError
from memory3.recall.retrieval import one_version
from memory3.serving.rounds import Rounds, together
from memory3.vllm.follower import Follower
from memory3.vllm.reader import Found, Reader
from memory3.vllm.shelf import Shelf
from memory3.vllm.step import Name, Packed

__all__ = ["Finder"]


class Finder:
    """Finds. Methods return at once; what they are given has its `Reader.finding` until it is done.

    Attributes:
        reads_texts: whether the texts of references are read with their memories, for citations.
        told: is told how long a go took, in seconds, and of how many requests; None: nobody is.
    """

    def __init__(self, shelf: Shelf) -> None:
        """
        Args:
            shelf: of the banks.
        """
        self.reads_texts = False
        self.told: Callable[[float, int], None] | None = None
        self._shelf = shelf
        self._rounds: Rounds[Reader] = Rounds("memory3-find", self._renew, self._begin)

    def begin(self, reader: Reader) -> None:
        """Find what a request's prompt reads."""
        reader.await_found()
        self._rounds.put(1, [reader])

    def renew(self, reader: Reader) -> None:
        """Find what a request reads next: what its follower looks up now, or else with its next token."""
        reader.await_found()
        self._rounds.put(0, [reader])

    def close(self) -> None:
        """End after what is being done now. What waits is not found any more."""
        for reader in self._rounds.close():
            reader.answer(EngineClosed("the engine was shut down before this was answered"))

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _begin(self, readers: Sequence[Reader]) -> None:
        began = time.perf_counter()
        opened: list[Reader] = []
        for reader in readers:
            try:
                if self._open(reader):
                    opened.append(reader)
                else:
                    reader.answer()
            except Exception as error:
                reader.answer(error)
        self._find(opened, began)

    def _renew(self, readers: Sequence[Reader]) -> None:
        self._find(readers, time.perf_counter())

    def _open(self, reader: Reader) -> bool:
        """Open what a request asks for. Returns whether something is to be found."""
        asked, request = reader.wanted, reader.request
        assert asked is not None
        source = one_version(self._shelf.bank(asked.bank))
        reader.source, reader.form = source, self._shelf.decoder.form_of(source)
        if asked.retrieval.finds_nothing(source):
            return False
        if request.prompt_token_ids is None:
            raise RecallError("a prompt of embeddings has no text by which memories could be found: give tokens or text")
        card, tokenizer = self._shelf.card, self._shelf.tokenizer
        text_of = lambda ids: str(tokenizer.decode(ids))  # noqa: E731
        reader.follower = Follower(card.frame, card.config, asked.retrieval, request.prompt_token_ids, text_of)
        return reader.follower.memory.is_waiting

    def _find(self, readers: Sequence[Reader], began: float) -> None:
        done: list[Reader] = []

        def find(alike: Sequence[Reader]) -> None:
            with torch.inference_mode():
                self._search(alike)
            done.extend(alike)

        together(readers, _alike, find, Reader.answer)
        if done and self.told is not None:
            self.told(time.perf_counter() - began, len(done))
        for reader in done:
            reader.answer()

    def _search(self, readers: Sequence[Reader]) -> None:
        """Find for requests that search alike in one version of a bank. All is well with what they are given."""
        source, asked = readers[0].source, readers[0].wanted
        assert asked is not None
        how = asked.retrieval
        lookups = [_lookups(reader) for reader in readers]
        queries = [query for mine in lookups for query in mine]
        hits = iter(source.search(queries, how.k, where=how.where) if queries else ())
        each = [[next(hits) for _ in mine] for mine in lookups]
        names = [_follower(reader).memory.would_read(mine) for reader, mine in zip(readers, each, strict=True)]
        pairs = list(zip(readers, names, strict=True))
        new = list(dict.fromkeys(name for reader, mine in pairs for name in mine if name not in reader))
        packed = self._packed(readers[0], new)
        references = dict(zip(new, source.references(new), strict=True)) if new and self.reads_texts else {}
        for (reader, mine), texts, found in zip(pairs, lookups, each, strict=True):
            of_mine = [reader.packed.get(name) or packed[name] for name in reader.names(mine)]
            reader.found = Found(texts, found, of_mine, references)

    def _packed(self, reader: Reader, references: Sequence[str]) -> dict[Name, Packed]:
        """Memories that were read and can be decoded."""
        assert reader.form is not None
        records = reader.source.records(references) if references else ()
        packed = [Packed(name, one, reader.form.key) for name, one in zip(reader.names(references), records, strict=True)]
        self._shelf.decoder.decode(packed)
        return {one.name: one for one in packed}


def _follower(reader: Reader) -> Follower:
    assert reader.follower is not None
    return reader.follower


def _lookups(reader: Reader) -> list[str]:
    follower = _follower(reader)
    if follower.memory.is_waiting:
        return follower.lookups
    return [follower.next_lookup] if follower.next_lookup else []


def _alike(reader: Reader) -> Hashable:
    assert reader.wanted is not None
    how = reader.wanted.retrieval
    return reader.bank, reader.source.version, how.k, repr(how.where)
