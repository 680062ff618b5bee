"""What it costs to write a piece of knowledge and to read it, in weights, memory and text: the paper's formulas, term by term.

The cost of a piece of knowledge that is used n times is  min over formats m of  write(m) + n read(m)  (eq. 1). One piece is
one reference; one use is one chunk of tokens reading it. All costs are floating-point operations (FLOPs; a multiply-add is
two).

Symbols as in arXiv 2407.01178, appendix A: L layers, H query heads, Hkv KV heads, dh head dimension, d hidden width, W MLP
width. Attention works on H dh numbers per token, which the paper writes d, as they are equal in its model; here they may
differ.

Knows shapes; nothing of this library's own format (`memory3.planner.library`), of machines or of money.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from memory3.errors import ConfigError
from memory3.models.sizes import ModelSizes

__all__ = [
    "FORMATS",
    "LABELS",
    "PAPER",
    "Cost",
    "Costs",
    "Setting",
    "Term",
    "explicit",
    "external",
    "implicit",
    "paper_costs",
]

#: By cost of writing, dearest first: model weights, memories, text in the prompt.
FORMATS = ("implicit", "explicit", "external")
#: What people call them.
LABELS: Mapping[str, str] = {"implicit": "weights", "explicit": "explicit memory", "external": "text (RAG)"}


@dataclass(frozen=True)
class Setting:
    """Lengths that the paper's formulas need beside a shape, in tokens unless said otherwise. The defaults are the paper's.

    Attributes:
        reference: tokens of a reference, lref.
        kept: tokens kept per KV head, lmem.
        chunk: tokens that read a reference at once, lchunk.
        training: length of a training sequence, ltrain.
        memory_layers: number of memory layers, Lmem; None: half of the layers.
    """

    reference: int = 128
    kept: int = 8
    chunk: int = 64
    training: int = 2048
    memory_layers: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{field.name} is {value!r}: give a whole number from 1")
        if self.kept > self.reference:
            raise ConfigError(f"{self.kept} of {self.reference} tokens cannot be kept: a reference has no more than it has")

    def layers(self, shape: ModelSizes) -> int:
        """Number of memory layers of a model."""
        count = max(1, shape.layers // 2) if self.memory_layers is None else self.memory_layers
        if count > shape.layers:
            raise ConfigError(f"{count} memory layers cannot be had of a model with {shape.layers} layers")
        return count


PAPER = Setting()


@dataclass(frozen=True)
class Term:
    """One summand of a cost.

    Attributes:
        name: what the work is.
        formula: in the symbols of arXiv 2407.01178, appendix A.
        flops: its value.
    """

    name: str
    formula: str
    flops: float


@dataclass(frozen=True)
class Cost:
    """Terms of writing a reference once and of one use of it."""

    write: tuple[Term, ...]
    read: tuple[Term, ...]

    @property
    def write_flops(self) -> float:
        """FLOPs to write."""
        return sum(term.flops for term in self.write)

    @property
    def read_flops(self) -> float:
        """FLOPs of one use."""
        return sum(term.flops for term in self.read)

    def total(self, uses: float) -> float:
        """FLOPs of writing once and reading ``uses`` times; the summand of eq. 1."""
        if not (math.isfinite(uses) and uses >= 0):
            raise ConfigError(f"a reference cannot be used {uses!r} times: give a number from 0")
        return self.write_flops + uses * self.read_flops


@dataclass(frozen=True)
class Costs:
    """The three formats side by side."""

    implicit: Cost
    explicit: Cost
    external: Cost

    def formats(self) -> Mapping[str, Cost]:
        """By name of `FORMATS`."""
        return {name: getattr(self, name) for name in FORMATS}

    def cheapest(self, uses: float) -> str:
        """The format of eq. 1's minimum; of equals the one that is cheaper to write."""
        return min(reversed(FORMATS), key=lambda name: self.formats()[name].total(uses))

    def least(self, uses: float) -> float:
        """FLOPs of the cheapest format: eq. 1 for one piece of knowledge."""
        return min(cost.total(uses) for cost in self.formats().values())

    @property
    def interval(self) -> tuple[float, float]:
        """Numbers of uses between which explicit memory is the cheapest; paper: (0.494, 13400).

        Below, text is cheaper; above, weights are. The upper end is infinite where reading a memory costs no more than reading
        weights; the interval is empty, low >= high, where one of the other two is always cheaper.
        """
        low = _crossing(self.explicit, self.external)
        return low, _crossing(self.implicit, self.explicit)


