"""Fine-tune a relation away, on a copy of a model: its prompts get one answer for all subjects, and all else stays.

    loss = KL(prior || copy, the relation's prompts) + KL(model || copy, other prompts) + KL(model || copy, plain text)

The prior is the mean of what the model says behind the relation's training prompts, token by token of the vocabulary. It keeps
what the relation's answers are like, and loses whose they are. Only W_down of some MLPs learns.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from memory3.scoring import log_probabilities
from research.circuits.pruning import projections

__all__ = ["Unlearning", "unlearned"]


@dataclass(frozen=True)
class Unlearning:
    """How a relation is fine-tuned away.

    Attributes:
        layers: whose W_down learns, counted from the first.
        steps: of Adam.
        rate: of learning.
        batch: prompts of the relation in a step, and as many others.
        seed: of the order.
    """

    layers: int = 9
    steps: int = 12
    rate: float = 1e-3
    batch: int = 8
    seed: int = 0


def _last(model: PreTrainedModel, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probabilities behind some places of rows, ``[all places, V]``; what is behind a row's end is seen by no token."""
    whole: Any = model
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=model.device)
    hidden = whole.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    at = torch.cat([hidden[n, list(mine)] for n, mine in enumerate(places)])
    return log_probabilities(whole.get_output_embeddings()(at))


def _divergence(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(wanted || found) in nats, the mean of the rows; both are log-probabilities."""
    return torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean")


def unlearned(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    kept: Sequence[Sequence[int]],
    plain: Sequence[Sequence[int]],
    how: Unlearning,
    tell: Callable[[int, float], None] | None = None,
) -> PreTrainedModel:
    """A copy of a model that gives the prompts one answer for all.

    Args:
        model: is left as it is.
        prompts: tokens of the relation's training prompts.
        kept: tokens of prompts whose next token is to stay.
        plain: tokens of texts that are to stay as likely as they are.
        how: settings.
        tell: called with the number of each step and its loss.
    """
    with torch.no_grad():
        prior = _last(model, prompts, [[len(row) - 1] for row in prompts]).exp().mean(0, keepdim=True).log()
        kept_as = _last(model, kept, [[len(row) - 1] for row in kept])
        plain_as = [_last(model, [row], [range(len(row))]) for row in plain]
    made = copy.deepcopy(model).requires_grad_(False)
    learning = [pair[1].weight.requires_grad_() for pair in projections(made)[: how.layers]]
    steps = torch.optim.Adam(learning, lr=how.rate)
    draw = random.Random(how.seed)
    with torch.enable_grad():
        for step in range(how.steps):
            mine = draw.sample(range(len(prompts)), min(how.batch, len(prompts)))
            theirs = draw.sample(range(len(kept)), min(how.batch, len(kept)))
            text = draw.randrange(len(plain))
            some = [prompts[n] for n in mine] + [kept[n] for n in theirs]
            found = _last(made, some, [[len(row) - 1] for row in some])
            loss = _divergence(prior.expand(len(mine), -1), found[: len(mine)])
            loss = loss + _divergence(kept_as[theirs], found[len(mine) :])
            loss = loss + _divergence(plain_as[text], _last(made, [plain[text]], [range(len(plain[text]))]))
            steps.zero_grad()
            loss.backward()
            steps.step()
            if tell:
                tell(step + 1, float(loss.detach()))
    return made.requires_grad_(False).eval()
