"""Proof: at attach, a model shows that it reads from memories what it reads from the same text.

Two rows are read at once, the longer by two whole memories, the shorter by one, and its last token is decoded; the
model's own forward pass over the same text is the twin (`memory3.parity`).

What a model does that memory3 does not know of (an attention of its own, logits that are capped, sinks, rotations of
another kind) differs here. A proof is kept by the model's fingerprint, the versions and the device, so that each model
does it once.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from memory3.errors import Memory3Error, ModelError, UnsupportedModel
from memory3.files import read_json, write_atomically
from memory3.models.calibrated import own_calibrated
from memory3.models.geometry import ModelGeometry
from memory3.models.sizes import config_value
from memory3.parity import ParityText, from_memories, from_text, in_one_and_in_two

__all__ = ["Proof", "prove", "proven"]

#: Raised when the proof asks for more than it did.
VERSION = 1
#: Tokens of a reference; more where that shows a window, at most so many.
_SPAN, _MOST = 12, 96
_QUESTION = 7
#: Largest difference of logits that is rounding, as a share of their spread. Measured on SmolLM2-135M: float32 2e-5,
#: float16 0.02, bfloat16 0.18.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}

_PROVEN: dict[str, Proof] = {}


@dataclass(frozen=True)
class Proof:
    """How far memories are from text.

    Attributes:
        difference: of a logit, the largest of a place; of places the median, in the row where that is larger: where
            experts are chosen, rounding alone may turn a few places.
        spread: standard deviation of the text's logits.
        same: share of places whose next token is the same.
    """

    difference: float
    spread: float
    same: float

    @property
    def share(self) -> float:
        """The difference as a share of the spread."""
        return self.difference / max(self.spread, 1e-30)


def proven(model: PreTrainedModel, shape: ModelGeometry, tokenizer: Any, fingerprint: str) -> Proof:
    """What `prove` found, asked once for each fingerprint on this machine.

    It is kept in the process and in the cache folder, ``proofs/``.

    Args:
        model: the model in memory.
        shape: its geometry.
        tokenizer: its tokenizer.
        fingerprint: of the model with its settings.

    Raises:
        UnsupportedModel: memories and their text are read differently.
        ModelError: what the model computes is not finite.
    """
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    versions = [version(name) for name in ("memory3", "transformers", "torch")]
    what = [VERSION, fingerprint, *versions, str(model.dtype), device, str(model.config._attn_implementation)]
    key = xxhash.xxh3_128_hexdigest(json.dumps(what).encode())
    if key not in _PROVEN:
        path = own_calibrated("proofs", f"{key}.json")
        try:
            said = read_json(path)
            _PROVEN[key] = Proof(**{name: float(said[name]) for name in ("difference", "spread", "same")})
        except (OSError, ValueError, KeyError, TypeError):  # not kept yet, or not whole
            _PROVEN[key] = proof = prove(model, shape, tokenizer)
            with suppress(OSError):  # a cache that cannot be written costs the next process a second
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps({**asdict(proof), "of": what}) + "\n")
    return _PROVEN[key]


@torch.no_grad()
def prove(model: PreTrainedModel, shape: ModelGeometry, tokenizer: Any) -> Proof:
    """Read memories and the same text with this model, and compare.

    Args:
        model: the model in memory.
        shape: its geometry.
        tokenizer: its tokenizer.

    Raises:
        UnsupportedModel: they differ by more than rounding; the message has the figures.
        ModelError: what the model computes is not finite.
    """
    text = _text(model, shape)
    try:
        read = torch.cat(from_memories(model, shape, tokenizer, text, [text.rows]))
        said = torch.cat(from_text(model, shape, text))
    except Memory3Error:
        raise
    except Exception as error:  # the model's own code: whatever it raises, say whose it is
        raise UnsupportedModel(
            f"{shape.name} cannot read memories, or their text in its own way ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]})"
        ) from error
    if not bool(said.isfinite().all()):
        raise ModelError(f"{shape.name} computes logits that are not finite; is its dtype too narrow for its weights?")
    proof = Proof(_difference(read, said, text), float(said.std()), float((read.argmax(-1) == said.argmax(-1)).float().mean()))
    most = _TOLERANCE.get(model.dtype, max(_TOLERANCE.values()))
    if not proof.share <= most:  # where weights or what they are multiplied with are coarse, the model itself is no more exact
        most = max(most, 5 * _noise(model, text) / max(proof.spread, 1e-30))
    if not proof.share <= most:
        raise UnsupportedModel(
            f"{shape.name} does not read from memories what it reads from the same text: logits differ by "
            f"{proof.difference:.2g}, "
            f"{proof.share:.1%} of their spread (at most {most:.1%} is rounding), and the next token is the same in "
            f"{proof.same:.0%} of places. "
            "Its attention does something that memory3 does not know of; use another model"
        )
    return proof


def _difference(read: torch.Tensor, said: torch.Tensor, text: ParityText) -> float:
    """As `Proof.difference` says it."""
    rows = (read - said).abs().amax(-1).split([len(text.question), len(text.short)])
    return max(float(row.median()) for row in rows)


def _noise(model: PreTrainedModel, text: ParityText) -> float:
    """How far the model's own logits of a question are from themselves when the text in front was read before: the median
    of places.
    """
    whole, parts = in_one_and_in_two(model, text)
    return float((whole - parts).abs().amax(-1).median())


def _text(model: PreTrainedModel, shape: ModelGeometry) -> ParityText:
    """Two tokens of a prefix, two references of some tokens each, and a question."""
    config = model.config.get_text_config()
    widths = [config_value(config, name) for name in ("sliding_window", "attention_chunk_size")]
    shown = [width + 4 for width in widths if isinstance(width, int) and _SPAN < width + 4 <= _MOST]
    span = max(shown) if shown and len(shape.full_layers) < shape.num_layers else _SPAN
    # Any tokens do; those of no special meaning are most of a vocabulary, so that a stride finds some.
    ids = [(7919 * n + 101) % config.vocab_size for n in range(2 + 2 * span + _QUESTION)]
    return ParityText(ids[:2], ids[2 : 2 + span], ids[2 + span : 2 + 2 * span], ids[2 + 2 * span :])
