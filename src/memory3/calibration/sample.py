"""References drawn uniformly from documents, and their memories."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pydoc_data.topics import topics

from memory3.bank import MemoryWriter
from memory3.types import Document, Memory, Reference

__all__ = ["MOST_SPLIT", "default_documents", "memories_of", "sample"]

#: References that are looked at at most: cutting a large collection up only to draw from it would take longer than the fit.
MOST_SPLIT = 20_000


def default_documents() -> list[Document]:
    """A text that every Python install carries: its language reference, about 1,100 references."""
    return [Document(name, text, f"pydoc_data.topics/{name}") for name, text in sorted(topics.items())]


def sample(m3: MemoryWriter, documents: Iterable[Document], number: int, *, seed: int = 0) -> list[Reference]:
    """``number`` references of the documents, each as likely as any other; all, if there are fewer.

    Args:
        m3: splits documents into references.
        documents: read once, and no further than to `MOST_SPLIT` references.
        number: how many are wanted.
        seed: of the choice.
    """
    rng = random.Random(seed)
    drawn: list[Reference] = []
    references = (reference for document in documents for reference in m3.split(document))
    for seen, reference in enumerate(islice(references, MOST_SPLIT)):
        if len(drawn) < number:
            drawn.append(reference)
        elif (place := rng.randrange(seen + 1)) < number:
            drawn[place] = reference
    return drawn


def memories_of(
    m3: MemoryWriter, references: list[Reference], progress: Callable[[int, int], None] | None = None
) -> Iterator[Memory]:
    """Their memories, in no promised order: those of like length are encoded together. ``progress`` is told how many are done,
    of how many.

    Args:
        m3: encodes them.
        references: in any order.
        progress: told how many are done, of how many.
    """
    references = sorted(references, key=lambda reference: len(reference.token_ids))
    for start in range(0, len(references), m3.batch_size):
        yield from m3.encode(references[start : start + m3.batch_size])
        if progress is not None:
            progress(min(start + m3.batch_size, len(references)), len(references))
