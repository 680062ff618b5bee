"""The same text read twice: from memories, and as text by the model's own forward pass with its own attention.

Of two references each stands behind its own prefix and sees nothing of the other (a block mask); a second row reads the best
one alone.

    tokens      prefix | second | prefix | best | question
    positions   0..b-1    | b..    | S..       | S+b..| 2S+b..

Symbols: b tokens of the prefix, S positions of a reference, Q of the question, V of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from memory3.attention.attach import attached
from memory3.attention.attend import additive
from memory3.config import Budget, MemoryConfig
from memory3.encode.encoder import Encoder
from memory3.models.frame import Frame
from memory3.models.geometry import ModelGeometry
from memory3.recall.generate import Recall
from memory3.recall.held import Held
from memory3.recall.retrieval import Retrieval, retrievals
from memory3.types import Reference

__all__ = ["ParityText", "Row", "from_memories", "from_text", "in_one_and_in_two", "own_attention"]

#: Tokens of a question, and the names of the references that it reads, the best first.
Row = tuple[Sequence[int], Sequence[str]]


@dataclass(frozen=True)
class ParityText:
    """What is read, as token ids.

    Attributes:
        prefix: ``[b]``, in front of each reference.
        best, second: the references, ``[S]`` at most.
        question: ``[Q]``, more than 3.
    """

    prefix: Sequence[int]
    best: Sequence[int]
    second: Sequence[int]
    question: Sequence[int]

    @property
    def length(self) -> int:
        """S."""
        return max(len(self.best), len(self.second))

    @property
    def short(self) -> Sequence[int]:
        """The question of the row that reads the best alone: a shorter one, so that a batch of both is padded."""
        return self.question[3:]

    @property
    def rows(self) -> list[Row]:
        """Both questions with what they read."""
        return [(self.question, ("best", "second")), (self.short, ("best",))]


def from_memories(
    model: PreTrainedModel, shape: ModelGeometry, tokenizer: Any, text: ParityText, batches: Sequence[Sequence[Row]]
) -> list[torch.Tensor]:
    """Logits of every row's question, float32 ``[Q, V]``, from memories of every pair in every layer that can have some.

    The last token of each row is decoded, in a pass of its own.

    Args:
        model: the model in memory.
        shape: its geometry.
        tokenizer: its tokenizer.
        text: what is read.
        batches: rows that are read together, padded on the left.
    """
    settings = MemoryConfig(
        reference_length=text.length,
        budget=Budget("all"),
        layers=shape.full_layers,
        selector="first",
        dtype="float32",
        memory_temperature=1.0,
        arrangement="row",
        rank_discount=0.0,
        chunk_length=512,
    )
    frame = Frame((), tuple(text.prefix), (), (), (), (), (), (), frozenset())
    encoder = Encoder(model, shape, frame, settings)
    tokens = {"best": text.best, "second": text.second}
    written = [Reference(name, name, 0, 0, 0, "", tuple(ids)) for name, ids in tokens.items()]
    source = Held(dict(zip(tokens, encoder.encode(written), strict=True)))
    found: list[torch.Tensor] = []
    for rows in batches:
        each = retrievals(Retrieval(2), chunk_references=[[names] for _, names in rows])
        recall = Recall(model, shape, tokenizer, encoder, source, each, chunk_length=settings.chunk_length)
        width = max(len(question) for question, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for n, (question, _) in enumerate(rows):
            ids[n, width - len(question) :] = torch.tensor(list(question))
            mask[n, width - len(question) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        forward: Any = model
        with recall:
            first = forward(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
            last = forward(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True)
        logits = torch.cat([first.logits, last.logits], dim=1).float()
        found += [logits[n, width - len(question) :] for n, (question, _) in enumerate(rows)]
    return found


def from_text(model: PreTrainedModel, shape: ModelGeometry, text: ParityText) -> list[torch.Tensor]:
    """The same of `ParityText.rows` by the model's own forward pass over text, with its own attention.

    Args:
        model: the model in memory.
        shape: its geometry.
        text: what is read.
    """
    first, span, question = len(text.prefix), text.length, len(text.question)
    both = [*text.prefix, *text.second, *text.prefix, *text.best, *text.question]
    starts = (0, first, span, span + first, 2 * span + first)
    sizes = (first, len(text.second), first, len(text.best), question)
    places = [place for start, size in zip(starts, sizes, strict=True) for place in range(start, start + size)]
    # Blocks of the text: 0, 1 prefix and second, 2, 3 prefix and best, 4 question.
    block = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    sees = torch.zeros(5, 5, dtype=torch.bool)
    for reader, blocks in ((0, (0,)), (1, (0, 1)), (2, (2,)), (3, (2, 3)), (4, (1, 2, 3, 4))):
        sees[reader, list(blocks)] = True
    longer = _forward(model, shape, both, places, sees[block[:, None], block], (block == 1) | (block == 3), question)
    short = [*text.prefix, *text.best, *text.short]
    places = [*range(first + len(text.best)), *range(first + span, first + span + len(text.short))]
    at, everything = torch.arange(len(short)), torch.ones(len(short), len(short), dtype=torch.bool)
    held = (at >= first) & (at < first + len(text.best))
    return [longer, _forward(model, shape, short, places, everything, held, len(text.short))]


def in_one_and_in_two(model: PreTrainedModel, text: ParityText) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own logits of the short question, float32 ``[Q - 3, V]``, in one pass over the best reference and it, and
    once more with the text in front read before, into the model's own cache. They differ by rounding alone.

    Args:
        model: the model in memory.
        text: what is read.
    """
    ids = torch.tensor([[*text.prefix, *text.best, *text.short]], device=model.device)
    behind = len(text.short)
    forward: Any = model
    with own_attention(model):
        whole = forward(input_ids=ids, use_cache=False).logits[0, -behind:].float()
        front = forward(input_ids=ids[:, :-behind], use_cache=True).past_key_values
        parts = forward(input_ids=ids[:, -behind:], past_key_values=front, use_cache=True).logits[0].float()
    return whole, parts


