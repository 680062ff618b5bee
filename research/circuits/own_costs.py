"""What a search by the model's own queries costs beside one by an embedder: bytes of a reference, milliseconds of a recall.

One thread, exact search, random keys of the size that the model has: what is scored does not change how long it takes.
References beyond `_BLOCK` are the same block over and over, which is larger than the caches of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from memory3.bank.embedder import Embedder
from memory3.llm import Memory3

__all__ = ["costs"]

_BLOCK = 1000
_ASKED = 12
REFERENCES = (1_000, 100_000)


def _milliseconds(call: Callable[[], Any], times: int) -> float:
    """The median of some calls, after one that does not count."""
    call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return round(1000 * float(np.median(taken)), 3)


@torch.no_grad()
def costs(m3: Memory3, embedder: Embedder, questions: Sequence[str], heads: int, stored: int = 64) -> dict[str, Any]:
    """Milliseconds and bytes.

    Args:
        m3: whose heads they are.
        embedder: to compare with.
        questions: some to time with.
        heads: that search.
        stored: tokens of a reference whose keys are stored.
    """
    dim, generator = m3.geometry.head_dim, torch.Generator().manual_seed(0)
    keys = torch.randn(heads, _BLOCK * stored, dim, generator=generator)
    query = torch.randn(heads, _ASKED, dim, generator=generator)
    pooled = torch.randn(_BLOCK, heads * dim, generator=generator)
    embedded = torch.randn(_BLOCK, embedder.dimension, generator=generator)

    def late(blocks: int) -> None:
        for _ in range(blocks):
            (query @ keys.transpose(1, 2)).view(heads, _ASKED, _BLOCK, stored).amax(-1).mean(1).sum(0)

    def vectors(table: torch.Tensor, blocks: int) -> None:
        for _ in range(blocks):
            table @ table[0]

    def read(question: str) -> None:
        tokens = torch.tensor([[*m3.frame.prefix, *m3.frame.after(m3.prompts.ids(question))]])
        m3.geometry.base(tokens, use_cache=False)

    some = list(questions[:12])
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "heads": heads,
        "question tokens": _ASKED,
        "stored tokens": stored,
        "bytes a reference": {
            "every token, float16": 2 * heads * stored * dim,
            "one vector a head, float16": 2 * heads * dim,
            "embedder, float32": 4 * embedder.dimension,
        },
        "embed a question, ms": _milliseconds(lambda: [embedder.encode([q]) for q in some], 3) / len(some),
        "read a question, ms": _milliseconds(lambda: [read(q) for q in some], 3) / len(some),
    }
    for size in REFERENCES:
        blocks, times = size // _BLOCK, 9 if size == _BLOCK else 1
        found[f"search {size}, ms"] = {
            "every token": _milliseconds(lambda n=blocks: late(n), times),
            "one vector a head": _milliseconds(lambda n=blocks: vectors(pooled, n), times),
            "embedder": _milliseconds(lambda n=blocks: vectors(embedded, n), times),
        }
    return found
