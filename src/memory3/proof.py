"""Proof: at attach, a model shows that it reads from memories what it reads from the same text.

Two rows are read at once, the longer by two whole memories, the shorter by one, and its last token is decoded; the model's own forward pass over the same text, with its own
attention, is the twin. In the longer row's text each reference stands behind its own beginning and sees nothing of the other (a block mask):

    tokens      beginning | second | beginning | best | question
    positions   0..b-1    | b..    | S..       | S+b..| 2S+b..

What a model does that memory3 does not know of (an attention of its own, logits that are capped, sinks, rotations of another kind) differs here. A proof is kept by
the model's fingerprint, the versions and the device, so that each model does it once.

Symbols: b tokens of the beginning, S of each reference, Q of the question, V of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from memory3.config import Budget, MemoryConfig
from memory3.errors import Memory3Error, ModelError, UnsupportedModel
from memory3.files import write_atomically
from memory3.maths.attend import masked
from memory3.model.attach import ModelShape
from memory3.model.beginning import Frame
from memory3.model.calibrated import own_calibrated
from memory3.model.encode import Encoder
from memory3.recall import Recall
from memory3.values import Memory, Reference

__all__ = ["Proof", "prove", "proven"]

#: Raised when the proof asks for more than it did.
VERSION = 1
#: Tokens of a reference; more where that shows a window, at most so many.
_SPAN, _MOST = 12, 96
_QUESTION = 7
#: Largest difference of logits, as a share of their spread (standard deviation), by bits of the number format. Measured: docs/log.md.
_TOLERANCE = {64: 1e-3, 32: 1e-3, 16: 0.25}


@dataclass(frozen=True)
class Proof:
    """How far memories are from text.

    Attributes:
        difference: largest of a logit.
        spread: standard deviation of the text's logits.
        same: share of places whose next token is the same.
    """

    difference: float
    spread: float
    same: float
