"""Answers generated in batches from prompt rows, and on the way the likelihood of the answer that was wanted: where passages stand in the prompt, they are encoded once
for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from memory3.bank import Bank
from memory3.evaluation.likelihood import Likelihood, likelihoods
from memory3.evaluation.prompts import PromptRow
from memory3.llm import Memory3

__all__ = ["Generated", "generate_rows"]


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        text: up to the first stop string, if one came.
        token_ids: of the answer, end-of-text not among them.
        wanted: likelihood of the wanted answer, where one was given.
        attention: share of the attention of the memory layers that went to memories while the answer was written, 0 to 1; None without memories.
    """

    text: str
    token_ids: list[int]
    wanted: Likelihood | None = None
    attention: float | None = None


class _Stop(StoppingCriteria):
    """Ends a row when its answer holds one of the texts."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], start: int) -> None:
        self.tokenizer, self.texts, self.start = tokenizer, list(texts), start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Asked by transformers after every token. Looks at the last tokens alone: a stop text is at most as many tokens as bytes."""
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
        m3, bank, rows: who answers what, from where.
        max_new_tokens: length at most.
        stop: texts that end an answer and are not part of it.
        wanted: per row, token ids of the answer whose likelihood is asked for.
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
    tokens, mask = m3._pad([row.tokens for row in rows])
    scores: list[Likelihood | None] = [None] * len(rows)
    call: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options}
    call |= {"attention_mask": mask, "max_new_tokens": max_new_tokens, "pad_token_id": m3._pad_id}
    if stop:
        call["stopping_criteria"] = StoppingCriteriaList([_Stop(m3.tokenizer, stop, tokens.shape[1])])
    generate: Any = m3.model.generate
    attention: list[float | None] = [None] * len(rows)
    with ExitStack() as stack:
        recall = None
        if bank is not None:
            if wanted is not None:
                scores = [found[0] for found in likelihoods(m3, bank, rows, [[answer] for answer in wanted])]
            recall = stack.enter_context(m3.recall(bank, references=[row.references for row in rows]))
        elif wanted is not None:
            call["past_key_values"], scores = _prefill(m3, tokens, mask, wanted)
        out = generate(tokens, **call)
        if recall is not None:
            attention = [recall.attention(n) for n in range(len(rows))]
    ends = m3.model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {m3.tokenizer.eos_token_id}
    answers = []
    for ids, score, share in zip(out[:, tokens.shape[1] :].tolist(), scores, attention, strict=True):
        kept = next((ids[:i] for i, t in enumerate(ids) if t in ends), ids)
        text = m3.tokenizer.decode(kept, skip_special_tokens=True)
        cut = min((at for at in (text.find(s) for s in stop) if at >= 0), default=len(text))
        answers.append(Generated(text[:cut].strip(), kept, score, share))
    return answers


def _prefill(
    m3: Memory3, tokens: torch.Tensor, mask: torch.Tensor, wanted: Sequence[Sequence[int]]
) -> tuple[DynamicCache, list[Likelihood | None]]:
    """Read the prompts, score the wanted answers behind them, and forget those again."""
    model: Any = m3.model
    cache = DynamicCache(config=m3.model.config)
    width, device = tokens.shape[1], tokens.device
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    first = model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits
    most = max(len(answer) for answer in wanted) - 1
    logits = first
    if most:
        fed = torch.tensor([[*answer[:-1], *[m3._pad_id] * (most - len(answer) + 1)] for answer in wanted], device=device)
        real = torch.arange(most, device=device) < torch.tensor([[len(answer) - 1] for answer in wanted], device=device)
        later = positions[:, -1:] + 1 + torch.arange(most, device=device)
        whole = torch.cat([mask, real.to(mask.dtype)], dim=1)
        rest = model(fed, attention_mask=whole, position_ids=later, past_key_values=cache).logits
        logits = torch.cat([first, rest], dim=1)
    scores: list[Likelihood | None] = []
    for n, answer in enumerate(wanted):
        logs = torch.log_softmax(logits[n, : len(answer)].float(), dim=-1)
        ids = torch.tensor(list(answer), device=device)
        greedy = bool((logs.argmax(-1) == ids).all())
        scores.append(Likelihood(float(logs.gather(1, ids[:, None]).sum()), greedy, len(answer)))
    cache.crop(
        width - 1 - cache.get_seq_length()
    )  # a negative number is taken off; `generate` reads the prompt's last token itself
    return cache, scores
