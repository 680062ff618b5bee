"""Products of float32 matrices on a CPU, by oneDNN where torch has it (`memory3.onednn`), so that a memory is the same
whichever others are decoded with it.

On an AMD EPYC with AVX-512 it made 200 GFLOP/s on one core where `torch.mm` made 100; other processors were not measured. It
makes a kernel for every number of rows that it has not met, in half a millisecond: whoever has many such numbers should round
them up (`ROUND`).
"""

from __future__ import annotations

import torch

from memory3.onednn import linear

__all__ = ["ROUND", "product"]

#: Numbers of rows to be rounded up to multiples of this.
ROUND = 8


def product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``x @ matrix``, ``[n, a]`` and ``[a, b]`` to ``[n, b]``. Without gradients."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not len(x):
        return x @ matrix
    fast = linear()
    return x @ matrix if fast is None else fast(x, matrix.t(), None)
