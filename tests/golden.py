"""The memory whose bytes are frozen in `data/`."""

from __future__ import annotations

import numpy as np
import torch

from memory3.types import Memory


def golden_memory() -> Memory:
    """L=3, H=2, d=5, P=7, of which 4 pairs are used."""
    return Memory(
        counts=np.array([[1, 0], [2, 1], [0, 0]], np.uint16),
        positions=np.array([3, 1, 2, 127], np.uint16),
        keys=torch.arange(20, dtype=torch.float16).view(4, 5),
        values=-torch.arange(20, dtype=torch.float16).view(4, 5) / 4,
    )
