"""Write: references become memories in one batched forward pass that ends at the last memory layer.

Each reference stands behind the prefix and sees only it and itself. The prefix is the same for all, so its keys and values are
computed once and put in front of every layer's. A selector that `repeats` adds a second stretch to the same pass: a cue and
the reference once more, whose queries tell which tokens matter.

    tokens      prefix | reference (padding masked) | cue, reference again
    positions   0..b-1    | b..b+S-1                   | b+128..

Symbols: N references, S tokens of the longest, L memory layers, H KV heads, d head dimension, b tokens of the prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
import xxhash
from transformers import PreTrainedModel

from memory3.attention.attach import Seen, StopForward, attached
from memory3.attention.attend import attention_with_lse, masked
from memory3.attention.layout import gather_memories
from memory3.config import Budget, MemoryConfig
from memory3.encode.budget import choose
from memory3.encode.mass import fitted_biases, watched_products
from memory3.encode.selectors import LayerView, Selector, selector
from memory3.encode.stopping import check_stopped
from memory3.errors import InputError, ModelError
from memory3.models.frame import Frame
from memory3.models.geometry import ModelGeometry
from memory3.types import Memory, MemoryBatch, MemoryShape, Provenance, Reference

__all__ = ["Dense", "Encoder", "cut"]

KeyValues = tuple[torch.Tensor, torch.Tensor]
#: Tokens of one pass on a CPU, with padding. Of 16 references of 28 to 128 tokens, one pass took 790 ms of a thread for each,
#: passes of 8 took 548, of 4 and of 2 511 (an AMD EPYC).
_CPU_TOKENS = 512


class _Write:
    """Reader of the writing pass: attention behind the prefix, scores and key-values of the memory layers on the way.

    ``later``: the column where queries begin to count, and bool ``[N, T]``, which of them are no padding. ``positions``: int64
    ``[T]``. ``windows``: `ModelGeometry.windows`.
    """

    def __init__(
        self,
        prefix: Sequence[KeyValues],
        memory_layers: Sequence[int],
        selectors: Sequence[Selector],
        lengths: torch.Tensor,
        span: int,
        later: tuple[int, torch.Tensor] | None,
        angles: Sequence[torch.Tensor],
        positions: torch.Tensor,
        windows: Mapping[int, torch.Tensor],
        seeds: tuple[int, ...],
        weighs: bool,
    ) -> None:
        self.prefix = prefix
        self.memory_layers = frozenset(memory_layers)
        self.last = max(memory_layers)
        self.selectors = selectors
        self.lengths = lengths
        self.span = span
        self.later = later
        self.angles = angles
        self.positions = positions
        self.windows = windows
        self.seeds = seeds
        self.weighs = weighs
        self.bias: dict[int, torch.Tensor] = {}  # by window; layers that have the same share it
        # By layer: where activations are recomputed for the gradient, a layer is seen twice.
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.scores: list[dict[int, torch.Tensor]] = [{} for _ in selectors]
        self.products: dict[int, torch.Tensor] = {}

    def _mask(self, query: torch.Tensor, before: int, window: torch.Tensor | None) -> torch.Tensor:
        """``[N or 1, 1, T, b + T]``: all of the prefix, causal after it, padding of the reference hidden from what follows;
        all within the layer's window.
        """
        tokens, device = query.shape[2], query.device
        blocked = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)[None]
        if self.later is not None:
            at = torch.arange(tokens, device=device)
            padding = (at >= self.lengths[:, None]) & (at < self.span)
            # A padded token still sees itself: a row that sees nothing is what kernels stumble over.
            blocked = blocked | (padding[:, None, :] & (at[:, None] != at))
        bias = torch.zeros(blocked.shape[0], 1, tokens, before + tokens, dtype=query.dtype, device=device)
        bias[..., before:].masked_fill_(blocked[:, None], masked(query.dtype))
        if window is not None:
            places = torch.cat([torch.arange(before, device=device), self.positions])
            bias.masked_fill_(~window[self.positions[:, None], places], masked(query.dtype))
        return bias

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        causal: bool,
        scale: float,
    ) -> torch.Tensor | None:
        check_stopped()
        first_key, first_value = self.prefix[layer]
        window = self.windows.get(layer)
        if id(window) not in self.bias:
            self.bias[id(window)] = self._mask(query, first_key.shape[1], window)
        memory_layer = layer in self.memory_layers
        if memory_layer:
            self.keys[layer] = key[:, :, : self.span]
            self.values[layer] = value[:, :, : self.span]
        out = lse = None
        if layer != self.last or self.later is not None:
            rows = key.shape[0]
            all_keys = torch.cat([first_key.expand(rows, -1, -1, -1), key], dim=2)
            all_values = torch.cat([first_value.expand(rows, -1, -1, -1), value], dim=2)
            out, lse = attention_with_lse(query, all_keys, all_values, self.bias[id(window)], scale=scale)
        if memory_layer and self.selectors:
            view = LayerView(
                layer=layer,
                query=query[:, :, : self.span],
                key=key[:, :, : self.span],
                value=value[:, :, : self.span],
                lengths=self.lengths,
                offset=int(self.positions[0]),
                inv_freq=self.angles[layer],
                scale=scale,
                seeds=self.seeds,
            )
            if self.later is not None and lse is not None:
                start, real = self.later
                later_lse = lse[:, :, start:].masked_fill(~real[:, None], torch.inf)
                view = replace(view, later_query=query[:, :, start:], later_lse=later_lse)
            with torch.no_grad():  # which tokens are kept is a choice, not a number one could improve by a little
                for selector, scores in zip(self.selectors, self.scores, strict=True):
                    scores[layer] = selector.score(view)
                if self.weighs:
                    self.products[layer] = watched_products(view)
        if layer == self.last:
            raise StopForward
        return out


@dataclass(frozen=True)
class Dense:
    """All key-values of some references in the memory layers, and how important they are, on the model's device.

    Attributes:
        keys, values: ``[N, L, H, S, d]``.
        scores: float32 ``[N, L, H, S]``, one tensor per selector.
        lengths: int64 ``[N]``.
        products: float32 ``[N, L, H, S, S]``, what biases are fitted to (`memory3.encode.mass`); None where they are not
            wanted.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scores: Sequence[torch.Tensor]
    lengths: torch.Tensor
    products: torch.Tensor | None = None


