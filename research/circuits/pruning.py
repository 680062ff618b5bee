"""Take a circuit out of a copy of a model: heads and MLP neurons, weighed by one gradient, and their outputs zeroed.

    weight   sum over tokens of x dL/dx          x: what a head, or a neuron, hands to its output projection
    pruned   the columns of W_O, or W_down, that read x are 0

A head's weight is the sum of its edges' weights in `memory3.interpret.weighing.gradient_weights`, with nothing in place of an
edge that is out. A neuron's is its own: neurons are the paper's edges of MLPs (arXiv 2407.01178, section 2). Edges belong to a
prompt, heads and neurons to the weights: so the copy can be asked in any pattern, and it can write and read memories.

Symbols: L layers, A query heads, d head dimension, F neurons of an MLP.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from memory3.errors import UnsupportedModel
from memory3.interpret.circuit import Alignment
from memory3.interpret.parts import Parts
from memory3.interpret.texts import Text
from memory3.scoring import token_log_likelihoods

__all__ = ["Components", "heaviest", "projections", "pruned", "weigh"]


@dataclass(frozen=True)
class Components:
    """One number of each head and neuron.

    Attributes:
        heads: float64 ``[L, A]``.
        neurons: float64 ``[L, F]``.
    """

    heads: torch.Tensor
    neurons: torch.Tensor


def projections(model: PreTrainedModel) -> list[tuple[nn.Linear, nn.Linear]]:
    """By layer, the projections that heads and neurons hand their outputs to.

    Args:
        model: a causal language model.

    Raises:
        UnsupportedModel: its layers have no ``o_proj`` and ``down_proj``.
    """
    parts = Parts(model)
    found = []
    for attention, mlp in zip(parts.attentions, parts.mlps, strict=True):
        pair = getattr(attention, "o_proj", None), getattr(mlp, "down_proj", None)
        if not isinstance(pair[0], nn.Linear) or not isinstance(pair[1], nn.Linear):
            raise UnsupportedModel(f"{parts.name} has no o_proj and down_proj in every layer: use a Llama- or Qwen-like model")
        found.append(pair)
    return found


@contextmanager
def _caught(modules: Sequence[nn.Linear], inputs: list[torch.Tensor]) -> Iterator[None]:
    """Every module's input is noted, in the order in which they run."""

    def note(_: nn.Module, given: Any) -> None:
        inputs.append(given[0])

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def weigh(model: PreTrainedModel, texts: Sequence[Text]) -> Components:
    """What the log-likelihood of the answer would lose without each head and neuron if it were linear: nats, mean of texts.

    Args:
        model: in evaluation mode.
        texts: at least one.
    """
    forward: Any = model
    pairs, alignment = projections(model), Alignment(texts)
    modules = [module for pair in pairs for module in pair]
    heads, neurons = [0.0] * len(pairs), [0.0] * len(pairs)
    for numbers in alignment.batches():
        some = [texts[n] for n in numbers]
        places = torch.tensor([place for place, _ in some[0].targets])
        targets = torch.tensor([[token for _, token in text.targets] for text in some], device=model.device)
        tokens = torch.tensor([text.tokens for text in some], device=model.device)
        inputs: list[torch.Tensor] = []
        with torch.enable_grad(), _caught(modules, inputs):
            embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
            logits = forward(inputs_embeds=embedded, use_cache=False, logits_to_keep=places).logits
            slopes = torch.autograd.grad(token_log_likelihoods(logits, targets).sum(), inputs)
        added = [(x.detach().double() * slope.double()).sum((0, 1)).cpu() for x, slope in zip(inputs, slopes, strict=True)]
        for layer in range(len(pairs)):
            heads[layer], neurons[layer] = heads[layer] + added[2 * layer], neurons[layer] + added[2 * layer + 1]
    size = _head_size(model, pairs[0][0])
    by_head = torch.stack([torch.as_tensor(each).view(-1, size).sum(1) for each in heads])
    return Components(by_head / len(texts), torch.stack([torch.as_tensor(each) for each in neurons]) / len(texts))


def _head_size(model: PreTrainedModel, projection: nn.Linear) -> int:
    return projection.in_features // int(model.config.get_text_config().num_attention_heads)


def heaviest(weights: Components, others: Components, heads: int, neurons: int) -> tuple[list[tuple[int, int]], ...]:
    """The heads and the neurons that weigh most for some texts and little for others: ``(layer, number)`` of each.

    Args:
        weights: of the texts whose circuit it is.
        others: of texts that are to stay; their weight counts against a component, whichever its sign.
        heads: how many.
        neurons: how many.
    """
    found = []
    for mine, theirs, most in ((weights.heads, others.heads, heads), (weights.neurons, others.neurons, neurons)):
        order = (mine - theirs.abs()).flatten().argsort(descending=True, stable=True)[:most].tolist()
        found.append([divmod(at, mine.shape[1]) for at in order])
    return tuple(found)


@torch.no_grad()
def pruned(model: PreTrainedModel, heads: Sequence[tuple[int, int]], neurons: Sequence[tuple[int, int]]) -> PreTrainedModel:
    """A copy of a model in which heads and neurons add nothing.

    Args:
        model: is left as it is.
        heads: ``(layer, head)``.
        neurons: ``(layer, neuron)``.
    """
    made = copy.deepcopy(model)
    pairs = projections(made)
    size = _head_size(made, pairs[0][0])
    for layer, head in heads:
        pairs[layer][0].weight[:, head * size : (head + 1) * size] = 0
    for layer, neuron in neurons:
        pairs[layer][1].weight[:, neuron] = 0
    return made