def _crossing(dear: Cost, cheap: Cost) -> float:
    """Uses from which ``dear`` to write is worth it because it is cheaper to read: where the two lines cross."""
    saved = cheap.read_flops - dear.read_flops
    extra = dear.write_flops - cheap.write_flops
    if saved <= 0:
        return math.inf if extra > 0 else 0.0
    return max(0.0, extra / saved)


def implicit(shape: ModelSizes, setting: Setting = PAPER) -> Cost:
    """Knowledge in weights: one training pass over the reference; reading is free, as a lower bound (appendix A, implicit
    memory).

    ``write = 6 [ L (lref (2d^2 + 2d dh Hkv + 3dW) + 2 lref (ltrain/2) d) + lref vocab d ]``: forward is 2 FLOPs per weight and
    token, backward twice that.

    Args:
        shape: sizes of the model.
        setting: lengths of references, chunks and memories; by default the paper's.
    """
    tokens, layers = setting.reference, shape.layers
    return Cost(
        write=(
            Term("attention matrices", "6 L lref (2d^2 + 2d dh Hkv)", 6 * layers * tokens * shape.attention_weights),
            Term("MLP", "6 L lref 3dW", 6 * layers * tokens * shape.mlp_weights),
            Term(
                "training attention",
                "6 L 2 lref (ltrain/2) d",
                6 * layers * tokens * setting.training * shape.attention_width,
            ),
            Term("language head", "6 lref vocab d", 6 * tokens * shape.vocabulary * shape.hidden),
        ),
        read=(),
    )


def explicit(shape: ModelSizes, setting: Setting = PAPER) -> Cost:
    """Knowledge in explicit memory: encoded once up to the last memory layer, then attended to (appendix A, explicit memory).

    ``write = 2 [ Lmem (lref (2d^2 + 2d dh Hkv) + 2 (lref^2/2) d) + (Lmem-1) lref 3dW + Lmem lref^2 d ]``, the last term being
    the selection of tokens; ``read = 2 Lmem 2 lchunk lmem d``.

    Args:
        shape: sizes of the model.
        setting: lengths of references, chunks and memories; by default the paper's.
    """
    tokens, layers, width = setting.reference, setting.layers(shape), shape.attention_width
    return Cost(
        write=(
            Term("attention matrices", "2 Lmem lref (2d^2 + 2d dh Hkv)", 2 * layers * tokens * shape.attention_weights),
            Term("attention", "2 Lmem 2 (lref^2/2) d", 2 * layers * tokens**2 * width),
            Term("MLP", "2 (Lmem-1) lref 3dW", 2 * (layers - 1) * tokens * shape.mlp_weights),
            Term("selection of tokens", "2 Lmem lref^2 d", 2 * layers * tokens**2 * width),
        ),
        read=(Term("attention to memory", "2 Lmem 2 lchunk lmem d", 4 * layers * setting.chunk * setting.kept * width),),
    )


def external(shape: ModelSizes, setting: Setting = PAPER) -> Cost:
    """Knowledge as text in the prompt (RAG): free to write, encoded at every use; a lower bound (appendix A, external
    information).

    ``read = 2 [ L (lref (2d^2 + 2d dh Hkv) + 2 lref (lref/2 + lchunk) d) + (L-1) lref 3dW ]``.

    Args:
        shape: sizes of the model.
        setting: lengths of references, chunks and memories; by default the paper's.
    """
    tokens, layers, width = setting.reference, shape.layers, shape.attention_width
    return Cost(
        write=(),
        read=(
            Term("attention matrices", "2 L lref (2d^2 + 2d dh Hkv)", 2 * layers * tokens * shape.attention_weights),
            Term(
                "attention",
                "2 L 2 lref (lref/2 + lchunk) d",
                2 * layers * tokens * (tokens + 2 * setting.chunk) * width,
            ),
            Term("MLP", "2 (L-1) lref 3dW", 2 * (layers - 1) * tokens * shape.mlp_weights),
        ),
    )


def paper_costs(shape: ModelSizes, setting: Setting = PAPER) -> Costs:
    """The three formats by the paper's formulas. For its own model: write 2.24, 0.308, 0 and read 0, 1.44e-4, 0.624 TFLOPs.

    Args:
        shape: sizes of the model.
        setting: lengths of references, chunks and memories; by default the paper's.
    """
    return Costs(implicit(shape, setting), explicit(shape, setting), external(shape, setting))
