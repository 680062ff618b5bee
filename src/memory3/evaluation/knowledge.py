"""The knowledge bases that suites are answered from, as documents of a data folder, and the bank each becomes.

Banks are written lazily: texts and embeddings at once, a memory when it is first read, so that a run encodes what it recalls
and nothing else, each reference once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.errors import ConfigError
from memory3.evaluation.task import data_records
from memory3.llm import Memory3
from memory3.types import Document

__all__ = ["KNOWLEDGE", "knowledge_bank"]

Progress = Callable[[str, int, float], None]


def _plain(file: str, *, titled: bool = False, **wanted: str) -> Callable[[Path], Iterator[Document]]:
    """Records with ``id`` and ``text``; ``titled``: their title is the first line of what is read and searched."""

    def documents(data: Path) -> Iterator[Document]:
        seen: dict[str, set[str]] = {}
        for record in data_records(data / Path(file).parent, Path(file).name)[0]:
            text = record["text"]
            if not text.strip() or any(record.get(name) != value for name, value in wanted.items()):
                continue
            # Some files have an id twice: the same text again is left out, another text gets a number behind.
            name, texts = str(record["id"]), seen.setdefault(str(record["id"]), set())
            if text not in texts:
                texts.add(text)
                name = name if len(texts) == 1 else f"{name}-{len(texts)}"
                title = str(record.get("title", ""))
                yield Document(name, f"{title}\n{text}" if titled and title else text, source=title or file)

    return documents


def _abstracts(data: Path) -> Iterator[Document]:
    """PubMedQA's abstracts, section by section. Not their conclusions: those are the long answers."""
    for record in data_records(data / "pro", "pubmedqa")[0]:
        for number, text in enumerate(record["contexts"]):
            yield Document(f"{record['id']}-{number}", text, source=f"PubMed {record['id']}")


def _halueval(data: Path) -> Iterator[Document]:
    """The Wikipedia passages that HaluEval's questions were made from."""
    seen = set()
    for number, record in enumerate(data_records(data / "bench", "halueval_qa")[0]):
        if record["knowledge"].strip() and record["knowledge"] not in seen:
            seen.add(record["knowledge"])
            yield Document(f"halueval-{number}", record["knowledge"], source="HaluEval QA")


#: By name: from a data folder to documents.
KNOWLEDGE: dict[str, Callable[[Path], Iterator[Document]]] = {
    "wiki_qa": _plain("wiki_qa/kb"),
    "anatomy": _plain("text/openstax", book="anatomy-physiology"),
    # A statute's text does not say of which state it is.
    "housing": _plain("pro/housing_kb", titled=True),
    "pubmed": _abstracts,
    "halueval": _halueval,
    "2wiki": _plain("text/2wiki"),
}


def knowledge_bank(m3: Memory3, name: str, data: Path, folder: Path, progress: Progress | None = None) -> Bank:
    """The bank of a knowledge base in ``folder``, made or completed where it is not there.

    Args:
        m3: encodes what is read.
        name: of the knowledge base.
        data: the data folder.
        folder: where banks are kept.
        progress: told what is done.

    Raises:
        ConfigError: no knowledge base of this name.
        FingerprintMismatch: the folder has that bank for another model or other settings.
    """
    if name not in KNOWLEDGE:
        raise ConfigError(f"knowledge base {name!r} is unknown: use one of {', '.join(KNOWLEDGE)}")
    folder.mkdir(parents=True, exist_ok=True)
    bank = Bank.open(folder / name, m3)
    documents = list(KNOWLEDGE[name](data))
    started = time.perf_counter()

    def told(now: Any) -> None:
        if progress is not None:
            progress(f"knowledge base {name}", now.documents, now.documents / len(documents))

    bank.write(documents, prune=True, replace=True, lazy=True, progress=told)
    if progress is not None:
        progress(f"knowledge base {name}: {len(bank)} references, {time.perf_counter() - started:.0f} s", len(documents), 1.0)
    return bank
