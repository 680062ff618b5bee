"""Attention kernels: each gives the output and the log-sum-exp of its logits.

One file a device; what a device decides is decided here.

`choose` takes the first of `KERNELS` that serves: the order is that of preference, and `REFERENCE` serves always.
"""

from __future__ import annotations

import torch

from memory3.attention.kernels.base import Kernel, additive, masked
from memory3.attention.kernels.cpu import CPU
from memory3.attention.kernels.cuda import EFFICIENT, FLASH
from memory3.attention.kernels.reference import REFERENCE

__all__ = ["CPU", "EFFICIENT", "FLASH", "KERNELS", "REFERENCE", "Kernel", "additive", "choose", "masked"]

KERNELS = (CPU, FLASH, EFFICIENT, REFERENCE)


def choose(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None, *, causal: bool = False
) -> Kernel:
    """The kernel that is called with these (see `Kernel.attention`); its ``name`` says which.

    Args:
        query: ``[B, A, T, d]``.
        key, value: ``[B, H, S, d]``.
        bias: the additive mask that broadcasts to ``[B, A, T, S]``, or None.
        causal: without a mask: whether query t sees keys 0..t alone.
    """
    return next(kernel for kernel in KERNELS if kernel.serves(query, key, value, bias, causal))
