"""`MemoryCollator`: groups become the tensors of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memory3.errors import InputError
from memory3.prompt import left_padded
from memory3.scoring import IGNORED
from memory3.training.groups import Group
from memory3.types import Reference

__all__ = ["GroupBatch", "MemoryCollator"]


@dataclass(frozen=True)
class GroupBatch:
    """One pass. B rows of T tokens, padded on the left as at serving; the last S tokens may count.

    Attributes:
        kinds: of the groups in it.
        tokens: int64 ``[B, T]``.
        mask: int64 ``[B, T]``, 0 for padding.
        labels: int64 ``[B, S]``: the last S tokens, -100 for those that do not count.
        prompts: each row's tokens without padding.
        answers: how many of each row's last tokens read what they would while being decoded.
        references: every reference of the pass, once.
        reads: ids of the references that each row reads.
        before: float64 ``[B]``: `TrainingRow.before`.
        chunk_reads: ids of the references that each chunk of each row reads; empty where a row's chunks read alike.
    """

    kinds: tuple[str, ...]
    tokens: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[int, ...]
    references: tuple[Reference, ...]
    reads: tuple[tuple[str, ...], ...]
    before: torch.Tensor
    chunk_reads: tuple[tuple[tuple[str, ...], ...], ...] = ()

    @property
    def scored(self) -> int:
        """Tokens that count for the loss."""
        return int((self.labels >= 0).sum())

    def to(self, device: torch.device) -> GroupBatch:
        """The same with its tensors on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "mask", "labels", "before")}
        return GroupBatch(**(vars(self) | moved))


class MemoryCollator:
    """Lays the groups of a pass side by side; a reference that several groups read is encoded once."""

    def __init__(self, pad_id: int) -> None:
        """``pad_id``: the token of padding; it is masked."""
        self._pad_id = pad_id

    def __call__(self, groups: Sequence[Group]) -> GroupBatch:
        """The tensors of one pass.

        Raises:
            InputError: no rows; or rows that read memories beside rows that do not, which stand at other positions.
        """
        rows = [(row, group) for group in groups for row in group.rows]
        if not rows:
            raise InputError("a pass without rows: give the collator at least one group that has some")
        reading = {bool(group.references) for group in groups}
        if len(reading) > 1:
            raise InputError("groups that read memories and groups that do not cannot share a pass")
        chunked = {bool(row.chunks) for row, _ in rows}
        if len(chunked) > 1:
            raise InputError("rows whose chunks read by themselves and rows whose chunks read alike cannot share a pass")
        return GroupBatch(
            kinds=tuple(group.kind for group in groups),
            tokens=left_padded([row.tokens for row, _ in rows], self._pad_id),
            mask=left_padded([[1] * len(row.tokens) for row, _ in rows], 0),
            labels=left_padded([row.tokens[len(row.tokens) - row.scored :] for row, _ in rows], IGNORED),
            prompts=tuple(row.tokens for row, _ in rows),
            answers=tuple(row.answer for row, _ in rows),
            references=tuple(
                Reference(name, name, 0, 0, 0, "", tokens)
                for name, tokens in {name: tokens for group in groups for name, tokens in group.references}.items()
            ),
            reads=tuple(tuple(name for name, _ in group.references) for _, group in rows),
            before=torch.tensor([row.before for row, _ in rows], dtype=torch.float64),
            chunk_reads=tuple(row.chunks for row, _ in rows) if chunked == {True} else (),
        )
