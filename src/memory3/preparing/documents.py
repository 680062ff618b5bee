"""Documents on their way: ours as datatrove's, and as lines of a file.

What a stranger's document says about itself stays one value in datatrove's metadata: datatrove puts metadata into names of
files.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from datatrove.data import Document as Step
from datatrove.data import DocumentsPipeline
from datatrove.io import OutputFileManager
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter

from memory3.text.readers.prepared import part_name
from memory3.types import Document

__all__ = ["FILTER_REASON", "NEAR", "LinesWriter", "StoredLines", "as_step", "lines_of"]

#: Keys of datatrove's metadata: why a filter removed a document, and the number of its group of near-duplicates.
FILTER_REASON, NEAR = "filter_reason", "minhash_cluster_id"
_OURS = "fields", "source", "origin"


def as_step(document: Document, markup: str = "") -> Step:
    """Our document as datatrove's.

    Args:
        document: as it was read.
        markup: the page that its text was taken from.
    """
    about: dict[str, Any] = {"fields": dict(document.metadata), "source": document.source, "origin": document.origin}
    return Step(document.text, document.id, metadata={**about, **({"markup": markup} if markup else {})})


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """What a `LinesWriter` wrote. Nothing, where there is no file. Raises OSError and ValueError."""
    if path.is_file():
        with gzip.open(path) as stream:
            for line in stream:
                yield json.loads(line)


class _SameBytes(OutputFileManager):
    """Files zipped without names and times, so that the same documents give the same bytes; on the disk when closed."""

    def get_file(self, filename: str) -> IO[bytes]:
        if filename not in self._output_files:
            path = Path(self.fs._join(filename))
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.open("wb")
            self._raw[filename] = raw
            self._output_files[filename] = gzip.GzipFile("", "wb", 6, cast(Any, raw), mtime=0)
        return cast("IO[bytes]", self._output_files[filename])

    def __init__(self, fs: Any) -> None:
        super().__init__(fs, "wb", None)
        self._raw: dict[str, IO[bytes]] = {}

    def close(self) -> None:
        super().close()
        for raw in self._raw.values():
            raw.flush()
            os.fsync(raw.fileno())
            raw.close()
        self._raw.clear()


class LinesWriter(DiskWriter):
    """A document a line, in ``part-*.jsonl.gz``. As a step it writes a file for every task, also for one without documents."""

    name = "lines"
    default_output_filename = "part-${rank}.jsonl.gz"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(str(folder), compression=None, mode="wb")
        self.output_mg = _SameBytes(self.output_folder)
        self.adapter = _line

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Writes the documents of a task and passes them on."""
        self.output_mg.get_file(part_name(rank))
        yield from super().run(data, rank, world_size)

    def _write(self, document: dict[str, Any], file_handler: IO[bytes], filename: str) -> None:
        file_handler.write(json.dumps(document).encode() + b"\n")


def _line(document: Step) -> dict[str, Any]:
    about = document.metadata
    line = {"id": document.id, "text": document.text, "source": about["source"], "origin": about["origin"]}
    line["metadata"] = about["fields"]
    return line | {key: about[key] for key in (FILTER_REASON, NEAR) if about.get(key, -1) != -1}


class StoredLines(PipelineStep):
    """Reads what a `LinesWriter` wrote as a step, without documents whose numbers another file names."""

    type, name = "prepare", "stored"

    def __init__(self, folder: Path, leave_out: Path | None = None) -> None:
        """
        Args:
            folder: that was written to.
            leave_out: folder with a file of numbers (``00003.npy``) for each task that must leave some out.
        """
        super().__init__()
        self._folder, self._leave_out = folder, leave_out

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents of a task."""
        path = self._folder / part_name(rank)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        numbers = self._leave_out / f"{rank:05d}.npy" if self._leave_out else None
        left_out = set(np.load(numbers, allow_pickle=False).tolist()) if numbers and numbers.is_file() else set()
        for number, line in enumerate(lines_of(path)):
            if number not in left_out:
                about = {"fields": line["metadata"], "source": line["source"], "origin": line["origin"]}
                yield Step(line["text"], line["id"], metadata=about)
