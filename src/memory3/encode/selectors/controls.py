"""Controls: what selection must beat."""

from __future__ import annotations

import torch

from memory3.encode.selectors.base import LayerView, Selector

__all__ = ["First", "Random"]


class Random(Selector):
    """Uniform scores from the reference's own seed, so that writing twice gives the same bytes."""

    name = "random"

    def score(self, view: LayerView) -> torch.Tensor:
        """See the class."""
        rows = []
        for seed in view.seeds:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + view.layer) % 2**63)
            rows.append(torch.rand(4096, view.key.shape[1], generator=generator)[: view.key.shape[2]].T)
        return torch.stack(rows).to(view.key.device)


class First(Selector):
    """The earliest tokens."""

    name = "first"

    def score(self, view: LayerView) -> torch.Tensor:
        """See the class."""
        refs, heads, tokens, _ = view.key.shape
        return -torch.arange(tokens, dtype=torch.float32, device=view.key.device).expand(refs, heads, tokens)
