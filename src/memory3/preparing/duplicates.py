"""Near-duplicates across all files, by datatrove's MinHash in four steps: signatures, buckets, groups, removal.

A signature has 14 buckets of 8 hashes over n-grams of 5 words. Two documents that share a part s of their n-grams meet in a
bucket with probability ``1 - (1 - s^8)^14``: 92% at s = 0.8, 56% at 0.7, 5% at 0.5. Of a group one is kept.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig

from memory3.files import write_atomically
from memory3.preparing.documents import NEAR, LinesWriter
from memory3.preparing.tokens import SpaceTokenizer

__all__ = ["BUCKETS", "KeptOfGroups", "NearDuplicates", "buckets", "groups", "signatures"]

#: datatrove's own, but for the hash: sha1 takes text with every version of its library.
_CONFIG = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
BUCKETS = _CONFIG.num_buckets
#: n-grams whose hashes are in memory at a time: 112 numbers each.
_AT_A_TIME = 8192


class _Signatures(MinhashDedupSignature):
    """In memory that does not grow with the document."""

    name = "signatures"

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Lowest hashes, ``[buckets, 8]``: a minimum over parts is that over all. Shingles are uint64 ``[N, 1]``."""
        distinct = np.unique(shingles).reshape(-1, 1)
        parts = [super(_Signatures, self).get_signature(part) for part in _parts(distinct)]
        lowest = np.array(parts, np.uint64).min(axis=0)
        return [bucket.tolist() for bucket in lowest]


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _AT_A_TIME):
        yield rows[start : start + _AT_A_TIME]


def signatures(folder: Path) -> PipelineStep:
    """The first step, into a folder. Texts of fewer than 5 words are filled up, so that equal ones are found."""
    tokenizer: Any = SpaceTokenizer(least=_CONFIG.n_grams)
    return _Signatures(str(folder), _CONFIG, language=tokenizer)


def buckets(signatures: Path, folder: Path) -> PipelineStep:
    """The second step: pairs that meet in a bucket. It has `BUCKETS` tasks."""
    return MinhashDedupBuckets(str(signatures), str(folder), config=_CONFIG)


def groups(pairs: Path, folder: Path) -> PipelineStep:
    """The third step, one task: groups out of pairs. Holds all documents that are in a pair in memory, some 300 bytes each."""
    return _Groups(str(pairs), str(folder), config=_CONFIG, save_cluster_id=True)


class _Groups(MinhashDedupCluster):
    """Without the bar that it draws over ours."""

    def run(self, data: DocumentsPipeline = None, _: int = 0, world_size: int = 1) -> None:
        with redirect_stderr(io.StringIO()):
            super().run(data, _, world_size)


class NearDuplicates(MinhashDedupFilter):
    """The fourth step: of each group one document is left. All documents of a group carry its number."""

    name = "duplicates"

    def __init__(self, groups: Path, removed: Path | None) -> None:
        """
        Args:
            groups: folder of the third step.
            removed: folder for what is removed; None: nowhere.
        """
        super().__init__(str(groups), LinesWriter(removed) if removed else None)
        self._groups = groups

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents of a task that are left."""
        self.load_cluster_ids = (self._groups / f"{rank:06d}.clusters").is_file()
        if self.load_cluster_ids and not (self._groups / f"{rank:06d}.remove").is_file():
            (self._groups / f"{rank:06d}.remove").touch()  # without it the step would give its documents no numbers
        return super().run(data, rank, world_size)


class KeptOfGroups(PipelineStep):
    """Notes which document of each group was kept, for the report."""

    type, name = "prepare", "kept of groups"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents as they come."""
        kept: dict[int, str] = {}
        for document in data:
            group = document.metadata.pop(NEAR, -1)
            if group != -1:
                kept[group] = document.id
            yield document
        write_atomically(self._folder / f"{rank:05d}.json", json.dumps(kept))
