"""Answers generated in batches from prompt rows, and on the way the score of the answer that was wanted.

A prompt that reads no memories is encoded once for both: the wanted answer is scored behind it and taken off its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from memory3.bank import Bank
from memory3.llm import Memory3
from memory3.prompt import PromptRow
from memory3.scoring import Score

__all__ = ["Generated", "generate_rows"]


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        text: up to the first stop string, if one came.
        token_ids: of the answer, end-of-text not among them.
        wanted: score of the wanted answer, where one was given.
        attention: share of the attention of the memory layers that went to memories while the answer was written, 0 to 1;
            None without memories.
    """

    text: str
    token_ids: list[int]
    wanted: Score | None = None
    attention: float | None = None


class _Stop(StoppingCriteria):
    """Ends a row when its answer holds one of the texts."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], start: int) -> None:
        self.tokenizer, self.texts, self.start = tokenizer, list(texts), start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows end here, bool ``[B]``, by their last tokens: a stop text is at most as many tokens as bytes."""
        last = max(self.start, input_ids.shape[1] - max(len(t.encode()) for t in self.texts) - 1)
        ended = [any(t in said for t in self.texts) for said in self.tokenizer.batch_decode(input_ids[:, last:])]
        return torch.tensor(ended, device=input_ids.device)


@torch.inference_mode()
def generate_rows(
    m3: Memory3,
    bank: Bank | None,
    rows: Sequence[PromptRow],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    wanted: Sequence[Sequence[int]] | None = None,
    options: dict[str, Any] | None = None,
) -> list[Generated]:
    """Greedy answers to all rows, one batch for those that read memories and one for those that read none.

    Args:
        m3: who answers.
        bank: of the memories that rows name.
        rows: prompts.
        max_new_tokens: length at most.
        stop: texts that end an answer and are not part of it.
        wanted: per row, token ids of the answer whose score is asked for.
        options: for ``model.generate``, to sample instead.
    """
    found: list[Generated | None] = [None] * len(rows)
    for reading in (True, False):
        mine = [n for n, row in enumerate(rows) if bool(row.references) == reading]
        if not mine:
            continue
        asked = None if wanted is None else [wanted[n] for n in mine]
        made = _generate(m3, bank if reading else None, [rows[n] for n in mine], asked, max_new_tokens, stop, options or {})
        for n, answer in zip(mine, made, strict=True):
            found[n] = answer
    return [answer for answer in found if answer is not None]


def _generate(
    m3: Memory3,
    bank: Bank | None,
    rows: Sequence[PromptRow],
    wanted: Sequence[Sequence[int]] | None,
    max_new_tokens: int,
    stop: Sequence[str],
    options: dict[str, Any],
) -> list[Generated]:
    tokens, mask = m3.prompts.pad([row.tokens for row in rows])
    scores: list[list[Score]] = []
    asked = None if wanted is None else [[answer] for answer in wanted]
    call: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options}
    call |= {"attention_mask": mask, "max_new_tokens": max_new_tokens, "pad_token_id": m3.prompts.pad_id}
    if stop:
        call["stopping_criteria"] = StoppingCriteriaList([_Stop(m3.tokenizer, stop, tokens.shape[1])])
    generate: Any = m3.model.generate
    attention: list[float | None] = [None] * len(rows)
    with ExitStack() as stack:
        recall = None
        if bank is not None:
            if asked is not None:
                scores = m3.scorer.score(rows, asked, bank)
            recall = stack.enter_context(m3.recall(bank, references=[row.references for row in rows]))
        elif asked is not None:
            cache = DynamicCache(config=m3.model.config)
            scores = m3.scorer.score(rows, asked, cache=cache)
            # `generate` goes on from the prompts, whose last token it reads itself. A negative number is taken off.
            cache.crop(tokens.shape[1] - 1 - cache.get_seq_length())
            call["past_key_values"] = cache
        out = generate(tokens, **call)
        if recall is not None:
            attention = [recall.attention(n) for n in range(len(rows))]
    answers = []
    for n, ids in enumerate(out[:, tokens.shape[1] :].tolist()):
        kept = m3.prompts.trim(ids)
        text = m3.tokenizer.decode(kept, skip_special_tokens=True)
        cut = min((at for at in (text.find(s) for s in stop) if at >= 0), default=len(text))
        answers.append(Generated(text[:cut].strip(), kept, scores[n][0] if scores else None, attention[n]))
    return answers
