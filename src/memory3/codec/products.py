"""Products of float32 matrices on a CPU, by the faster of torch's two libraries.

`torch.mm` is MKL's, which keeps to 256 bits at a time on processors that are not Intel's: on an AMD EPYC with AVX-512 it made
100 GFLOP/s on one core where oneDNN, whose kernels torch brings along for its own compiler, made 200. oneDNN also gives a row
the same bits whatever rows stand beside it; with MKL one to three rows differ from many. So a memory is the same whichever
others are decoded with it. oneDNN makes a kernel for every number of rows that it has not met, in half a millisecond: whoever
has many such numbers should round them up (`ROUND`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

__all__ = ["ROUND", "product"]

#: Numbers of rows to be rounded up to multiples of this.
ROUND = 8


def product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``x @ matrix``, ``[n, a]`` and ``[a, b]`` to ``[n, b]``. Without gradients."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not len(x):
        return x @ matrix
    fast = _fast()
    return x @ matrix if fast is None else fast(x, matrix.t(), None, "none", [], "")


@cache
def _fast() -> Callable[..., Any] | None:
    """oneDNN's product with a transposed matrix; None where torch lacks it. It is no public name of torch, so it is tried."""
    try:
        fast = torch.ops.mkldnn._linear_pointwise
        x, matrix = torch.eye(5, 3), torch.arange(6.0).view(3, 2)
        works = torch.equal(fast(x, matrix.t(), None, "none", [], ""), x @ matrix)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return fast if works else None
