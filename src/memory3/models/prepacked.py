"""Linear layers whose weights oneDNN has laid out for itself beforehand, where that is faster than what torch does.

    prepack(model)

Torch multiplies with MKL on the CPU. On some machines oneDNN (`memory3.onednn`) is faster by a factor of two, but only where
it need not lay weights out at each call; on others it is slower. So both are timed here, at three numbers of rows, and each
is used where it won. Layers stay `torch.nn.Linear` with their own weights; the copies are beside them.

A copy is worth nothing once its weight has changed. Before each pass a few numbers of every weight are looked at; where one
differs, all copies go, and torch's own product takes over. Exact twin: `torch.nn.functional.linear`.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn

from memory3.onednn import linear, packs, prepacked

__all__ = ["prepack"]

#: Weights of fewer numbers are not worth a copy.
_SMALLEST = 1 << 15
#: Of the machine's memory, all copies of a model may take one part in so many.
_PART = 4
#: Rows of a product at which both are timed, and up to how many each timing holds.
_TIMED = ((1, 1), (8, 32), (128, 1 << 62))
_MANY = 128
#: Copies have to take less than this part of the time to be used.
_FASTER = 0.9
#: Numbers of a weight that are looked at before a pass.
_SEEN = 8


class _Copies:
    """The copies of a model's weights. One for all of its layers, so that all go at once.

    Attributes:
        faster: of each entry of `_TIMED`, whether copies are used.
        valid: whether they still are what the weights are.
    """

    def __init__(self, weights: Sequence[torch.Tensor], faster: Sequence[bool]) -> None:
        self.faster = list(faster)
        self.valid = True
        self._seen = [_sample(weight) for weight in weights]
        self._expected = torch.cat(self._seen)

    def check(self) -> bool:
        """Whether the weights are what they were."""
        if self.valid and not torch.equal(torch.cat(self._seen), self._expected):
            self.valid = False
        return self.valid

    def serves(self, rows: int) -> bool:
        """Whether a product of so many rows is to be taken with a copy."""
        return self.valid and next(on for on, (_, upto) in zip(self.faster, _TIMED, strict=True) if rows <= upto)


class _Forward:
    """The forward pass of one layer. What it is copied or pickled to multiplies as torch does."""

    def __init__(self, layer: nn.Linear, copies: _Copies, packed: torch.Tensor) -> None:
        self.layer = layer
        self.copies: _Copies | None = copies
        self.packed: torch.Tensor | None = packed
        self.place = _place(layer.weight)

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer, "copies": None, "packed": None, "place": None}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer, copies, packed = self.layer, self.copies, self.packed  # another thread may let them go meanwhile
        weight = layer.weight
        if copies is not None and packed is not None:
            if copies.serves(x.numel() // max(1, x.shape[-1])) and self._can(x, weight):
                return _multiplied(x, packed, layer.bias)
            if not copies.valid:
                self.copies = self.packed = None
        return nn.functional.linear(x, weight, layer.bias)

    def _can(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        return (
            _place(weight) == self.place
            and x.dtype == weight.dtype
            and x.device.type == "cpu"
            and x.numel() > 0
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


class _Check:
    """Looks at the weights before a pass."""

    def __init__(self, copies: _Copies) -> None:
        self._copies = weakref.ref(copies)

    def __getstate__(self) -> dict[str, Any]:
        return {"_copies": _nothing}

    def __call__(self, module: nn.Module, args: Any) -> None:
        copies = self._copies()
        if copies is not None:
            copies.check()


def _nothing() -> None:
    return None


def _place(weight: torch.Tensor) -> tuple[int, int]:
    """Where a weight lies, and how often torch has written to it."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """A few numbers of a weight, spread over it; a view, which shows what they are later."""
    flat = weight.detach().view(-1)
    return flat[:: max(1, flat.numel() // _SEEN)]


def _multiplied(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    fast = linear()
    assert fast is not None  # else nothing was packed
    return fast(x, packed, bias)


def prepack(model: nn.Module) -> bool:
    """Let the linear layers of a model multiply with copies of their weights, where that is faster on this machine with
    the caller's number of threads. Without a gradient only; with one torch multiplies.

    Costs the bytes of the weights once more, of which no more is taken than a quarter of the machine's memory, and about
    half a second for every 100 million weights. Results differ from torch's by rounding.

    Args:
        model: in memory, on the CPU.

    Returns:
        whether it was done: False where torch has no oneDNN, the model is elsewhere, too small or too large, or torch is
        faster in all cases.
    """
    base = getattr(model, "base_model", model)
    layers = [one for one in model.modules() if _is_plain(one)]
    size = sum(one.weight.nbytes for one in layers)
    if not layers or linear() is None or size * _PART > _machine_bytes():
        return False
    # At few rows the time is that of reading weights: so many are read that no cache holds them.
    some = {layer: prepacked(layer.weight.detach()) for layer in layers[:: max(1, len(layers) // 40)]}
    faster = _timed(some)
    if not any(faster):
        return False
    copies = _Copies([layer.weight for layer in layers], faster)
    for layer in layers:
        packed = some[layer] if layer in some else prepacked(layer.weight.detach())
        vars(layer)["forward"] = _Forward(layer, copies, packed)
    base.register_forward_pre_hook(_Check(copies))
    return True


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's own linear layer, large enough, on the CPU, and in numbers that both sides know."""
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight
    return (
        type(weight) in (torch.Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and packs(weight.dtype)
        and weight.is_contiguous()
        and weight.numel() >= _SMALLEST
    )


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a Unix
        return 0


@torch.inference_mode()
def _timed(copies: Mapping[nn.Linear, torch.Tensor]) -> list[bool]:
    """For each entry of `_TIMED`, whether copies take less time. Both take turns, and of each its best turn counts: what
    else the machine does can only make it slower.
    """
    found = []
    for rows, _ in _TIMED:
        # Products of many rows take long, and the time is that of multiplying: a few layers tell.
        some = list(copies.items())[:: 5 if rows >= _MANY else 1]
        inputs = {one.in_features: one.weight.new_ones(rows, one.in_features) for one, _ in some}
        best = [float("inf"), float("inf")]
        for turn in range(6):
            start = time.perf_counter()
            for layer, copy in some:
                x = inputs[layer.in_features]
                if turn % 2:
                    _multiplied(x, copy, layer.bias)
                else:
                    nn.functional.linear(x, layer.weight, layer.bias)
            best[turn % 2] = min(best[turn % 2], time.perf_counter() - start)
        found.append(best[1] < _FASTER * best[0])
    return found
