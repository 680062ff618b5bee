"""What the bank asks of a model. `memory3.Memory3` is one; the tests have another that needs no language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from memory3.config import MemoryConfig
from memory3.types import Document, Memory, MemoryShape, Reference

if TYPE_CHECKING:
    import torch

__all__ = ["MemoryWriter"]


class MemoryWriter(Protocol):
    """Cuts documents into references and encodes references into memories.

    One that says as ``encoders`` how many threads best call `encode` at once has its references encoded by so many when a
    bank is written; the others have theirs encoded by the thread that writes. Of one that says as ``whole_model`` the
    fingerprint of its model, it is said whether `memory3 check` found its memories good (`memory3.bank.trust`).

    Attributes:
        name: model id or path, recorded in the bank so that a question needs no model name.
        config: the settings memories are written with.
        shape: what all its memories have in common.
        fingerprint: equal for two writers only if their memories are interchangeable.
        token_vectors: embeddings of its tokens.
        batch_size: references `encode` handles best at once.
    """

    @property
    def name(self) -> str:
        """Model id or path."""
        ...

    @property
    def config(self) -> MemoryConfig:
        """The settings memories are written with."""
        ...

    @property
    def shape(self) -> MemoryShape:
        """What all its memories have in common."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two writers only if their memories are interchangeable."""
        ...

    @property
    def token_vectors(self) -> torch.Tensor:
        """The model's embeddings ``[V, e]``: what codecs predict from."""
        ...

    @property
    def batch_size(self) -> int:
        """References `encode` handles best at once."""
        ...

    def split(self, document: Document) -> Iterator[Reference]:
        """The document's references, in order, ordinals from 0. None for an empty text."""
        ...

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        """One memory per reference, in the same order."""
        ...
