"""Which pairs of a passage are kept, and with which bias, by what queries paid to them: the ways that are tried.

A way is written in words: a score, a share of all pairs, and options. ``max 1/8`` is what the package does.

    score      max      the most that one query of one query head pays (the package)
               group    the most that the query heads of the group pay together, at one query
               heads    the most of each query head, summed over the group
               sum      all that is paid
               rms      root of the mean square (arXiv 2602.16284)
               moved    the most that an output is moved where the pair is left out: a / (1 - a) |W_o (v - o)|, per query head
               movedsum root of the mean square of the same
               error    pairs are dropped one after the other, each the one that adds least to the error of what heads
                        write (`research.quality.errors`); later is better. errorhalf, errorrel: a layer's error over
                        the root of its square sum, over its square sum
               read     the same head by head and without W_o, as a selector of one layer could; readhalf: over the root of
                        the layer's square sum
               learned, blended  the package's, of models that a selector was fitted to; the fifth of blended is of ``from``
               fit-NAME  the line of each head that a few passages with questions gave (`research.quality.calibrating`)
    from=KIND  whose queries: repeat, asked, cloze, true, or several with + between, the larger score counting; or, with
               numbers as in ``asked+repeat:0.2``, their sum
    floor=N    so many tokens of every head first
    flat       every head as many
    bias[=KIND]  fitted to what those queries pay in all (`memory3.encode.mass`); ridge=R
    repair[=KIND]  a bias fitted to what those queries read, and not to what they pay in all (`research.quality.errors`)
    even       one bias for all pairs of a head, so that the sum of what is paid is as before
    T=X        what logits of memories are divided by

Symbols as in `research.quality.passages`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from memory3.encode.encoder import cut
from memory3.encode.mass import MOST, fitted_biases, gram
from memory3.encode.selectors.blended import Blended
from memory3.types import Memory
from research.quality.calibrating import FITS, features
from research.quality.errors import costs, drop_order, read_products, written_products
from research.quality.passages import Passage

__all__ = ["SCORES", "Way", "biases", "kept", "memory", "scores"]

SCORES = (
    "max",
    "group",
    "heads",
    "sum",
    "rms",
    "moved",
    "movedsum",
    "error",
    "errorhalf",
    "errorrel",
    "read",
    "readhalf",
    "learned",
    "blended",
)


@dataclass(frozen=True)
class Way:
    """One way, as the module describes it. ``share`` None: everything is kept."""

    name: str
    score: str = "max"
    share: Fraction | None = None
    kinds: tuple[str, ...] = ("repeat",)
    weights: tuple[float, ...] = (1.0,)
    floor: int = 0
    flat: bool = False
    bias: str = ""
    repair: str = ""
    even: bool = False
    ridge: float = 0.1
    temperature: float = 1.0

    @classmethod
    def parse(cls, text: str, temperature: float = 1.0) -> Way:
        """Read the words of a way; ``all`` keeps everything. ``temperature``: where they name none."""
        score, *rest = text.split()
        found: dict[str, object] = {"temperature": temperature}
        if score != "all":
            if score not in SCORES and score.removeprefix("fit-") not in FITS:
                raise ValueError(f"{text!r}: a score is one of {', '.join(SCORES)}")
            found |= {"score": score, "share": Fraction(rest.pop(0))}
        for word in rest:
            key, _, value = word.partition("=")
            if key == "from":
                parts = [part.partition(":") for part in value.split("+")]
                found["kinds"] = tuple(kind for kind, _, _ in parts)
                found["weights"] = tuple(float(weight or 1) for _, _, weight in parts)
            elif key == "floor":
                found["floor"] = int(value)
            elif key in ("flat", "even") and not value:
                found[key] = True
            elif key == "bias":
                found["bias"] = value or "repeat"
            elif key == "repair":
                found["repair"] = value or "repeat"
            elif key == "ridge":
                found["ridge"] = float(value)
            elif key == "T":
                found["temperature"] = float(value)
            else:
                raise ValueError(f"{text!r}: {word!r} is no option")
        return cls(text, **found)  # type: ignore[arg-type]

    @property
    def reads(self) -> set[str]:
        """Kinds of queries that it looks at."""
        if self.share is None:
            return set()
        return {
            *self.kinds,
            *([self.bias] if self.bias else []),
            *([self.repair] if self.repair else []),
            *(["repeat"] if self.even else []),
        }


def scores(passage: Passage, way: Way, outputs: list[torch.Tensor]) -> torch.Tensor:
    """float32 ``[L, H, S]``. ``outputs``: W_o of every layer, ``[A, d, hidden]``; looked at by ``moved``."""
    if way.score.startswith("error"):
        power = {"error": 0.0, "errorhalf": 0.5, "errorrel": 1.0}[way.score]
        products = sum(written_products(passage, kind, outputs) * w for kind, w in zip(way.kinds, way.weights, strict=True))
        return drop_order(torch.as_tensor(products), power)
    each = [
        torch.stack([_score(passage, way.score, kind, layer, outputs) for layer in range(len(passage.keys))])
        for kind in way.kinds
    ]
    found = torch.stack(each).amax(0)
    if any(weight != 1 for weight in way.weights):
        found = sum((weight * one for weight, one in zip(way.weights, each, strict=True)), torch.zeros_like(found))
    if way.score not in ("learned", "blended"):
        return found
    if passage.learned is None:
        raise ValueError("no selector was fitted to this model")
    return passage.learned + (Blended.share * found if way.score == "blended" else 0)


def _score(passage: Passage, score: str, kind: str, layer: int, outputs: list[torch.Tensor]) -> torch.Tensor:
    paid = passage.attention(kind, layer)  # [H, G, T, S]
    if score in ("max", "learned", "blended"):
        return paid.amax((1, 2))
    if score == "group":
        return paid.sum(1).amax(1)
    if score == "heads":
        return paid.amax(2).sum(1)
    if score == "sum":
        return paid.sum((1, 2))
    if score == "rms":
        return paid.square().mean((1, 2)).sqrt()
    if score.startswith("fit-"):
        if passage.fitted is None:
            raise ValueError("heads were not weighed yet: give --fitted")
        return (features(paid) * passage.fitted[score.removeprefix("fit-")][layer][:, None]).sum(-1)
    if score.startswith("read"):
        products = read_products(passage, kind, layer)
        if score == "readhalf":
            products = products / products.sum().clamp_min(1e-12).sqrt()
        return costs(products)
    return _moved(passage, paid, layer, outputs, score == "movedsum")


def _moved(passage: Passage, paid: torch.Tensor, layer: int, outputs: list[torch.Tensor], mean: bool) -> torch.Tensor:
    """See the module. What else a query saw is unknown here; its output is taken to be that of the passage, weighed."""
    heads, group = paid.shape[:2]
    value = passage.values[layer]  # [H, S, d]
    out = paid @ value[:, None]  # [H, G, T, d]
    metric = outputs[layer].view(heads, group, value.shape[-1], -1)
    metric = metric @ metric.transpose(-1, -2)  # [H, G, d, d]
    vv = ((value[:, None] @ metric) * value[:, None]).sum(-1)[:, :, None]  # [H, G, 1, S]
    om = out @ metric  # [H, G, T, d]
    oo = (om * out).sum(-1, keepdim=True)
    distance = (vv + oo - 2 * om @ value[:, None].transpose(-1, -2)).clamp_min(0).sqrt()
    moved = paid / (1 - paid).clamp_min(0.05) * distance
    return moved.square().mean((1, 2)).sqrt() if mean else moved.amax((1, 2))


def kept(score: torch.Tensor, way: Way, length: int) -> torch.Tensor:
    """bool ``[L, H, S]``. ``length``: tokens of a full reference, of which the share is taken."""
    layers, heads = score.shape[:2]
    if way.share is None:
        return torch.ones_like(score, dtype=torch.bool)
    pairs = min(round(layers * heads * length * way.share), score.numel())
    order = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # rank of each token within its head
    if way.flat:
        return order < max(1, round(length * way.share))
    ranked = score.where(order >= way.floor, score.amax() + 1 - order) if way.floor else score
    chosen = torch.zeros(score.numel(), dtype=torch.bool)
    chosen[ranked.flatten().argsort(descending=True, stable=True)[:pairs]] = True
    return chosen.view_as(score)


def biases(passage: Passage, way: Way, keep: torch.Tensor, outputs: list[torch.Tensor]) -> torch.Tensor | None:
    """float32 ``[L, H, S]``, or None where the way has none."""
    if way.even:
        shares = []
        for layer in range(len(passage.keys)):
            paid = passage.attention("repeat", layer).sum((1, 2))
            shares.append(paid.sum(-1) / (paid * keep[layer]).sum(-1).clamp_min(1e-12))
        return torch.stack(shares).log().clamp(0, MOST)[..., None].expand(keep.shape)
    if way.repair and way.score.startswith("read"):
        products = torch.stack([read_products(passage, way.repair, layer) for layer in range(len(passage.keys))])
        return fitted_biases(products, keep, way.ridge)
    if way.repair:
        return fitted_biases(written_products(passage, way.repair, outputs), keep, way.ridge)
    if not way.bias:
        return None
    products = torch.stack([gram(passage.attention(way.bias, layer)) for layer in range(len(passage.keys))])
    return fitted_biases(products, keep, way.ridge)


def memory(passage: Passage, way: Way, outputs: list[torch.Tensor], length: int) -> Memory:
    """What is kept, as a bank would hold it raw, its keys divided by the temperature."""
    shape = passage.keys.shape[:3]
    score = torch.zeros(shape) if way.share is None else scores(passage, way, outputs)
    keep = kept(score, way, length)
    (made,) = cut(passage.keys[None] / way.temperature, passage.values[None], keep[None], torch.float16)
    added = biases(passage, way, keep, outputs)
    if added is None:
        return made
    return replace(made, biases=added[keep])
