"""Passages encoded once: all their key-values, and the queries that were read behind them. Every way cuts its memories from
these.

A file a passage, in safetensors: ``keys``, ``values`` float32 ``[L, H, S, d]``, and for each kind of reading behind the
passage (``repeat``: the passage once more; ``asked``: questions and answers; ``true``: the very question and its answer)
``<kind>.query`` float16 ``[L, A, T, d]`` and ``<kind>.lse`` float32 ``[L, A, T]``. Where a selector was fitted to the model,
``learned`` float32 ``[L, H, S]``, its scores.

Symbols: L layers, A query heads, H KV heads, S tokens of the passage, T tokens read behind it, d head dimension.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
import xxhash

from memory3.encode.selectors import selector
from memory3.encode.selectors.base import LayerView, Selector
from memory3.llm import Memory3
from memory3.types import Reference

__all__ = ["Passage", "Passages"]


class _Watch(Selector):
    """Scores nothing; keeps the queries that were read behind the passage."""

    name: ClassVar[str] = "watch"
    repeats: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def score(self, view: LayerView) -> torch.Tensor:
        """Zeros; see the class."""
        assert view.later_query is not None
        assert view.later_lse is not None
        self.seen.append((view.later_query, view.later_lse))
        return view.key.new_zeros(view.key.shape[:3])


@dataclass(frozen=True)
class Passage:
    """One passage; see the module."""

    keys: torch.Tensor
    values: torch.Tensor
    queries: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    learned: torch.Tensor | None = None
    fitted: Mapping[str, torch.Tensor] | None = None

    def attention(self, kind: str, layer: int) -> torch.Tensor:
        """What the queries of one kind paid to each token in one layer: float32 ``[H, G, T, S]``."""
        query, lse = self.queries[kind]
        heads, dim = self.keys.shape[1], self.keys.shape[-1]
        asked = query[layer].float().view(heads, -1, query.shape[2], dim)
        logits = asked @ self.keys[layer][:, None].transpose(-1, -2) * self.scale
        return (logits - lse[layer].view(heads, -1, query.shape[2], 1)).exp()


class Passages:
    """The passages of one model and one set, on disk."""

    def __init__(self, folder: Path, m3: Memory3) -> None:
        self.folder, self.m3 = folder, m3
        self.fitted: Mapping[str, torch.Tensor] | None = None  # weights of heads, of `research.quality.calibrating`
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Of a passage, by what it is asked for under."""
        return self.folder / f"{xxhash.xxh3_64_hexdigest(name.encode())}.safetensors"

    def fill(
        self,
        kind: str,
        references: Sequence[Reference],
        names: Sequence[str],
        asked: Sequence[Sequence[int]] | None,
        batch: int,
        watched: Sequence[Sequence[int]] | None = None,
    ) -> int:
        """Encode what is not here yet, in passes of like length; returns how many were.

        Args:
            kind: of the queries.
            references: of the passages.
            names: what each passage is to be found under.
            asked: tokens that are read behind each; None: the passage once more.
            batch: passages of a pass.
            watched: which tokens of ``asked``; None: all.
        """
        todo = [n for n in range(len(names)) if not self._has(names[n], kind)]
        todo.sort(key=lambda n: len(references[n].token_ids))
        for start in range(0, len(todo), batch):
            part = todo[start : start + batch]
            watch = _Watch()
            mine = None if asked is None else [list(asked[n]) for n in part]
            learned = [selector("learned", self.m3.learned.by_layer)] if self.m3.learned else []
            dense = self.m3.encoder.dense([references[n] for n in part], [watch, *learned], asked=mine)
            for row, n in enumerate(part):
                size = int(dense.lengths[row])
                every = range(size if mine is None else len(mine[row]))
                read = torch.tensor(list(every if watched is None else watched[n]))
                tensors = self._read(names[n])
                tensors |= {
                    "keys": dense.keys[row, :, :, :size].contiguous(),
                    "values": dense.values[row, :, :, :size].contiguous(),
                    f"{kind}.query": torch.stack([query[row, :, read] for query, _ in watch.seen]).half().contiguous(),
                    f"{kind}.lse": torch.stack([lse[row, :, read] for _, lse in watch.seen]).contiguous(),
                }
                if learned:
                    tensors["learned"] = dense.scores[1][row, :, :, :size].contiguous()
                new = self.path(names[n]).with_suffix(".new")
                safetensors.torch.save_file(tensors, new)
                os.replace(new, self.path(names[n]))
        return len(todo)

    def load(self, name: str) -> Passage:
        """A passage that was encoded."""
        tensors = self._read(name)
        kinds = {key.partition(".")[0] for key in tensors if "." in key}
        queries = {kind: (tensors[f"{kind}.query"], tensors[f"{kind}.lse"]) for kind in kinds}
        scale = self.m3.geometry.head_dim**-0.5
        return Passage(tensors["keys"], tensors["values"], queries, scale, tensors.get("learned"), self.fitted)

    def _read(self, name: str) -> dict[str, torch.Tensor]:
        path = self.path(name)
        return safetensors.torch.load_file(path) if path.exists() else {}

    def _has(self, name: str, kind: str) -> bool:
        path = self.path(name)
        if not path.exists():
            return False
        with safetensors.safe_open(path, "pt") as file:
            there = set(file.keys())
        return f"{kind}.lse" in there and ("learned" in there or self.m3.learned is None)
