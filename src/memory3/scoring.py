"""`Scorer`: how likely a model finds given answers to its prompts. The only place where answers are scored.

A prompt is read once for all of its answers. They lie behind it in one row; answers that differ in their last token alone
share their columns, because that token is not fed. Where a row has several, a mask lets each see the prompt and itself alone,
and each counts its positions from the prompt's end, so that every figure is what a row of its own would give.

    tokens     prompt | a1 a2 | b1 b2 b3 | ...
    positions  0..n-1 | n n+1 | n n+1 n+2

It knows prompts as token ids. A row that names references reads their memories; any other row is read as the model stands, so
that inside a recall it reads what the recall finds for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from memory3.attention.attach import attached
from memory3.attention.attend import additive
from memory3.attention.reading import Reading
from memory3.encode.encoder import Encoder
from memory3.errors import ConfigError
from memory3.prompt import PromptBuilder, PromptRow, left_padded, token_positions
from memory3.types import Memory

__all__ = ["IGNORED", "Score", "Scorer", "last_logits", "log_probabilities", "token_log_likelihoods"]

#: Label of a token that does not count.
IGNORED = -100


@dataclass(frozen=True)
class Score:
    """Of one answer behind one prompt.

    Attributes:
        total: natural logarithm of its probability.
        greedy: whether the model itself would have written it, token by token.
        tokens: of how many it is.
        least: natural logarithm of the probability of its least likely token.
    """

    total: float
    greedy: bool
    tokens: int
    least: float

    @property
    def nll(self) -> float:
        """Negative log-likelihood per token, in nats."""
        return -self.total / self.tokens


def last_logits(
    model: Any, tokens: torch.Tensor, mask: torch.Tensor, keep: int, *, positions: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """One forward pass over padded rows: logits of the last ``keep`` tokens, ``[B, keep, V]``, in the model's dtype.

    Args:
        model: a causal language model, or what wraps one.
        tokens: int64 ``[B, T]``.
        mask: int64 ``[B, T]``, 0 for padding; or what is added to the logits of attention, ``[B, 1, T, T]``.
        keep: how many of the last tokens.
        positions: int64 ``[B, T]``; None: counted from the mask, since transformers itself would count padding.
        options: for the model's forward. Without a cache among them none is made.
    """
    if positions is None:
        positions = token_positions(mask)
    options.setdefault("use_cache", options.get("past_key_values") is not None)
    call = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": keep, **options}
    logits: torch.Tensor = model(input_ids=tokens, **call).logits
    return logits


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Natural logarithms of the probabilities of the next token, ``[..., V]``; float32 unless the logits are float64."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def token_log_likelihoods(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of each label, in nats, ``[..., S]``; 0 where the label is `IGNORED`.

    Args:
        logits: ``[..., S, V]``, those of the token before each label.
        labels: int64 ``[..., S]``.
    """
    found = log_probabilities(logits).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return found.masked_fill(labels == IGNORED, 0.0)


class Memories(Protocol):
    """What scoring needs of a bank."""

    def memories(self, reference_ids: Sequence[str], *, device: torch.device | str | None = None) -> Sequence[Memory]:
        """Their memories, in order; made on ``device`` where they have to be decoded.

        Args:
            reference_ids: in any order.
            device: None: the CPU.
        """


