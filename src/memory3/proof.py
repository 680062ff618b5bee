"""Proof: at attach, a model shows that it reads from memories what it reads from the same text.

Two rows are read at once, the longer by two whole memories, the shorter by one, and its last token is decoded; the
model's own forward pass over the same text, with its own attention, is the twin. In the longer row's text each reference
stands behind its own prefix and sees nothing of the other (a block mask):

    tokens      prefix | second | prefix | best | question
    positions   0..b-1    | b..    | S..       | S+b..| 2S+b..

What a model does that memory3 does not know of (an attention of its own, logits that are capped, sinks, rotations of
another kind) differs here. A proof is kept by the model's fingerprint, the versions and the device, so that each model
does it once.

Symbols: b tokens of the prefix, S of each reference, Q of the question, V of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from memory3.attention.attach import attached
from memory3.attention.attend import additive
from memory3.config import Budget, MemoryConfig
from memory3.encode.encoder import Encoder
from memory3.errors import Memory3Error, ModelError, UnsupportedModel
from memory3.files import read_json, write_atomically
from memory3.models.calibrated import own_calibrated
from memory3.models.frame import Frame
from memory3.models.geometry import ModelGeometry
from memory3.models.sizes import config_value
from memory3.recall.generate import Recall
from memory3.recall.retrieval import Retrieval, retrievals
from memory3.types import Memory, Reference

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
    text = _Text.of(model, shape)
    try:
        read, said = _read(model, shape, tokenizer, text), _plain(model, shape, text)
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


def _difference(read: torch.Tensor, said: torch.Tensor, text: _Text) -> float:
    """As `Proof.difference` says it."""
    rows = (read - said).abs().amax(-1).split([len(text.question), len(text.short)])
    return max(float(row.median()) for row in rows)


def _noise(model: PreTrainedModel, text: _Text) -> float:
    """How far the model's own logits of a question are from themselves when the text in front was read before, into its
    own cache: the median of places.
    """
    ids = torch.tensor([[*text.prefix, *text.best, *text.short]], device=model.device)
    behind = len(text.short)
    forward: Any = model
    with _own_attention(model):
        whole = forward(input_ids=ids, use_cache=False).logits[0, -behind:].float()
        front = forward(input_ids=ids[:, :-behind], use_cache=True).past_key_values
        parts = forward(input_ids=ids[:, -behind:], past_key_values=front, use_cache=True).logits[0].float()
    return float((whole - parts).abs().amax(-1).median())


@dataclass(frozen=True)
class _Text:
    """What is read: the prefix ``[b]``, the ``best`` and the ``second`` reference ``[S]`` each, and the ``question``
    ``[Q]``.
    """

    prefix: list[int]
    best: list[int]
    second: list[int]
    question: list[int]

    @classmethod
    def of(cls, model: PreTrainedModel, shape: ModelGeometry) -> _Text:
        config = model.config.get_text_config()
        widths = [config_value(config, name) for name in ("sliding_window", "attention_chunk_size")]
        shown = [width + 4 for width in widths if isinstance(width, int) and _SPAN < width + 4 <= _MOST]
        span = max(shown) if shown and len(shape.full_layers) < shape.num_layers else _SPAN
        # Any tokens do; those of no special meaning are most of a vocabulary, so that a stride finds some.
        ids = [(7919 * n + 101) % config.vocab_size for n in range(2 + 2 * span + _QUESTION)]
        return cls(ids[:2], ids[2 : 2 + span], ids[2 + span : 2 + 2 * span], ids[2 + 2 * span :])

    @property
    def short(self) -> list[int]:
        """The question of the row that reads the best alone."""
        return self.question[3:]


class _Memories:
    """A `memory3.recall.retrieval.MemorySource` of the two."""

    live = True  # made of the weights as they are

    def __init__(self, memories: Sequence[Memory]) -> None:
        self._memories = dict(zip(("best", "second"), memories, strict=True))

    def search(self, queries: Sequence[str], k: int, where: Mapping[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """Never asked: chunks name what they read."""
        raise AssertionError("a proof names the references it reads")

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        return [self._memories[name] for name in reference_ids]

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        return len(self._memories)


def _read(model: PreTrainedModel, shape: ModelGeometry, tokenizer: Any, text: _Text) -> torch.Tensor:
    """Logits of both questions, float32 ``[2 Q - 3, V]``, from memories of every pair in every layer that can have some."""
    settings = MemoryConfig(
        reference_length=len(text.best),
        budget=Budget("all"),
        layers=shape.full_layers,
        selector="first",
        dtype="float32",
        memory_temperature=1.0,
        chunk_length=512,
    )
    frame = Frame((), tuple(text.prefix), (), (), (), (), (), (), frozenset())
    encoder = Encoder(model, shape, frame, settings)
    names = ("best", "second")
    tokens = (text.best, text.second)
    written = [Reference(n, n, 0, 0, 0, "", tuple(ids)) for n, ids in zip(names, tokens, strict=True)]
    recall = Recall(
        model,
        shape,
        tokenizer,
        encoder,
        _Memories(encoder.encode(written)),
        retrievals(Retrieval(2), chunk_references=[[["best", "second"]], [["best"]]]),
        chunk_length=settings.chunk_length,
    )
    padding = len(text.question) - len(text.short)
    rows = torch.tensor([text.question, [0] * padding + text.short], device=model.device)
    mask = torch.ones_like(rows)
    mask[1, :padding] = 0
    forward: Any = model
    with recall:
        first = forward(input_ids=rows[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
        last = forward(input_ids=rows[:, -1:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True)
    logits = torch.cat([first.logits, last.logits], dim=1).float()
    return torch.cat([logits[0], logits[1, padding:]])


def _plain(model: PreTrainedModel, shape: ModelGeometry, text: _Text) -> torch.Tensor:
    """The same by the model's own forward pass over text, with its own attention."""
    first, span, question = len(text.prefix), len(text.best), len(text.question)
    both = [*text.prefix, *text.second, *text.prefix, *text.best, *text.question]
    places = [*range(first + span), *range(span, 2 * span + first), *range(2 * span + first, 2 * span + first + question)]
    # Blocks of the text: 0, 1 prefix and second, 2, 3 prefix and best, 4 question.
    block = torch.repeat_interleave(torch.arange(5), torch.tensor((first, span, first, span, question)))
    sees = torch.zeros(5, 5, dtype=torch.bool)
    for reader, blocks in ((0, (0,)), (1, (0, 1)), (2, (2,)), (3, (2, 3)), (4, (1, 2, 3, 4))):
        sees[reader, list(blocks)] = True
    longer = _forward(model, shape, both, places, sees[block[:, None], block], (block == 1) | (block == 3), question)
    short = [*text.prefix, *text.best, *text.short]
    at, everything = torch.arange(len(short)), torch.ones(len(short), len(short), dtype=torch.bool)
    held = (at >= first) & (at < first + span)
    return torch.cat([longer, _forward(model, shape, short, at.tolist(), everything, held, len(text.short))])


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
    elif not bool(sees.all()):
        call |= {"position_ids": at[None], "attention_mask": additive(allowed, model.dtype)[None, None]}
    forward: Any = model
    with _own_attention(model):
        return forward(**call).logits[0, start:].float()


@contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model's attention as it is, or where that takes no mask of ours (flash attention), sdpa.

    Passes without a reader are sdpa's while somebody is attached. Switching by ourselves would take the attention from other
    threads that are attached now.
    """
    if model.config._attn_implementation in ("eager", "sdpa"):
        yield
        return
    with attached(model):
        yield
