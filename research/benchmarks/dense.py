"""All key-values of a knowledge base on disk, with every selector's scores, so that any selector, budget and codec is
tried without encoding again.

A folder of shards, some references each, in safetensors: ``<reference>.keys`` and ``<reference>.values`` float16 ``[L, H,
S, d]``, ``<reference>.<selector>`` float32 ``[L, H, S]``. Shards are written beside their place and renamed; a run goes
on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open

from memory3.bank import Bank
from memory3.benchmarks.measure import progress
from memory3.codec import CodedCodec
from memory3.codec.registry import find
from memory3.config import MemoryConfig
from memory3.encode.budget import choose
from memory3.encode.encoder import cut
from memory3.encode.selectors import Selector
from memory3.encode.selectors.blended import Blended
from memory3.encode.selectors.learned import Learned
from memory3.encode.selectors.reconstruction import Reconstruction
from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.types import Memory, MemoryShape, Reference

__all__ = ["MARK", "DenseStore", "Sparse", "random_scores"]

_SHARD = 32
#: Between a reference's name and what else tells its memories apart.
MARK = "\x1f"


class DenseStore:
    """The dense memories of some references of a bank. ``m3`` must keep all layers (preset ``full``)."""

    def __init__(self, folder: Path, m3: Memory3, bank: Bank) -> None:
        self.folder = folder
        self.m3 = m3
        self.bank = bank
        self._places: dict[str, dict[str, str]] = {}  # reference -> part -> shard
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.safetensors")):
            self._enter(path)

    def _enter(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a dict
                name, _, part = key.rpartition(".")
                self._places.setdefault(name, {})[part] = path.name

    @property
    def names(self) -> list[str]:
        """Of all references here."""
        return sorted(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def fill(self, references: Iterable[Reference], selectors: Sequence[Selector], what: str = "encoding") -> None:
        """Encode what is not here yet, key-values or some selector's scores; references of like length together."""
        wanted = {"keys", "values", *(selector.name for selector in selectors)}
        missing: dict[frozenset[str], list[Reference]] = {}
        for reference in sorted(references, key=lambda r: len(r.token_ids)):
            lacks = frozenset(wanted - set(self._places.get(reference.id, ())))
            if lacks:
                missing.setdefault(lacks, []).append(reference)
        groups = [
            (lacks, some[start : start + _SHARD]) for lacks, some in missing.items() for start in range(0, len(some), _SHARD)
        ]
        for lacks, group in progress(groups, what):
            tensors: dict[str, torch.Tensor] = {}
            scored = [selector for selector in selectors if selector.name in lacks]
            for at in range(0, len(group), self.m3.batch_size):
                part = group[at : at + self.m3.batch_size]
                dense = self.m3.encoder.dense(part, scored)
                for n, (reference, length) in enumerate(zip(part, dense.lengths.tolist(), strict=True)):
                    for side, x in (("keys", dense.keys), ("values", dense.values)):
                        if side in lacks:
                            tensors[f"{reference.id}.{side}"] = x[n, :, :, :length].half().cpu().contiguous()
                    for selector, scores in zip(scored, dense.scores, strict=True):
                        tensors[f"{reference.id}.{selector.name}"] = scores[n, :, :, :length].cpu().contiguous()
            path = self.folder / f"{len(list(self.folder.glob('*.safetensors'))):05d}.safetensors"
            new = path.with_suffix(".new")
            safetensors.torch.save_file(tensors, new)
            os.replace(new, path)
            self._enter(path)

    def tensors(self, name: str, *parts: str) -> list[torch.Tensor]:
        """``keys``, ``values`` or a selector's scores of a reference."""
        found = []
        for part in parts:
            shard = self._places.get(name, {}).get(part)
            if shard is None:
                raise InputError(f"reference {name!r} has no {part} among the dense memories in {self.folder}")
            found.append(_opened(str(self.folder / shard)).get_tensor(f"{name}.{part}"))
        return found


