"""Memories that are made inside a training step, and the loss of what reads them.

`Recall` asks its bank for memories in the middle of a forward pass; here the bank encodes them then and there, with gradients.
So a training step reads by the code that serves, and a wrapper around the model (several processes) sees one forward pass; two
where the model teaches itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from memory3 import scoring
from memory3.encode.encoder import Encoder
from memory3.errors import InputError
from memory3.llm import Memory3
from memory3.training.collate import GroupBatch
from memory3.types import Memory, Reference

__all__ = ["LiveMemories", "batch_log_likelihoods", "distilled_loss", "group_loss"]


class LiveMemories:
    """A `memory3.recall.retrieval.MemorySource` of one step: every reference is encoded once, when the first is asked for."""

    #: Made of the weights as they are, which training changes.
    live = True

    def __init__(self, encoder: Encoder, references: Sequence[Reference], *, beside: bool = False) -> None:
        """``beside``: make memories of every pair, too, for `whole`."""
        self._encoder = encoder
        self._references = {reference.id: reference for reference in references}
        self._beside = beside
        self._made: dict[str, Memory] = {}
        self._whole: dict[str, Memory] = {}

    def search(self, queries: Sequence[str], k: int, where: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """Never asked: rows of a step name their references.

        Args:
            queries, k, where: what a bank would be asked.

        Raises:
            AssertionError: always.
        """
        raise AssertionError("a training step names the references it reads")

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """Memories of references, in order, with gradients towards the model's weights.

        Args:
            reference_ids: of this step.
            use_cache: makes no difference: each is encoded once.
            device: makes no difference: they lie where the model does.
        """
        if not self._made:
            some = list(self._references.values())
            if self._beside:
                made, whole = self._encoder.encode_kept_and_whole(some)
                self._whole = dict(zip(self._references, whole, strict=True))
            else:
                made = self._encoder.encode_with_gradients(some)
            self._made = dict(zip(self._references, made, strict=True))
        return [self._made[name] for name in reference_ids]

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many references there are."""
        return len(self._references)

    def whole(self) -> LiveMemories:
        """Every pair of the same references, without gradients; once those that are kept have been asked for."""
        other = LiveMemories(self._encoder, list(self._references.values()))
        other._made = self._whole
        return other


def group_loss(m3: Memory3, model: Any, batch: GroupBatch, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Mean negative log-likelihood, in nats, of the scored tokens of a batch: a scalar.

    Arguments and errors as `batch_log_likelihoods`.

    Args:
        m3: the model with its settings.
        model: what is trained: the same, perhaps wrapped.
        batch: rows with their references.
        dtype: of autocast; None: none.
    """
    return -batch_log_likelihoods(m3, model, batch, dtype).sum() / batch.scored


def batch_log_likelihoods(m3: Memory3, model: Any, batch: GroupBatch, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Log-likelihood, in nats, of each scored token, ``[B, S]``; 0 for tokens that do not count.

    float32 unless the model is float64.

    Where activations are recomputed, the backward pass calls the model's attention again: then both belong inside
    `memory3.attention.attach.attached`.

    Args:
        m3: whose weights ``model`` holds.
        model: called for the forward pass: ``m3.model``, or what wraps it.
        batch: rows that all read memories, or all do not.
        dtype: in which to multiply matrices, whatever the weights are; None: in the weights' own.

    Raises:
        InputError: no token counts.
    """
    source = LiveMemories(m3.encoder, batch.references)
    logits = _logits(m3, model, batch, source, dtype, batch.labels.shape[1] + 1)
    return scoring.token_log_likelihoods(logits[:, :-1], batch.labels)


def distilled_loss(
    m3: Memory3, model: Any, batch: GroupBatch, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`group_loss`, and how far the model that reads the pairs that are kept is from itself reading all of them.

        sum over the tokens of all rows of KL(p(. | all pairs) || p(. | pairs that are kept)) / number of scored tokens

    The references are encoded once for both. No gradient flows through the one that reads all. A question's own tokens tell,
    too, what was lost, and there are many more of them than of its answer. Two scalars, in nats per scored token. Arguments
    and errors as `batch_log_likelihoods`; the batch must read memories.

    Args:
        m3: the model with its settings.
        model: what is trained: the same, perhaps wrapped.
        batch: rows with their references.
        dtype: of autocast; None: none.
    """
    source, width = LiveMemories(m3.encoder, batch.references, beside=True), batch.tokens.shape[1]
    logits = _logits(m3, model, batch, source, dtype, width)
    with torch.no_grad():
        taught = scoring.log_probabilities(_logits(m3, model, batch, source.whole(), dtype, width))
    said = scoring.log_probabilities(logits)
    away = torch.nn.functional.kl_div(said, taught, reduction="none", log_target=True).sum(-1) * batch.mask
    answers = scoring.token_log_likelihoods(logits[:, -batch.labels.shape[1] - 1 : -1], batch.labels)
    return -answers.sum() / batch.scored, away.sum() / batch.scored


def _logits(
    m3: Memory3, model: Any, batch: GroupBatch, source: LiveMemories, dtype: torch.dtype | None, keep: int
) -> torch.Tensor:
    """Of the last ``keep`` tokens, ``[B, keep, V]``."""
    reading: Any = nullcontext()
    if batch.references:
        reading = m3.recall(
            source,
            references=None if batch.chunk_reads else batch.reads,
            chunk_references=batch.chunk_reads or None,
            prompt=batch.prompts,
            answer_tokens=batch.answers,
        )
    if batch.scored < 1:
        raise InputError("no token of this batch counts for the loss: its sequences are too short")
    with reading, torch.autocast(batch.tokens.device.type, dtype, enabled=dtype is not None):
        return scoring.last_logits(model, batch.tokens, batch.mask, keep)