class Scorer:
    """Scores given answers behind prompts of one model."""

    def __init__(self, model: PreTrainedModel, prompts: PromptBuilder, encoder: Encoder) -> None:
        """Score with a model.

        Args:
            model: a causal language model.
            prompts: its prompts.
            encoder: lays memories where prompts read them.
        """
        self._model, self._prompts, self._encoder = model, prompts, encoder

    @torch.inference_mode()
    def score(
        self,
        rows: Sequence[PromptRow],
        answers: Sequence[Sequence[Sequence[int]]],
        bank: Memories | None = None,
        *,
        cache: Any = None,
    ) -> list[list[Score]]:
        """For every row, the score of each of its answers.

        One forward pass for the rows that name references, and one for the others.

        Args:
            rows: prompts. Inside a recall, at most one answer of a row may have more than one token, or all must be equal up
                to the last one: a recall follows text, and no tree of answers.
            answers: token ids of each answer to each row, at least one.
            bank: of the memories of the references that rows name.
            cache: an empty `transformers.Cache` that is filled with the prompts, and behind them the answers; for rows that
                name no references.

        Raises:
            ConfigError: rows name references, and there is no bank or there is a cache.
        """
        if any(row.references for row in rows) and (bank is None or cache is not None):
            raise ConfigError("rows that name references are read from a bank, and into no cache")
        found: list[list[Score]] = [[] for _ in rows]
        for reading in (True, False):
            mine = [n for n, row in enumerate(rows) if bool(row.references) == reading]
            if mine:
                some, theirs = [rows[n] for n in mine], [answers[n] for n in mine]
                for n, scores in zip(mine, self._pass(some, theirs, bank if reading else None, cache), strict=True):
                    found[n] = scores
        return found

    def _pass(
        self, rows: Sequence[PromptRow], answers: Sequence[Sequence[Sequence[int]]], bank: Memories | None, cache: Any
    ) -> list[list[Score]]:
        laid = _Layout([row.tokens for row in rows], answers, self._prompts.pad_id)
        positions, options = laid.positions, {} if cache is None else {"past_key_values": cache}
        if bank is None:
            logits = self._logits(laid, positions, options)
        else:
            reading, positions = self._reading(bank, rows, laid)
            with attached(self._model):
                logits = self._logits(laid, positions, options | {"memory3": reading})
        return [
            [_score(logits[n, columns], answer) for answer, columns in zip(mine, laid.columns[n], strict=True)]
            for n, mine in enumerate(answers)
        ]

    def _logits(self, laid: _Layout, positions: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        """``[B, 1 + columns behind the prompts, V]``, the first those of each prompt's last token."""
        device, dtype = self._model.device, self._model.dtype
        mask = laid.mask
        if laid.seen is not None:
            mask = additive(laid.seen, dtype)[:, None]
        keep = laid.tokens.shape[1] - laid.end + 1
        tokens = laid.tokens.to(device)
        return last_logits(self._model, tokens, mask.to(device), keep, positions=positions.to(device), **options)

    def _reading(self, bank: Memories, rows: Sequence[PromptRow], laid: _Layout) -> tuple[Reading, torch.Tensor]:
        """Reader of these prompts and of all that follows them, and positions with room for the memories."""
        frame, length = self._prompts.frame, self._encoder.config.reference_length
        places = [frame.place(row.tokens) for row in rows]
        names = list(dict.fromkeys(name for row in rows for name in row.references))
        batch = self._encoder.lay_out(
            [row.references for row in rows],
            dict(zip(names, bank.memories(names, device=self._model.device), strict=True)),
            [place.moved(len(frame.prefix)) for place in places],
            [place.missing for place in places],
        )
        width = laid.tokens.shape[1]
        columns = torch.arange(width).expand(len(rows), -1)
        first = torch.tensor([laid.end - len(row.tokens) + place.split for row, place in zip(rows, places, strict=True)])
        behind = columns >= first[:, None]
        shift = torch.tensor([place.room(length) for place in places])[:, None]
        table = torch.where(behind, torch.arange(len(rows))[:, None] * width + columns, -1)
        table = table[:, int(first.min()) :]  # columns in front of every row's memories belong to no chunk
        return Reading(batch, table.to(self._model.device)), torch.where(behind, laid.positions + shift, laid.positions)


class _Layout:
    """Prompts that end at one column, and their answers behind them without the last token of each.

    Attributes:
        tokens, positions, mask: int64 ``[B, T]``; the mask is 0 for padding, which stands on both sides.
        end: column behind the prompts.
        columns: for every row and answer, which of the logits from the prompt's last token on choose its tokens.
        seen: bool ``[B, T, T]``, what each token sees; None where every row is one text, so that the mask says it.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], pad: int) -> None:
        self.end = max(map(len, prompts))
        starts: list[dict[tuple[int, ...], int]] = []
        for choices in answers:
            at, mine = self.end, {}
            for fed in dict.fromkeys(tuple(choice[:-1]) for choice in choices):
                mine[fed] = at
                at += len(fed)
            starts.append(mine)
        width = max((at + len(fed) for mine in starts for fed, at in mine.items()), default=self.end)
        behind = torch.full((len(prompts), width - self.end), pad)
        self.tokens = torch.cat([left_padded(prompts, pad), behind], dim=1)
        self.mask, self.positions = torch.zeros_like(self.tokens), torch.zeros_like(self.tokens)
        self.columns: list[list[list[int]]] = []
        for n, (prompt, mine) in enumerate(zip(prompts, starts, strict=True)):
            size = len(prompt)
            self.mask[n, self.end - size : self.end] = 1
            self.positions[n, self.end - size : self.end] = torch.arange(size)
            for fed, at in mine.items():
                self.tokens[n, at : at + len(fed)] = torch.tensor(fed, dtype=torch.int64)
                self.mask[n, at : at + len(fed)] = 1
                self.positions[n, at : at + len(fed)] = size + torch.arange(len(fed))
            places = [(mine[tuple(choice[:-1])], len(choice) - 1) for choice in answers[n]]
            # column 0 is the prompt's last token
            self.columns.append([[0, *range(at - self.end + 1, at - self.end + 1 + fed)] for at, fed in places])
        self.seen = None
        if any(sum(map(bool, mine)) > 1 for mine in starts):
            self.seen = self._tree([len(prompt) for prompt in prompts], starts)

    def _tree(self, sizes: Sequence[int], starts: Sequence[dict[tuple[int, ...], int]]) -> torch.Tensor:
        width = self.tokens.shape[1]
        seen = torch.eye(width, dtype=torch.bool).repeat(len(sizes), 1, 1)  # padding sees itself: no row may see nothing
        for n, (size, mine) in enumerate(zip(sizes, starts, strict=True)):
            first = self.end - size
            seen[n, first : self.end, first : self.end] = torch.ones(size, size, dtype=torch.bool).tril()
            for fed, at in mine.items():
                last = at + len(fed)
                seen[n, at:last, first : self.end] = True
                seen[n, at:last, at:last] = torch.ones(len(fed), len(fed), dtype=torch.bool).tril()
        return seen


def _score(logits: torch.Tensor, answer: Sequence[int]) -> Score:
    """Of one answer, by the logits ``[S, V]`` of the token before each of its own."""
    wanted = torch.tensor(list(answer), device=logits.device)
    logs = log_probabilities(logits)
    each = logs.gather(1, wanted[:, None])
    return Score(float(each.sum()), bool((logs.argmax(-1) == wanted).all()), len(answer), float(each.min()))