class Encoder:
    """Turns references into memories with one model.

    Attributes:
        shape: of every memory it writes.
        prefix: keys and values ``[H, b, d]`` of the prefix for every layer of the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: ModelGeometry,
        frame: Frame,
        config: MemoryConfig,
        weights: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        """``weights``: of selector ``learned``, by layer."""
        self.model = model
        self.frame = frame
        self.config = config
        self.geometry = geometry
        layers = geometry.memory_layers(config)
        kv_heads = geometry.kv_heads
        self.shape = MemoryShape(
            layers=layers,
            kv_heads=kv_heads,
            head_dim=geometry.head_dim,
            pairs=config.budget.pairs(len(layers) * kv_heads, config.reference_length),
            dtype=config.dtype,
            biases=config.biases,
        )
        self._selector = selector(config.selector, weights)
        needed = len(frame.prefix) + 2 * config.reference_length + len(frame.repeat)
        if needed > geometry.max_positions:
            raise ModelError(
                f"references of {config.reference_length} tokens behind a prefix of {len(frame.prefix)} need {needed} "
                f"positions, the model has {geometry.max_positions}: lower reference_length"
            )
        with torch.no_grad():
            self.prefix = self._encode_prefix()

    def _encode_prefix(self) -> list[KeyValues]:
        seen = Seen()
        tokens = torch.tensor([self.frame.prefix], device=self.model.device)
        with attached(self.model):
            self.geometry.base(tokens, use_cache=False, memory3=seen)
        return [(key[0], value[0]) for _, (_, key, value, _) in sorted(seen.layers.items())]

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        """Memories of the references, in their order; one forward pass, or on a CPU some small ones.

        Raises:
            InputError: a reference without tokens, or longer than ``reference_length``.
        """
        [memories] = self.encode_at(references, [self.config.budget])
        return memories

    def encode_at(self, references: Sequence[Reference], budgets: Sequence[Budget]) -> list[list[Memory]]:
        """What `encode` would give under each of some budgets, in the order of the budgets; a reference is read once for all.

        Args:
            references: in any order.
            budgets: that are spent on the same scores.

        Raises:
            InputError: as `encode`.
        """
        selectors = (self._selector,) if any(map(self._leaves_out, budgets)) else ()
        found: list[list[Memory | None]] = [[None] * len(references) for _ in budgets]
        for places in _passes([len(reference.token_ids) for reference in references], self.model.device):
            some = [references[place] for place in places]
            dense = self.dense(some, selectors)
            for memories, budget in zip(found, budgets, strict=True):
                for place, memory in zip(places, self._spent(dense, some, budget), strict=True):
                    memories[place] = memory
        return [[memory for memory in memories if memory is not None] for memories in found]

    def _spent(self, dense: Dense, references: Sequence[Reference], budget: Budget) -> list[Memory]:
        kept = self._choose(dense, budget)
        if not bool(torch.isfinite(dense.keys[kept]).all()):
            raise ModelError("the model computes keys that are not finite; is its dtype too narrow for its weights?")
        memories = cut(dense.keys, dense.values, kept, self.shape.torch_dtype, biases=self._biases(dense, kept))
        return [
            replace(memory, tokens=np.asarray(reference.token_ids, np.uint32), provenance=self._provenance(reference, budget))
            for memory, reference in zip(memories, references, strict=True)
        ]

    def _provenance(self, reference: Reference, budget: Budget) -> Provenance:
        """Of a memory of one reference. The fingerprint, which costs a look at every weight, is left to those who know it."""
        return Provenance(
            document_id=reference.document_id,
            start=reference.start,
            end=reference.end,
            reference_ids=(reference.id,),
            budget=str(budget),
            selector=self.config.selector,
        )

    def lay_out(
        self, references: Sequence[Sequence[str]], memories: Mapping[str, Memory], moved: Sequence[int], missing: Sequence[int]
    ) -> MemoryBatch:
        """What chunks read, on the model's device and arranged as the settings say
        (`memory3.attention.layout.gather_memories`).

        Args:
            references: per chunk, ids, most similar first.
            memories: by id.
            moved: per chunk, by how many positions memories move from where they were written.
            missing: per chunk, how many tokens of the prefix its prompt lacks.
        """
        return gather_memories(
            references,
            memories,
            self.shape,
            dtype=self.model.dtype,
            device=self.model.device,
            inv_freq=self.geometry.angles,
            moved=moved,
            arrangement=self.config.arrangement,
            span=self.config.reference_length,
            temperature=self.config.memory_temperature,
            rank_discount=self.config.rank_discount,
            prefix=self.prefix,
            prefix_tokens=missing,
        )

    def encode_with_gradients(self, references: Sequence[Reference]) -> list[Memory]:
        """What `encode` gives, for training: gradients flow through the keys and values that are kept (arXiv 2407.01178,
        section 5).

        They stay on the model's device and in its dtype. `prefix` is computed anew, with gradients too. A selector that
        `repeats` chooses in a pass of its own, so that nothing of the repetition has to be held for the gradient.

        Raises:
            InputError: as `encode`.
        """
        if not references:
            self.prefix = self._encode_prefix()
            return []
        dense, kept, biases = self._dense_and_kept(references)
        return cut(dense.keys, dense.values, kept, dense.keys.dtype, dense.keys.device, biases)

    def encode_kept_and_whole(self, references: Sequence[Reference]) -> tuple[list[Memory], list[Memory]]:
        """What `encode_with_gradients` gives, of one reference or more, and beside it memories of every pair, without
        gradients.

        Raises:
            InputError: as `encode`.
        """
        dense, kept, biases = self._dense_and_kept(references)
        dtype, device = dense.keys.dtype, dense.keys.device
        every = torch.arange(kept.shape[-1], device=device) < dense.lengths[:, None, None, None]
        whole = cut(dense.keys.detach(), dense.values.detach(), every.expand_as(kept), dtype, device)
        return cut(dense.keys, dense.values, kept, dtype, device, biases), whole

    def _dense_and_kept(self, references: Sequence[Reference]) -> tuple[Dense, torch.Tensor, torch.Tensor | None]:
        """All pairs with gradients, which of them are kept, and their biases."""
        self.prefix = self._encode_prefix()
        selectors = self._selectors
        if not self._repeats(selectors):
            dense = self._dense(references, selectors)
            kept = self._choose(dense, self.config.budget)
            return dense, kept, self._biases(dense, kept)
        chosen = self.dense(references, selectors)
        kept = self._choose(chosen, self.config.budget)
        return self._dense(references, (), weighs=False), kept, self._biases(chosen, kept)

    def _repeats(self, selectors: Sequence[Selector]) -> bool:
        """Whether references are read twice, since something is fitted to what the second reading looks at."""
        return any(selector.repeats for selector in selectors) or (self.config.biases and len(selectors) > 0)

    def _biases(self, dense: Dense, kept: torch.Tensor) -> torch.Tensor | None:
        """float32 ``[N, L, H, S]``, 0 where everything is kept; None where the settings want none."""
        if not self.config.biases:
            return None
        if dense.products is None:
            return torch.zeros_like(kept, dtype=torch.float32)
        return fitted_biases(dense.products, kept)

    @property
    def _selectors(self) -> tuple[Selector, ...]:
        """The one that chooses; none where everything is kept."""
        return (self._selector,) if self._leaves_out(self.config.budget) else ()

    def _leaves_out(self, budget: Budget) -> bool:
        """Whether a budget is too small for every token of every head."""
        return budget.tokens_per_head(self.config.reference_length) != self.config.reference_length

    def _choose(self, dense: Dense, budget: Budget) -> torch.Tensor:
        """bool ``[N, L, H, S]``: which pairs are kept."""
        scores = dense.scores[0] if dense.scores else dense.keys.new_zeros(dense.keys.shape[:-1], dtype=torch.float32)
        return choose(scores, dense.lengths, budget, self.config.reference_length)

    @torch.no_grad()
    def dense(
        self, references: Sequence[Reference], selectors: Sequence[Selector], *, asked: Sequence[Sequence[int]] | None = None
    ) -> Dense:
        """Everything a memory is cut from; one forward pass.

        Args:
            references: one or more.
            selectors: whose scores are wanted.
            asked: per reference, tokens that are read after it in place of its repetition: what they look at is the score.

        Raises:
            InputError: as `encode`.
        """
        return self._dense(references, selectors, asked)

    def _dense(
        self,
        references: Sequence[Reference],
        selectors: Sequence[Selector],
        asked: Sequence[Sequence[int]] | None = None,
        *,
        weighs: bool | None = None,
    ) -> Dense:
        """`dense`, with gradients where they are enabled. ``weighs``: whether biases will be fitted; None: as the settings
        say, where anything is left out.
        """
        weighs = self.config.biases and len(selectors) > 0 if weighs is None else weighs
        for reference in references:
            if not 0 < len(reference.token_ids) <= self.config.reference_length:
                raise InputError(
                    f"reference {reference.id!r} has {len(reference.token_ids)} tokens: 1 to "
                    f"{self.config.reference_length} can be encoded"
                )
        device, first = self.model.device, len(self.frame.prefix)
        token_ids = [list(r.token_ids) for r in references]
        tokens, real = _padded(token_ids, device)
        lengths, span = real.sum(1), tokens.shape[1]
        positions = torch.arange(first, first + span, device=device)
        later = None
        if self._repeats(selectors):
            cue = torch.tensor([() if asked is not None else self.frame.repeat], dtype=torch.int64, device=device)
            then, counted = _padded(token_ids if asked is None else asked, device)
            later = (span + cue.shape[1], counted)
            tokens = torch.cat([tokens, cue.expand(len(references), -1), then], dim=1)
            again = first + self.config.reference_length
            positions = torch.cat([positions, torch.arange(again, again + tokens.shape[1] - span, device=device)])
        seeds = tuple(xxhash.xxh3_64_intdigest(repr(t).encode()) % 2**31 for t in token_ids)
        angles, windows = self.geometry.angles, self.geometry.windows(self.model, int(positions[-1]) + 1)
        layers = self.shape.layers
        reader = _Write(self.prefix, layers, selectors, lengths, span, later, angles, positions, windows, seeds, weighs)
        # The mask is the reader's own affair; a ready-made four-dimensional one keeps transformers from building another.
        unused = torch.zeros(1, 1, 1, 1, dtype=self.model.dtype, device=device)
        with attached(self.model), suppress(StopForward):
            self.geometry.base(tokens, attention_mask=unused, position_ids=positions[None], use_cache=False, memory3=reader)
        keys, values, *scores = (
            torch.stack([of[layer] for layer in self.shape.layers], dim=1)
            for of in (reader.keys, reader.values, *reader.scores)
        )
        products = torch.stack([reader.products[layer] for layer in layers], dim=1) if weighs else None
        return Dense(keys, values, [some.float() for some in scores], lengths, products)


def cut(
    keys: torch.Tensor,
    values: torch.Tensor,
    kept: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    biases: torch.Tensor | None = None,
) -> list[Memory]:
    """One memory per reference, of the kept pairs.

    Args:
        keys, values: of whole references, ``[N, L, H, S, d]``.
        kept: bool ``[N, L, H, S]``.
        dtype: of the memories.
        device: where they are wanted.
        biases: float32 ``[N, L, H, S]``; None: they have none.
    """
    flat_biases = None if biases is None else biases[kept].to(device)
    flat_keys, flat_values = keys[kept].to(device, dtype), values[kept].to(device, dtype)
    counts = kept.sum(dim=-1).to("cpu").numpy().astype("uint16")  # [N, L, H]
    positions = kept.nonzero()[:, -1].to("cpu").numpy().astype("uint16")
    memories, start = [], 0
    for count in counts:
        mine = slice(start, start + int(count.sum()))
        memories.append(
            Memory(
                counts=count,
                positions=positions[mine].copy(),
                keys=flat_keys[mine].clone(),
                values=flat_values[mine].clone(),
                biases=None if flat_biases is None else flat_biases[mine].clone(),
            )
        )
        start = mine.stop
    return memories


def _passes(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Places of the references that go through the model together, each place once.

    A GPU is given all at once. For a CPU those of like length, so that there is little padding, and no more than what its
    cache holds of the widest layer.
    """
    if device.type != "cpu":
        return [list(range(len(lengths)))] if lengths else []
    passes: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not passes or (len(passes[-1]) + 1) * lengths[passes[-1][0]] > _CPU_TOKENS:
            passes.append([])
        passes[-1].append(place)
    return passes


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 ``[N, T]``, zero beyond the end of each row, and bool ``[N, T]``, where they are not."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