def _forward(
    model: PreTrainedModel,
    shape: ModelGeometry,
    tokens: Sequence[int],
    places: Sequence[int],
    sees: torch.Tensor,
    held: torch.Tensor,
    question: int,
) -> torch.Tensor:
    """Logits of the question, float32 ``[Q, V]``, of one row of T tokens.

    Layers with a window hold no memories. There the question sees the prefix and what its own window shows of itself.

    Args:
        places: position of each token.
        sees: bool ``[T, T]``, whether a token may see another that is in front of it.
        held: bool ``[T]``, which tokens are read as memories.
        question: Q, the last tokens.
    """
    device, start = model.device, len(tokens) - question
    at, allowed = torch.tensor(places, device=device), (sees & torch.ones_like(sees).tril()).to(device)
    call: dict[str, Any] = {"input_ids": torch.tensor([tokens], device=device), "use_cache": False}
    windows = shape.windows(model, max(places) + 1)
    if windows:
        masks = {}
        for layer, kind in enumerate(model.config.get_text_config().layer_types):
            mask = allowed.clone()
            if layer in windows:
                mask[:start] &= windows[layer][at[:start, None], at]
                mask[start:, held.to(device)] = False
                mask[start:, start:] &= windows[layer][:question, :question]
            masks[kind] = additive(mask, model.dtype)[None, None]
        call |= {"position_ids": at[None], "attention_mask": masks}
    elif not bool(sees.all()) or list(places) != list(range(len(tokens))):
        call |= {"position_ids": at[None], "attention_mask": additive(allowed, model.dtype)[None, None]}
    forward: Any = model
    with own_attention(model):
        return forward(**call).logits[0, start:].float()


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model's attention as it is, or where that takes no mask of ours (flash attention), sdpa.

    Passes without a reader are sdpa's while somebody is attached. Switching by ourselves would take the attention from other
    threads that are attached now.
    """
    if model.config._attn_implementation in ("eager", "sdpa"):
        yield
        return
    with attached(model):
        yield
