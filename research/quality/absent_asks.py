"""Questions asked of a bank that holds their reference and of one that does not, and what a search of either finds.

    wiki_qa, tatqa, friendsqa   each question twice: of its knowledge base (``in``), and with its document left out (``out``)
    clapnq                      a bank of all passages: answerable questions (``in``), the same with their passage left out
                                (``out``), and those whose passage is there and does not answer them (``un``)

References are split once, with the tokenizer of the default model, and embedded once: another model reads the same texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from memory3.evaluation.task import data_records
from memory3.types import Document, Reference

__all__ = ["FAR", "SETS", "Ask", "KnowledgeBase", "asks"]

#: The sets, and their folders below the data.
SETS = {"wiki_qa": "wiki_qa", "tatqa": "qa/tatqa", "friendsqa": "qa/friendsqa", "clapnq": "qa/clapnq"}
#: Hits that are kept of a search.
FAR = 20


@dataclass(frozen=True)
class Ask:
    """A question asked of a bank.

    Attributes:
        set, split: where it is from.
        id: of the question; asked twice, it has one.
        kind: ``in``, ``out`` or ``un``.
        question: its text.
        left_out: documents that the search does not see.
    """

    set: str
    split: str
    id: str
    kind: str
    question: str
    left_out: tuple[str, ...] = field(default=())

    @property
    def key(self) -> str:
        """Of this ask among all."""
        return f"{self.set}/{self.split}/{self.kind}/{self.id}"


def asks(data: Path, name: str, dev: int, test: int, seed: int = 0) -> list[Ask]:
    """Asks of a set, dev and test by turns, so that whoever stops has some of each.

    Args:
        data: folder of all sets.
        name: of the set.
        dev, test: questions of each half; of clapnq as many answerable as unanswerable.
        seed: of the order.
    """
    folder, found = data / SETS[name], dict[str, list[list[Ask]]]()
    for split, most in (("dev", dev), ("test", test)):
        each: list[list[Ask]] = []
        if name == "clapnq":
            kinds, known = [], {document.text: document.id for document in _documents(folder, name)}
            for file, kind in (("answerable", "in"), ("unanswerable", "un"), ("answerable", "out")):
                mine = [r for r in data_records(folder, file)[0] if _half(r["id"]) == split]
                random.Random(seed).shuffle(mine)
                out = [tuple(known[p["text"]] for p in r["passages"]) if kind == "out" else () for r in mine]
                some = zip(mine[:most], out, strict=False)
                kinds.append([Ask(name, split, r["id"], kind, r["question"], gone) for r, gone in some])
            each = [[a for a in few if a] for few in zip_longest(*kinds)]
        else:
            records = [r for r in data_records(folder, split)[0] if any(a.strip() for a in r["answers"]) and r["references"]]
            random.Random(seed).shuffle(records)
            for r in records[:most]:
                gold = tuple(r["references"])
                each.append(
                    [Ask(name, split, str(r["id"]), kind, r["question"], out) for kind, out in (("in", ()), ("out", gold))]
                )
        found[split] = each
    wide = max(1, round(len(found["test"]) / max(1, len(found["dev"]))))
    tests = [found["test"][n : n + wide] for n in range(0, len(found["test"]), wide)]
    turns: list[Ask] = []
    for n in range(max(len(found["dev"]), len(tests))):
        turns += found["dev"][n] if n < len(found["dev"]) else []
        turns += [ask for few in (tests[n] if n < len(tests) else []) for ask in few]
    return turns


def _half(id_: str) -> str:
    return ("dev", "test")[xxhash.xxh3_64_intdigest(id_.encode()) % 2]


class KnowledgeBase:
    """References of a set with their embeddings, in RAM.

    Attributes:
        references: all, in order.
        vectors: float32 ``[n, e]``, of length 1.
    """

    def __init__(self, data: Path, name: str, m3: Any, embedder: Any, cache: Path) -> None:
        folder = data / SETS[name]
        self.references: list[Reference] = [r for document in _documents(folder, name) for r in m3.split(document)]
        self.by_id = {r.id: n for n, r in enumerate(self.references)}
        path = cache / f"{name}.npy"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            np.save(path, embedder.encode([r.read_text for r in self.references]))
        self.vectors: np.ndarray = np.load(path)
        if len(self.vectors) != len(self.references):
            raise SystemExit(f"{path} has {len(self.vectors)} vectors of {len(self.references)} references: delete it")

    def search(self, some: Sequence[Ask], vectors: np.ndarray) -> list[list[tuple[str, float]]]:
        """Of each ask the `FAR` nearest references as (id, cosine), without those of documents that are left out."""
        documents = np.array([r.document_id for r in self.references])
        found = []
        for ask, vector in zip(some, vectors, strict=True):
            cosines = self.vectors @ vector
            order = np.argsort(-cosines, kind="stable")
            first = order[~np.isin(documents[order], ask.left_out)][:FAR]
            found.append([(self.references[n].id, float(cosines[n])) for n in first])
        return found


def _documents(folder: Path, name: str) -> Iterator[Document]:
    if name != "clapnq":
        for record in data_records(folder, "kb")[0]:
            yield Document(record["id"], record["text"])
        return
    seen = set()
    for file in ("answerable", "unanswerable"):
        for record in data_records(folder, file)[0]:
            for n, passage in enumerate(record["passages"]):
                if passage["text"] not in seen:
                    seen.add(passage["text"])
                    yield Document(f"{record['id']}.{n}", passage["text"])
