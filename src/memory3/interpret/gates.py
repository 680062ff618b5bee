"""Gates on a model's edges: 1 leaves an edge as it is, 0 takes it out, and the gradient at 1 says what the first would do.

    attention   h_i <- h_i + W_O sum_j [ g_ij a_ij v_j + (1 - g_ij) m ]
    MLP         h_i <- h_i + g_i MLP(h_i) + (1 - g_i) m

(arXiv 2407.01178, section 2: the attention score, or the activation, is set to 0). m is what stands in for an edge that is
out: nothing, as in the paper, or its mean over texts. The other scores of a row are not raised when one is taken out.

Symbols: B texts, T tokens, A query heads, d head dimension, P kinds of attention edges, R roles, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from memory3.attention.attach import attached
from memory3.errors import UnsupportedModel
from memory3.interpret.parts import Parts

__all__ = ["GatedModel", "Gates", "Means", "Seen"]

#: Difference of logits, as a share of their spread, that is rounding.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class Means:
    """What stands in for edges that are out.

    Attributes:
        attention: by layer, ``[A, P, d]``: the mean of a_ij v_j.
        mlps: by layer, ``[R, D]``.
    """

    attention: Sequence[torch.Tensor]
    mlps: Sequence[torch.Tensor]


@dataclass
class Gates:
    """Of one pass over B texts. Layers that are absent have all their edges.

    Attributes:
        attention: by layer, ``[B, A, T, T]``, the query's place before the key's.
        mlps: by layer, ``[B, T]``.
        means: what stands in for what is out; None: nothing.
        kinds: int64 ``[B, T, T]``, which of the means an attention edge has, -1 above the diagonal; and ``[B, T]`` of MLPs.
    """

    attention: dict[int, torch.Tensor] = field(default_factory=dict)
    mlps: dict[int, torch.Tensor] = field(default_factory=dict)
    means: Means | None = None
    kinds: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass
class Seen:
    """What a pass went through, by layer.

    Attributes:
        scores: ``[B, A, T, T]``, after the softmax.
        values: ``[B, A, T, d]``.
        mlps: ``[B, T, D]``.
    """

    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    mlps: dict[int, torch.Tensor] = field(default_factory=dict)


class GatedModel:
    """A model whose edges can be taken out, one by one.

    It is the model's own forward pass. While one of ours runs, its MLPs have hooks: no other thread may call it.

    Attributes:
        model: the transformers model, unchanged between passes.
        parts: where its edges end.
        layers, heads: L and A.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Look for the edges, and check that they are all there is.

        Args:
            model: in evaluation mode.

        Raises:
            UnsupportedModel: with all edges the model computes something else than by itself, or tokens still see one another
                when all edges are out.
        """
        self.model = model
        self.parts = Parts(model)
        self.layers = len(self.parts.mlps)
        self.heads = 0
        self._check()

    def logits(
        self, tokens: torch.Tensor, places: Sequence[int], gates: Gates | None = None, seen: Seen | None = None
    ) -> torch.Tensor:
        """Logits ``[B, len(places), V]`` of some places of texts of one length.

        Args:
            tokens: int64 ``[B, T]``.
            places: in rising order.
            gates: None: every edge is as it is.
            seen: is filled.
        """
        forward: Any = self.model
        reader = _Reader(gates or Gates(), seen)
        with attached(self.model), _hooked(self.parts.mlps, reader):
            keep = torch.tensor(list(places), device=self.model.device)
            call = {"use_cache": False, "logits_to_keep": keep, "memory3": reader}
            found: torch.Tensor = forward(input_ids=tokens.to(self.model.device), **call).logits
        self.heads = self.heads or reader.heads
        return found

    @torch.no_grad()
    def _check(self) -> None:
        forward: Any = self.model
        name, size = self.parts.name, self.model.config.get_text_config().vocab_size
        tokens = torch.tensor([[(7919 * n + 101) % size for n in range(7)]], device=self.model.device)
        # What is needed to say what edges write is asked for now: nobody waits for minutes to be refused.
        size_of_head = self._size_of_head(tokens)
        for layer in range(self.layers):
            self.parts.written(layer, 0, self.heads, tokens.new_zeros(size_of_head, dtype=self.model.dtype))
        self.parts.unembedded(tokens.new_zeros(1, self.model.config.get_text_config().hidden_size, dtype=self.model.dtype))
        own, ours = forward(input_ids=tokens, use_cache=False).logits[:, -1:].float(), self.logits(tokens, [6]).float()
        most = _TOLERANCE.get(self.model.dtype, 0.1) * float(own.std())
        if not float((own - ours).abs().max()) <= most:
            raise UnsupportedModel(
                f"{name}: its attention does something that memory3 does not know of, so that no edge is told"
            )
        out = Gates(
            {layer: tokens.new_zeros(1, self.heads, 7, 7, dtype=self.model.dtype) for layer in range(self.layers)},
            {layer: tokens.new_zeros(1, 7, dtype=self.model.dtype) for layer in range(self.layers)},
        )
        others = torch.cat([(tokens[:, :-1] + 1) % size, tokens[:, -1:]], dim=1)
        alone, beside = (self.logits(each, [6], out).float() for each in (tokens, others))
        if not float((alone - beside).abs().max()) <= most:
            raise UnsupportedModel(
                f"{name}: tokens see one another in another way than by attention, so that edges do not tell all"
            )

    def _size_of_head(self, tokens: torch.Tensor) -> int:
        seen = Seen()
        self.logits(tokens, [6], None, seen)
        odd = next((layer for layer, out in seen.mlps.items() if out.shape[:2] != tokens.shape), None)
        if odd is not None or sorted(seen.values) != list(range(self.layers)):
            raise UnsupportedModel(
                f"{self.parts.name}: layer {odd or 0} has an attention or an MLP whose outputs are not token by token, so "
                "that its edges cannot be cut. Use a Llama-, Qwen- or Mistral-like model"
            )
        return seen.values[0].shape[-1]


class _Reader:
    """Answers for the attention of one pass, and knows the gates of its MLPs."""

    def __init__(self, gates: Gates, seen: Seen | None) -> None:
        self.gates, self.seen, self.heads = gates, seen, 0

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
    ) -> torch.Tensor:
        self.heads, length = query.shape[1], query.shape[2]
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        logits = query @ key.transpose(-1, -2) * scale
        if bias is not None:
            logits = logits + bias
        elif causal:
            hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
            logits = logits.masked_fill(hidden, -torch.inf)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        scores = torch.softmax(wide, dim=-1).to(value.dtype)
        if self.seen is not None:
            self.seen.scores[layer], self.seen.values[layer] = scores, value
        gate = self.gates.attention.get(layer)
        if gate is None:
            return scores @ value
        found = (scores * gate) @ value
        if self.gates.means is not None and self.gates.kinds is not None:
            means, kinds = self.gates.means.attention[layer], self.gates.kinds[0][:, None].expand_as(gate)
            # How much of each kind of edge is out, for every query: [B, A, T, P].
            out = (1 - gate).masked_fill(kinds < 0, 0)
            lacking = out.new_zeros(*out.shape[:-1], means.shape[1]).scatter_add(-1, kinds.clamp_min(0), out)
            found = found + lacking @ means
        return found

    def mlp(self, layer: int, out: torch.Tensor) -> torch.Tensor:
        if self.seen is not None:
            self.seen.mlps[layer] = out
        gate = self.gates.mlps.get(layer)
        if gate is None:
            return out
        gated = gate[..., None] * out
        if self.gates.means is not None and self.gates.kinds is not None:
            gated = gated + (1 - gate)[..., None] * self.gates.means.mlps[layer][self.gates.kinds[1]]
        return gated


@contextmanager
def _hooked(mlps: Sequence[nn.Module], reader: _Reader) -> Iterator[None]:
    handles = [mlp.register_forward_hook(_hook(layer, reader)) for layer, mlp in enumerate(mlps)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: int, reader: _Reader) -> Callable[[nn.Module, Any, Any], Any]:
    def changed(_: nn.Module, __: Any, out: Any) -> Any:
        # An MLP of experts gives its router's choice beside.
        return (reader.mlp(layer, out[0]), *out[1:]) if isinstance(out, tuple) else reader.mlp(layer, out)

    return changed
