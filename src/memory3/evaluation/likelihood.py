"""How likely a model finds each of several continuations of a prompt: the prompt is read once for all of them.

The continuations lie one behind the other in one row. A mask lets each see the prompt and itself alone, and each counts its positions from the prompt's end, so
that every figure is what a row of its own would give.

    tokens     prompt | a1 a2 | b1 b2 b3 | ...      the last token of each continuation need not be fed
    positions  0..n-1 | n n+1 | n n+1 n+2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memory3.attention.attach import attached
from memory3.attention.attend import masked
from memory3.attention.reading import Reading
from memory3.bank import Bank
from memory3.evaluation.prompts import PromptRow
from memory3.llm import Memory3

__all__ = ["Likelihood", "likelihoods"]


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation.

    Attributes:
        total: natural logarithm of its probability.
        greedy: whether the model itself would have written it, token by token.
        tokens: of how many it is.
    """

    total: float
    greedy: bool
    tokens: int


@torch.inference_mode()
def likelihoods(
    m3: Memory3, bank: Bank | None, rows: Sequence[PromptRow], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[Likelihood]]:
    """For every row, the likelihood of each of its continuations (token ids, at least one). One forward pass.

    Rows that read memories and rows that read none may be mixed.
    """
    found: list[list[Likelihood]] = [[] for _ in rows]
    for reading in (True, False):
        mine = [n for n, row in enumerate(rows) if bool(row.references) == reading]
        if mine:
            scored = _score(m3, bank if reading else None, [rows[n] for n in mine], [continuations[n] for n in mine])
            for n, result in zip(mine, scored, strict=True):
                found[n] = result
    return found


def _score(
    m3: Memory3, bank: Bank | None, rows: Sequence[PromptRow], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[Likelihood]]:
    device, dtype = m3.model.device, m3.model.dtype
    end = max(len(row.tokens) for row in rows)  # prompts end at one column
    width = end + max(sum(len(c) - 1 for c in choices) for choices in continuations)
    tokens = torch.full((len(rows), width), m3._pad_id)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    allowed = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row may see nothing
    starts: list[list[int]] = []
    for n, (row, choices) in enumerate(zip(rows, continuations, strict=True)):
        size = len(row.tokens)
        first = end - size
        tokens[n, first:end] = torch.tensor(row.tokens)
        positions[n, first:end] = torch.arange(size)
        allowed[n, first:end, first:end] = torch.ones(size, size, dtype=torch.bool).tril()
        at, places = end, []
        for choice in choices:
            fed = len(choice) - 1
            places.append(at)
            tokens[n, at : at + fed] = torch.tensor(choice[:-1], dtype=torch.int64)
            positions[n, at : at + fed] = size + torch.arange(fed)
            allowed[n, at : at + fed, first:end] = True
            allowed[n, at : at + fed, at : at + fed] = torch.ones(fed, fed, dtype=torch.bool).tril()
            at += fed
        starts.append(places)
    reading = None
    if bank is not None:
        reading, positions = _reading(m3, bank, rows, positions, end)
    bias = torch.zeros(len(rows), 1, width, width, dtype=dtype).masked_fill_(~allowed[:, None], masked(dtype))
    model: Any = m3.model
    call: dict[str, Any] = {
        "attention_mask": bias.to(device),
        "position_ids": positions.to(device),
        "use_cache": False,
        "logits_to_keep": width - end + 1,
    }
    if reading is None:
        logits = model(tokens.to(device), **call).logits
    else:
        with attached(m3.model):
            logits = model(tokens.to(device), memory3=reading, **call).logits
    results = []
    for n, (choices, places) in enumerate(zip(continuations, starts, strict=True)):
        mine = []
        for choice, at in zip(choices, places, strict=True):
            columns = [0, *range(at - end + 1, at - end + len(choice))]  # column 0 is the prompt's last token
            logs = torch.log_softmax(logits[n, columns].float(), dim=-1)
            wanted = torch.tensor(list(choice), device=device)
            total = float(logs.gather(1, wanted[:, None]).sum())
            mine.append(Likelihood(total, bool((logs.argmax(-1) == wanted).all()), len(choice)))
        results.append(mine)
    return results


def _reading(
    m3: Memory3, bank: Bank, rows: Sequence[PromptRow], positions: torch.Tensor, end: int
) -> tuple[Reading, torch.Tensor]:
    """Reader of these prompts and of all that follows them, and positions with room for the memories."""
    places = [m3.frame.place(row.tokens) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row.references))
    batch = m3.encoder.lay_out(
        [row.references for row in rows],
        dict(zip(names, bank.memories(names), strict=True)),
        [place.split - (len(m3.frame.prefix) - place.missing) for place in places],
        [place.missing for place in places],
    )
    width = positions.shape[1]
    columns = torch.arange(width).expand(len(rows), -1)
    first = torch.tensor([end - len(row.tokens) + place.split for row, place in zip(rows, places, strict=True)])[:, None]
    behind = columns >= first
    shift = torch.tensor([place.missing + m3.config.reference_length for place in places])[:, None]
    table = torch.where(behind, torch.arange(len(rows))[:, None] * width + columns, -1)
    table = table[:, int(first.min()) :]  # columns in front of every row's memories belong to no chunk
    return Reading(batch, table.to(m3.model.device)), torch.where(behind, positions + shift, positions)
