"""oneDNN's products of matrices on a CPU. Torch brings them along for its own compiler and gives them no public name, so each
is tried before it is used.

With oneDNN a row has the same bits whatever rows stand beside it; with MKL, which `torch.mm` and `torch.nn.functional.linear`
use, one to three rows differ from many. Which of the two is faster depends on the processor: MKL keeps to 256 bits at a time
on those that are not Intel's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

__all__ = ["linear", "packs", "prepacked"]

#: ``(x [..., a], weight [b, a], bias [b] or None)`` to ``[..., b]``. Without gradients.
Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@cache
def linear() -> Linear | None:
    """The product of float32 rows with a weight, plain or `prepacked`; None where torch lacks it."""
    return _linear if _works(torch.float32, lambda weight: weight) else None


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether weights of a dtype can be `prepacked`, and `linear` multiplies with them.

    Args:
        dtype: float32 or bfloat16.
    """
    return _works(dtype, prepacked)


def prepacked(weight: torch.Tensor) -> torch.Tensor:
    """A copy of a weight ``[b, a]`` that is laid out as oneDNN wants it. No other function of torch can read it."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _works(dtype: torch.dtype, laid: Callable[[torch.Tensor], Any]) -> bool:
    x, weight, bias = torch.eye(5, 3).to(dtype), torch.arange(6.0).view(2, 3).to(dtype), torch.tensor([2.0, -1.0]).to(dtype)
    try:
        found = _linear(x, laid(weight), bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, torch.nn.functional.linear(x, weight, bias))
