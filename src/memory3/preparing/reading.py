"""Reads the files of a task, as `memory3.text.readers` read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from memory3.errors import InputError, ReadError, setting
from memory3.files import write_atomically
from memory3.preparing.documents import as_step
from memory3.preparing.settings import PrepareSettings
from memory3.preparing.shards import FoundPath, load
from memory3.text.readers.encoding import text_codec
from memory3.text.readers.read import found_documents
from memory3.text.readers.source import ReadOptions, SourceFile
from memory3.types import Document

__all__ = ["Marks", "Reading", "find_same"]


class Reading(PipelineStep):
    """The documents of a task's files. What is passed over is written beside, with a reason."""

    type, name = "prepare", "reading"

    def __init__(self, shards: Path, notes: Path, settings: PrepareSettings, tell: Callable[[int], None]) -> None:
        """
        Args:
            shards: folder that says which files (`memory3.preparing.shards`).
            notes: folder for what is passed over.
            settings: of the readers, and whether pages are kept for the extraction.
            tell: called with the number of documents that were read since.
        """
        super().__init__()
        notes.mkdir(parents=True, exist_ok=True)
        self._shards, self._notes, self._settings, self._tell = shards, notes, settings, tell

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents of a task."""
        asked, notes = self._settings, list[tuple[str, str]]()
        named = None if asked.encoding is None else text_codec(asked.encoding)

        def report(place: str, reason: str) -> None:
            notes.append((place, reason))

        options = ReadOptions(asked.text_field, asked.id_field, asked.max_bytes, report, named)
        for found in load(self._shards, rank):
            for document, markup in _of_file(found, options):
                self.stat_update("total")
                self._tell(1)
                yield as_step(document, markup if asked.has("extraction") else "")
        write_atomically(self._notes / f"{rank:05d}.json", json.dumps(notes))


def _of_file(found: FoundPath, options: ReadOptions) -> Iterator[tuple[Document, str]]:
    file = SourceFile(Path(found.path), found.id, options)
    try:
        for document, text in found_documents(file):
            yield document, text.markup
    except ReadError as error:
        if found.strict:
            raise
        file.report(error.reason, unread=True)


class Marks(PipelineStep):
    """Notes hashes of each document's id and content, uint64 ``[documents, 2]``, so that ids can be compared across tasks."""

    type, name = "prepare", "marks"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents as they come."""
        marks: list[int] = []
        for document in data:
            content = document.text + repr(sorted(document.metadata["fields"].items()))
            marks += (_hash(document.id), _hash(content))
            yield document
        np.save(self._folder / f"{rank:05d}.npy", np.array(marks, np.uint64).reshape(-1, 2))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def find_same(marks: Path, tasks: int, name: Callable[[int, int], tuple[str, str]], out: Path) -> int:
    """Documents whose id was there before. Those of the same content are left out from here on.

    Holds 24 bytes a document. Two ids of one hash (64 bits) would be taken for one: at 1e8 documents, with odds of 1 to 3,700.

    Args:
        marks: folder of `Marks`.
        tasks: how many there are.
        name: gives the id and the source of a task's document, for the message.
        out: folder for the numbers of documents to leave out.

    Returns:
        how many are left out.

    Raises:
        InputError: two documents have one id and different contents.
    """
    each = [np.load(marks / f"{task:05d}.npy", allow_pickle=False) for task in range(tasks)]
    sizes = [len(one) for one in each]
    starts = np.cumsum([0, *sizes])
    everything = np.concatenate(each)
    order = np.argsort(everything[:, 0], kind="stable")  # of one id, the first document comes first
    found = everything[order]
    same = np.flatnonzero(found[1:, 0] == found[:-1, 0])
    differing = same[found[same + 1, 1] != found[same, 1]]
    if differing.size:
        first, second = (_place(starts, int(order[place])) for place in (differing[0], differing[0] + 1))
        (id_, source), (_, other) = name(*first), name(*second)
        raise InputError(
            f"{differing.size:,} documents have an id that another has, such as {id_!r}, from {source} and from {other}: "
            f"read the folder above both, prepare one of them into another folder, or, if they are records, name another "
            f"{setting('id_field')}, or '' to number them"
        )
    out.mkdir(parents=True, exist_ok=True)
    again: dict[int, list[int]] = {}
    for place in sorted(order[same + 1].tolist()):
        task, number = _place(starts, place)
        again.setdefault(task, []).append(number)
    for task, numbers in again.items():
        np.save(out / f"{task:05d}.npy", np.array(numbers, np.uint32))
    return len(same)


def _place(starts: np.ndarray, place: int) -> tuple[int, int]:
    task = int(np.searchsorted(starts, place, "right")) - 1
    return task, place - int(starts[task])
