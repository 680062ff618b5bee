"""The chunk clock: which tokens of a prompt read the same memories, and by which text those are looked up (arXiv
2407.01178, section 3.2).

A prompt behind its memories is cut every 64 tokens; a chunk is looked up by its own text. The last chunk, when shorter,
is looked up by the last 64 tokens of the prompt, so that a question of 70 tokens is not answered from its last six.
Tokens that are scored as an answer read what they would while being decoded: the first 64 what the prompt's last chunk
reads, the next what the 64 before them find.

Knows token counts; nothing of models, banks or memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Chunk", "chunk_table", "cut"]


@dataclass(frozen=True)
class Chunk:
    """Tokens of a request that read the same memories.

    Attributes:
        start, end: which, as counted within the request without padding.
        query: the tokens it is looked up by; None: it reads what the chunk before it reads.
    """

    start: int
    end: int
    query: slice | None


def cut(split: int, start: int, length: int, size: int, answer: int = 0) -> list[Chunk]:
    """Chunks of a request's tokens ``start..length``.

    Args:
        split: first token behind the memories; queries do not reach in front of it.
        start, length: the stretch to cut.
        size: tokens of a chunk.
        answer: how many of the last tokens are read as decoding would read them.
    """
    prompt_end = length - answer
    chunks = []
    for at in range(start, prompt_end, size):
        end = min(at + size, prompt_end)
        chunks.append(Chunk(at, end, slice(max(split, end - size), end)))
    for at in range(prompt_end, length, size):
        chunks.append(Chunk(at, min(at + size, length), slice(at - size, at) if at > prompt_end else None))
    return chunks


def chunk_table(
    stretches: Sequence[tuple[int, int, int]], size: int, index: torch.Tensor, behind: torch.Tensor
) -> torch.Tensor:
    """Which tokens of a forward pass belong to which chunk.

    Args:
        stretches: N chunks as (row, start, end), in order of rows and tokens.
        size: tokens of a chunk at most.
        index: int64 ``[B, T]``, each token's number within its row.
        behind: bool ``[B, T]``, whether it is real and stands behind the memories.

    Returns:
        int64 ``[N, C]``: flat indices ``row * T + t``; -1 pads.
    """
    device = index.device
    table = torch.full((max(len(stretches), 1), size), -1, device=device)
    row, column = behind.nonzero(as_tuple=True)
    if not stretches or not row.numel():
        return table[: len(stretches), :1]
    # All rows one after the other on one line, so that one search finds every token's chunk.
    far = max(end for _, _, end in stretches) + 1
    starts = torch.tensor([n * far + start for n, start, _ in stretches], device=device)
    ends = torch.tensor([n * far + end for n, _, end in stretches], device=device)
    at = row * far + index[row, column]
    chunk = torch.searchsorted(ends, at, right=True)
    table[chunk, at - starts[chunk]] = row * index.shape[1] + column
    used = (table >= 0).any(0)
    return table[:, used]
