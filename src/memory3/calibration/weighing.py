"""Fitting the selector `weighed`: gradient steps through the model, towards heads that keep what answers need.

    s = w_h . [f ; 1]                      score of a pair (`memory3.encode.selectors.weighed`)
    g = sigmoid((s - t) / T)               its gate; t so that the gates of a passage sum up to the budget
    loss = KL(p || q)                      over tokens of answers, p read from all pairs, q with log g added to their logits

As T falls, gates open for what the budget would keep and close for the rest. It begins at `reconstruction`, and ends with the
weights of the last steps' mean. The model itself is not changed.

Symbols: N passages of a step, L layers, H KV heads, G query heads of one, S tokens of the longest passage, F features, C
columns of question and answer, d head dimension, b tokens of the prefix.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from memory3.attention.attach import attached
from memory3.calibration.formats import serve_formats
from memory3.calibration.selector import Passage, answered
from memory3.encode.encoder import Encoder, KeyValues
from memory3.encode.selector_weights import SelectorWeights, keep_weights
from memory3.encode.selectors import LayerView, Selector
from memory3.encode.selectors.weighed import FEATURES, Weighed, features
from memory3.errors import ConfigError, InputError
from memory3.llm import Memory3
from memory3.scoring import log_probabilities
from memory3.types import Reference

__all__ = ["calibrate_weighed", "gates"]

PASSAGES = 96
STEPS = 80
_BATCH = 6
_RATE = 0.03
#: T of the first step and of the last.
_HOT, _COLD = 1.0, 0.15
#: Steps whose weights are averaged in the end.
_MEAN = 20
#: Tokens of a question and of an answer at most; longer ones are left out.
_LONGEST = (96, 32)
_SHUT = -1e9


class _Features(Selector):
    """Scores nothing; keeps what selector `weighed` looks at."""

    name: ClassVar[str] = "features"
    repeats: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.by_layer: dict[int, torch.Tensor] = {}

    def score(self, view: LayerView) -> torch.Tensor:
        """Zeros; see the class."""
        self.by_layer[view.layer] = features(view)
        return view.key.new_zeros(view.key.shape[:3])


@dataclass(frozen=True)
class _Held:
    """A passage: keys, values ``[L, H, S, d]``, features ``[L, H, S, F]``, and token ids of its questions and answers."""

    keys: torch.Tensor
    values: torch.Tensor
    features: torch.Tensor
    asked: Sequence[tuple[list[int], list[int]]]


class _Gated:
    """Reader (`memory3.attention.attach.Reader`): one plain softmax over prefix, passage and what was read so far."""

    def __init__(
        self, prefix: Sequence[KeyValues], keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, seen: torch.Tensor
    ) -> None:
        """``keys``, ``values``: ``[N, L, H, S, d]`` of all layers; ``bias``: ``[N, L, H, S]``; ``seen``: bool
        ``[N, C]``, False for padding.
        """
        self.prefix, self.keys, self.values, self.bias, self.seen = prefix, keys, values, bias, seen

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
        """Output ``[N, A, C, d]``. Arguments as in the protocol; the mask is this reader's own.

        Args:
            layer, query, key, value, bias, causal, scale: see `memory3.attention.attach.Reader`.
        """
        rows, heads, columns, dim = query.shape
        kv_heads = key.shape[1]
        first_key, first_value = (each.expand(rows, -1, -1, -1) for each in self.prefix[layer])
        keys = torch.cat([first_key, self.keys[:, layer], key], 2)
        values = torch.cat([first_value, self.values[:, layer], value], 2)
        grouped = query.reshape(rows, kv_heads, heads // kv_heads, columns, dim)
        logits = torch.matmul(grouped, keys[:, :, None].transpose(-1, -2)).float() * scale
        later = torch.ones(columns, columns, dtype=torch.bool, device=query.device).triu(1)
        own = torch.eye(columns, dtype=torch.bool, device=query.device)
        shut = later | (~self.seen[:, None] & ~own)  # padding sees itself, so that no row sees nothing
        shut = torch.where(shut, _SHUT, 0.0)[:, None, None]
        gate = self.bias[:, layer, :, None, None].expand(-1, -1, 1, columns, -1)
        open_ = gate.new_zeros(rows, kv_heads, 1, columns, first_key.shape[2])
        logits = logits + torch.cat([open_, gate, shut.expand(-1, kv_heads, -1, -1, -1)], -1)
        out = torch.matmul(logits.softmax(-1).to(values.dtype), values[:, :, None])
        return out.reshape(rows, heads, columns, dim)


def gates(scores: torch.Tensor, real: torch.Tensor, budget: int, hot: float) -> torch.Tensor:
    """Logarithms of gates that sum up to the budget, or are open where it has room for all: ``[N, L, H, S]``.

    Args:
        scores: s, ``[N, L, H, S]``.
        real: bool ``[N, S]``, False for padding, whose gates are shut.
        budget: pairs of a passage.
        hot: T.
    """
    shown = real[:, None, None].expand(scores.shape)
    room = torch.minimum(torch.full((len(scores),), float(budget)), shown.sum((1, 2, 3)) * (1 - 1e-4)).to(scores.device)
    with torch.no_grad():
        far = 30 * hot
        low, high = scores.amin((1, 2, 3)) - far, scores.amax((1, 2, 3)) + far
        for _ in range(50):
            middle = (low + high) / 2
            total = (torch.sigmoid((scores - middle[:, None, None, None]) / hot) * shown).sum((1, 2, 3))
            low, high = torch.where(total > room, middle, low), torch.where(total > room, high, middle)
    # A step of Newton's from where it is: it moves t by next to nothing, and has t's gradient.
    opened = torch.sigmoid((scores - high[:, None, None, None]) / hot) * shown
    slope = (opened * (1 - opened)).sum((1, 2, 3)).detach() / hot
    middle = high + (opened.sum((1, 2, 3)) - room) / slope.clamp_min(1e-3)
    found = torch.nn.functional.logsigmoid((scores - middle[:, None, None, None]) / hot)
    return found.masked_fill(~shown, _SHUT)


def calibrate_weighed(
    m3: Memory3,
    passages: Iterable[Passage],
    *,
    number: int = PASSAGES,
    steps: int = STEPS,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> SelectorWeights:
    """Fit the selector to a model and its budget, and keep it in the cache folder: it is used from then on where the settings
    say ``weighed``.

    Args:
        m3: the model, with the budget that will be spent.
        passages: with questions; each gives its first reference that holds an answer.
        number: how many are drawn.
        steps: of the gradient.
        progress: told how many passages and steps are done, of how many.
        seed: of the draw and of the steps.

    Raises:
        ConfigError: the budget is not adaptive, so heads are never compared; there is memory in some layers alone, or the
            model has window layers.
        InputError: no passage has a question whose answer stands in it.
    """
    if m3.config.budget.kind != "adaptive":
        raise ConfigError(f"selector weighed compares heads, which a budget of {m3.config.budget} does not: use adaptive:1/8")
    if len(m3.geometry.full_layers) < len(m3.encoder.prefix):
        raise ConfigError("selector weighed is not fitted to models with window layers yet: use reconstruction")
    if m3.shape.layers != m3.geometry.full_layers:
        raise ConfigError("selector weighed is fitted with memory in all layers: leave layers out, or use reconstruction")
    rng = random.Random(seed)
    drawn = [passage for passage in passages if passage.questions]
    rng.shuffle(drawn)
    chosen = list(answered(m3, drawn, number))
    if not chosen:
        raise InputError("selector weighed is fitted to questions whose answers stand in their passages: there are none")
    tell = progress or (lambda done, total: None)
    encoder = Encoder(m3.model, m3.geometry, m3.frame, m3.config.replace(layers="all", budget="all", selector="first"))
    fit = _Fit(m3, encoder, rng)
    total = len(chosen) + steps
    for start in range(0, len(chosen), _BATCH):
        fit.read(chosen[start : start + _BATCH])
        tell(min(start + _BATCH, len(chosen)), total)
    if not fit.held:
        raise InputError(f"all questions or answers are longer than {_LONGEST[0]} and {_LONGEST[1]} tokens: give shorter ones")
    fit.begin()
    for step in range(steps):
        fit.step(_HOT * (_COLD / _HOT) ** (step / max(1, steps - 1)))
        tell(len(chosen) + step + 1, total)
    about = {
        "passages": len(fit.held),
        "questions": sum(len(one.asked) for one in fit.held),
        "steps": steps,
        "budget": str(m3.config.budget),
        "loss": [round(loss, 4) for loss in fit.losses],
        "torch": torch.__version__,
    }
    found = SelectorWeights(m3.whole_model, encoder.shape.layers, fit.weights(), about, m3.kept_as(Weighed.name))
    keep_weights(found)
    serve_formats(m3)
    return found


class _Fit:
    """Passages, and the weights that are fitted to them.

    Attributes:
        held: the passages.
        losses: of every step.
    """

    def __init__(self, m3: Memory3, encoder: Encoder, rng: random.Random) -> None:
        self.m3, self.encoder, self.rng = m3, encoder, rng
        self.held: list[_Held] = []
        self.losses: list[float] = []
        self._late: list[torch.Tensor] = []
        shape = encoder.shape
        self._budget = m3.config.budget.pairs(len(shape.layers) * shape.kv_heads, m3.config.reference_length)
        self._first = len(m3.frame.prefix) + m3.config.reference_length

    def read(self, part: Sequence[tuple[Reference, Sequence[tuple[str, str]]]]) -> None:
        """Encode some passages with what is asked of them."""
        seen = _Features()
        dense = self.encoder.dense([reference for reference, _ in part], [seen])
        found = torch.stack([seen.by_layer[layer] for layer in self.encoder.shape.layers], 1)
        for n, (_, questions) in enumerate(part):
            tokens = [(self.m3.question_tokens(question), list(self.m3.prompts.ids(answer))) for question, answer in questions]
            asked = [pair for pair in tokens if len(pair[0]) <= _LONGEST[0] and 0 < len(pair[1]) <= _LONGEST[1]]
            if asked:
                size = int(dense.lengths[n])
                keys, values = (x[n, :, :, :size] for x in (dense.keys / self.m3.config.memory_temperature, dense.values))
                self.held.append(_Held(keys, values, found[n, :, :, :size], asked))

    def begin(self) -> None:
        """At reconstruction: a weight of 1 for the most that is paid, in features of mean 0 and deviation 1."""
        every = torch.cat([one.features.flatten(0, 2) for one in self.held])
        self._mean, self._deviation = every.mean(0), every.std(0).clamp_min(1e-3)
        shape = (len(self.encoder.shape.layers), self.encoder.shape.kv_heads, len(FEATURES) + 1)
        self._weights = torch.zeros(shape, device=every.device)
        self._weights[..., 0] = self._deviation[0]
        self._weights.requires_grad_()
        self._optimiser = torch.optim.Adam([self._weights], lr=_RATE)

    def weights(self) -> torch.Tensor:
        """Mean of the last steps, for features as they are: float32 ``[L, F + 1, H]``."""
        mean = torch.stack(self._late[-_MEAN:]).mean(0)
        plain = mean[..., :-1] / self._deviation
        offset = mean[..., -1:] - (plain * self._mean).sum(-1, keepdim=True)
        return torch.cat([plain, offset], -1).transpose(1, 2).contiguous().cpu()

    def step(self, hot: float) -> None:
        """One step of the gradient over some passages and a question of each."""
        batch = self.rng.sample(self.held, min(_BATCH, len(self.held)))
        asked = [self.rng.choice(one.asked) for one in batch]
        longest = max(one.keys.shape[2] for one in batch)
        keys, values, seen = (
            torch.stack([_padded(getattr(one, name), longest) for one in batch]) for name in ("keys", "values", "features")
        )
        sizes = torch.tensor([one.keys.shape[2] for one in batch], device=keys.device)
        real = torch.arange(longest, device=keys.device) < sizes[:, None]
        with torch.enable_grad():
            weights, offset = self._weights[None, :, :, None, :-1], self._weights[None, :, :, None, -1]
            scores = ((seen - self._mean) / self._deviation * weights).sum(-1) + offset
            bias = gates(scores, real, self._budget, hot)
            with torch.no_grad():
                shut = torch.where(real, 0.0, _SHUT)[:, None, None].expand(bias.shape)
                whole = self._answers(keys, values, shut, asked)
            mine = self._answers(keys, values, bias, asked)
            loss = (whole.exp() * (whole - mine)).sum(-1).mean()
            [self._weights.grad] = torch.autograd.grad(loss, [self._weights])
        self._optimiser.step()
        self.losses.append(loss.item())
        self._late = [*self._late[1 - _MEAN :], self._weights.detach().clone()]

    def _answers(
        self, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, asked: Sequence[tuple[list[int], list[int]]]
    ) -> torch.Tensor:
        """Log-probabilities where tokens of answers are chosen, of all rows: ``[n, V]``."""
        rows = [[*question, *answer] for question, answer in asked]
        columns, device = max(map(len, rows)), keys.device
        tokens = torch.tensor([[*[0] * (columns - len(row)), *row] for row in rows], device=device)
        before = torch.tensor([columns - len(row) for row in rows], device=device)
        places = torch.arange(columns, device=device) - before[:, None]
        reader = _Gated(self.encoder.prefix, keys, values, bias, places >= 0)
        unused = torch.zeros(1, 1, 1, 1, dtype=self.m3.model.dtype, device=device)
        keep = max(len(answer) for _, answer in asked) + 1
        with attached(self.m3.model):
            logits = self.m3.model(
                input_ids=tokens,
                attention_mask=unused,
                position_ids=self._first + places.clamp_min(0),
                logits_to_keep=keep,
                use_cache=False,
                memory3=reader,
            ).logits
        return log_probabilities(torch.cat([row[-1 - len(a) : -1] for row, (_, a) in zip(logits, asked, strict=True)]))


def _padded(x: torch.Tensor, longest: int) -> torch.Tensor:
    """``[L, H, S, n]`` with zeros behind the tokens."""
    return torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[2]))