@lru_cache(maxsize=256)
def _opened(path: str) -> Any:
    return safe_open(path, "pt")


def random_scores(name: str, shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Uniform scores that depend on the reference's name alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[-6:], "little") + seed)
    return torch.rand(tuple(shape), generator=generator)


@dataclass
class Sparse:
    """A `memory3.recall.retrieval.MemorySource` that cuts memories from a `DenseStore`: as a bank of these settings would
    hold them.

    Attributes:
        store: where the key-values are.
        config: layers, budget, selector.
        codec: memories go through its bytes and back; None: fp16.
        oracle: scores in place of the selector's. Their names may say for whom they are: what follows `MARK` in a name is
            not the reference's.
    """

    store: DenseStore
    config: MemoryConfig
    codec: CodedCodec | None = None
    oracle: Mapping[str, torch.Tensor] | None = None
    _records: dict[str, bytes] = field(default_factory=dict)

    @property
    def shape(self) -> MemoryShape:
        """Of its memories, were they written by an encoder of its settings."""
        full = self.store.m3.shape
        layers = self.config.memory_layers(len(full.layers))
        pairs = self.config.budget.pairs(len(layers) * full.kv_heads, self.config.reference_length)
        return MemoryShape(layers, full.kv_heads, full.head_dim, pairs, "float16")

    @property
    def scored_by(self) -> tuple[str, ...]:
        """The scores in the store that it chooses by."""
        if self.config.selector == Blended.name:
            return Learned.name, Reconstruction.name
        return () if self.config.selector in ("random", "first") else (self.config.selector,)

    def cut(self, name: str) -> Memory:
        """One reference's memory, of the layers of `shape`."""
        reference: str = name.partition(MARK)[0]
        keys, values = self.store.tensors(reference, "keys", "values")
        layers = list(self.shape.layers)
        length = torch.tensor([keys.shape[2]])
        if self.oracle is not None:
            scores = self.oracle[name]
        elif self.config.selector == "random":
            scores = random_scores(reference, keys.shape[:3])
        elif self.config.selector == "first":
            scores = -torch.arange(keys.shape[2]).float().expand(keys.shape[:3])
        else:
            found = self.store.tensors(reference, *self.scored_by)
            scores = found[0] if len(found) == 1 else found[0] + Blended.share * found[1]
        kept = choose(scores[None, layers], length, self.config.budget, self.config.reference_length)
        (memory,) = cut(keys[None, layers], values[None, layers], kept, torch.float16)
        if self.config.codec == "auto" or not find(self.config.codec).predicts:
            return memory
        (read,) = self.references([reference])
        return replace(memory, tokens=np.asarray(read.token_ids, np.uint32))

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """See `memory3.recall.retrieval.MemorySource`; of all layers, those that are no memory layers empty."""
        if self.codec is None:
            made = [self.cut(name) for name in reference_ids]
        else:
            new = [name for name in dict.fromkeys(reference_ids) if name not in self._records]
            self._records.update((name, self.codec.encode(self.cut(name))) for name in new)
            made = self.codec.decode([self._records[name] for name in reference_ids])
        full, mine = self.store.m3.shape, self.shape
        if mine.layers != full.layers:
            made = [_widened(memory, mine, full) for memory in made]
        return made

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """Their texts, for citations."""
        return self.store.bank.references([name.partition(MARK)[0] for name in reference_ids])

    def search(self, queries: Sequence[str], k: int, where: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """References are named, never looked up."""
        raise AssertionError("a front names its references")

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """See `memory3.recall.retrieval.MemorySource`."""
        return len(self.store.names)


def _widened(memory: Memory, mine: MemoryShape, full: MemoryShape) -> Memory:
    counts = memory.counts.__class__((len(full.layers), full.kv_heads), memory.counts.dtype)
    counts[:] = 0
    counts[[full.layers.index(layer) for layer in mine.layers]] = memory.counts
    return replace(memory, counts=counts)
